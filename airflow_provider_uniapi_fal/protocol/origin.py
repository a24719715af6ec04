"""
Where the gateway is, what may be sent there, and how a path that a reply names is led back to it.

The rule for the credential: it goes to the configured origin only. Replies name other hosts (the documented
one names ``queue.fal.run``), so only the path of an address in a reply is ever used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, bad_input

DEFAULT_BASE_URL = "https://api.uniapi.io"

#: UniAPI's pages: fal below /fal-ai with "Key", Kling, Luma and the OpenAI form with "Bearer".
FAMILY_PATHS = {"fal": "/fal-ai", "kling": "/kling", "luma": "/luma", "openai": "/v1"}
AUTH_SCHEMES = {"fal": "Key", "kling": "Bearer", "luma": "Bearer", "openai": "Bearer"}

_SEGMENT = re.compile(r"[A-Za-z0-9._~-]+")
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,200}")
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


@dataclass(frozen=True)
class GatewayAccount:
    """
    One reading of a connection: where the gateway is, and with which key and habits to talk to it.

    :param base_url: scheme, host, port and prefix, without a slash at the end
    :param key: the API key; never part of the representation
    :param auth_schemes: authorization scheme by family
    :param family_paths: path prefix by family, each beginning with ``/``, or empty
    :param headers: headers sent with every request to the gateway
    :param connect_timeout: seconds to reach the gateway
    :param read_timeout: seconds for a whole reply
    :param ca_bundle: path of a file of CA certificates, for a gateway with a private one
    :param proxy: URL of an HTTP proxy
    :param media_hosts: hosts that media may be fetched from although they are private
    """

    base_url: str
    key: str = field(repr=False)
    auth_schemes: Mapping[str, str] = field(default_factory=lambda: AUTH_SCHEMES)
    family_paths: Mapping[str, str] = field(default_factory=lambda: FAMILY_PATHS)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    ca_bundle: str | None = None
    proxy: str | None = field(default=None, repr=False)
    media_hosts: tuple[str, ...] = ()

    def url(self, family: str, path: str) -> str:
        """Return the absolute address of a path below a family's prefix."""
        return f"{self.base_url}{self.family_paths[family]}{path}"

    def credential(self, family: str, url: str) -> str | None:
        """Return the value of the Authorization header for an address, or None if it must not have one."""
        origin = _origin(self.base_url)
        # What begins with the base URL and a slash has its origin: no need to take the address of each poll apart.
        if origin is None or not (url.startswith(f"{self.base_url}/") or _origin(url) == origin):
            return None
        return f"{self.auth_schemes[family]} {self.key}"


def read_account(
    *, host: str | None, port: int | None, schema: str | None, key: str | None, extra: Mapping[str, Any]
) -> GatewayAccount | Failure:
    """
    Read the fields of a connection.

    Accepted forms of the address: nothing (the public gateway); a bare host, which means https; a URL with
    or without a prefix; either ending in the fal family's path, as the gateway's own page writes it. A
    connection given as a URI puts its path into ``schema``; ``http`` and ``https`` there are the scheme.

    :return: the account, or a failure that names the field and says what to fix
    """
    problem = _key_problem(key) or _extra_problem(extra)
    if problem is not None:
        return problem
    given_paths = extra.get("family_paths") or {}
    family_paths = {**FAMILY_PATHS, **{family: _clean_prefix(path) for family, path in given_paths.items()}}
    base_url = _base_url(host, port, schema, family_paths["fal"])
    if isinstance(base_url, Failure):
        return base_url
    schemes = extra.get("auth_scheme") or {}
    return GatewayAccount(
        base_url=base_url,
        key=key or "",
        auth_schemes={**AUTH_SCHEMES, **({"fal": schemes} if isinstance(schemes, str) else schemes)},
        family_paths=family_paths,
        headers=dict(extra.get("headers") or {}),
        connect_timeout=float(extra.get("connect_timeout") or GatewayAccount.connect_timeout),
        read_timeout=float(extra.get("read_timeout") or GatewayAccount.read_timeout),
        ca_bundle=extra.get("ca_bundle") or None,
        proxy=extra.get("proxy") or None,
        media_hosts=tuple(
            # The form's text field has an empty line at its end.
            host.strip().lower().strip("[]")
            for host in extra.get("media_hosts") or ()
            if host.strip()
        ),
    )


def is_request_id(value: object) -> bool:
    """Whether a value from the network is an id that may become part of a path."""
    return isinstance(value, str) and _REQUEST_ID.fullmatch(value) is not None


def is_safe_path(path: str) -> bool:
    """Whether a path consists of plain segments: nothing encoded, no ``..``, no empty segment."""
    if not path.startswith("/"):
        return False
    segments = path[1:].split("/")
    return all(_SEGMENT.fullmatch(segment) and segment not in (".", "..") for segment in segments)


def path_below_family(url: object, family_path: str, base_url: str = "") -> str | None:
    """
    Return the path of an address in a reply below the family's prefix, or None if it is not usable.

    Host, query and fragment are dropped: the address is led back to the configured origin. The base URL's
    prefix is taken away, and so is the family's, which is also fal's own owner name and never doubled.
    """
    if not isinstance(url, str):
        return None
    try:
        path = urlsplit(url.strip()).path
        prefix = urlsplit(base_url).path.rstrip("/")
    except ValueError:
        return None
    if prefix and path.startswith(prefix + "/"):
        path = path[len(prefix) :]
    while family_path and path.startswith(family_path + "/"):
        path = path[len(family_path) :]
    return path if is_safe_path(path) else None


@lru_cache
def _origin(url: str) -> tuple[str, str, int | None] | None:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return None
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return (parts.scheme, (parts.hostname or "").lower(), port or default)


def _clean_prefix(path: str) -> str:
    stripped = path.strip("/")
    return f"/{stripped}" if stripped else ""


def _base_url(host: str | None, port: int | None, schema: str | None, fal_path: str) -> str | Failure:
    text = (host or "").strip()
    schema = (schema or "").strip()
    scheme = schema.lower() if schema.lower() in ("http", "https") else ""
    path_in_schema = "" if scheme else schema.strip("/")
    if not text and (port or path_in_schema):
        return bad_input("The connection has a port or a path but no host.", "Give the gateway's host.")
    text = text or DEFAULT_BASE_URL
    if "://" not in text:
        text = f"{scheme or 'https'}://{text}"
    try:
        parts = urlsplit(text)
        in_text = parts.port
    except ValueError:
        return _no_base_url("it is not a URL")
    if parts.scheme not in ("http", "https"):
        return _no_base_url(f"its scheme is {parts.scheme!r}, not http or https")
    if parts.username or parts.password or "@" in parts.netloc:
        return _no_base_url("it contains a user or a password; the key belongs into the password field")
    name = parts.netloc.rpartition(":")[0] if in_text is not None else parts.netloc
    if not _HOST.fullmatch(name):
        return _no_base_url("it names no host")
    if parts.query or parts.fragment:
        return _no_base_url("it has a query or a fragment")
    if in_text is not None and port is not None and in_text != port:
        return _no_base_url(f"it names port {in_text}, but the port field says {port}")
    prefix = "/".join(part for part in (parts.path.strip("/"), path_in_schema) if part)
    prefix = f"/{prefix}" if prefix else ""
    if prefix and not is_safe_path(prefix):
        return _no_base_url("its path is not made of plain segments")
    if fal_path and prefix.endswith(fal_path):
        prefix = prefix[: -len(fal_path)]
    number = in_text if in_text is not None else port
    if number is not None and not 0 < number < 65536:
        return _no_base_url(f"there is no port {number}")
    netloc = name.lower() if number is None else f"{name.lower()}:{number}"
    return f"{parts.scheme}://{netloc}{prefix}"


def _no_base_url(why: str) -> Failure:
    return bad_input(
        f"The connection's host is no usable base URL: {why}.",
        f"Give a host such as api.uniapi.io, or a URL such as {DEFAULT_BASE_URL}.",
    )


def _key_problem(key: str | None) -> Failure | None:
    if not key:
        what = "The connection has no API key."
    elif key != "".join(key.split()):
        what = "The connection's API key contains white space, perhaps from copying it."
    elif not key.isascii() or not key.isprintable():
        what = "The connection's API key contains characters that no key has."
    else:
        return None
    return Failure(
        FailureKind.AUTH,
        what=what,
        retry_does="would fail in the same way.",
        advice="Nothing was sent to the gateway. Put the key into the connection's password field.",
    )


_EXTRA_TYPES: dict[str, tuple[type, ...]] = {
    "auth_scheme": (str, Mapping),
    "family_paths": (Mapping,),
    "headers": (Mapping,),
    "connect_timeout": (int, float, str),
    "read_timeout": (int, float, str),
    "ca_bundle": (str,),
    "proxy": (str,),
    "media_hosts": (list, tuple),
}


def _extra_problem(extra: Mapping[str, Any]) -> Failure | None:
    """Say what is wrong with the connection's extra: a misspelt option must not be passed over in silence."""

    def wrong(name: str, why: str) -> Failure:
        return bad_input(f"The connection's extra field {name!r} {why}.", "Correct the connection's extra.")

    for name, value in extra.items():
        if name not in _EXTRA_TYPES:
            return wrong(name, f"is not known; known are {', '.join(sorted(_EXTRA_TYPES))}")
        if value is None or value == "":
            continue
        if not isinstance(value, _EXTRA_TYPES[name]):
            return wrong(name, f"is a {type(value).__name__}, which it cannot be")
    for name in ("connect_timeout", "read_timeout"):
        value = extra.get(name)
        if value is None or value == "":
            continue
        try:
            seconds = math.nan if isinstance(value, bool) else float(value)
        except (ValueError, OverflowError):
            return wrong(name, "is not a number of seconds")
        if not 0 < seconds <= 86400:
            return wrong(name, "must be more than 0 and at most 86400 seconds")
    schemes = extra.get("auth_scheme") or {}
    for family, scheme in ({"fal": schemes} if isinstance(schemes, str) else schemes).items():
        if family not in AUTH_SCHEMES:
            return wrong("auth_scheme", f"names the family {family!r}; there are {', '.join(AUTH_SCHEMES)}")
        if not isinstance(scheme, str) or not _TOKEN.fullmatch(scheme):
            return wrong("auth_scheme", "must be one word such as Key or Bearer")
    for family, path in (extra.get("family_paths") or {}).items():
        if family not in FAMILY_PATHS:
            return wrong("family_paths", f"names the family {family!r}; there are {', '.join(FAMILY_PATHS)}")
        if not isinstance(path, str) or (path.strip("/") and not is_safe_path(_clean_prefix(path))):
            return wrong("family_paths", f"has a path for {family!r} that is not made of plain segments")
    for name, value in (extra.get("headers") or {}).items():
        sendable = isinstance(value, str) and value.isascii() and value.isprintable()
        if not sendable or not _TOKEN.fullmatch(str(name)):
            return wrong("headers", f"has a header {str(name)!r} that cannot be sent")
        if str(name).lower() in ("authorization", "host", "content-length", "content-type"):
            return wrong("headers", f"cannot set {name}; the key belongs into the password field")
    for host in extra.get("media_hosts") or ():
        if not isinstance(host, str) or (host.strip() and not _HOST.fullmatch(host.strip())):
            return wrong("media_hosts", "must be a list of host names or addresses without scheme and port")
    return None
