"""What both transports read from the account and the environment, so that they cannot differ."""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import certifi
from requests.utils import get_environ_proxies, select_proxy

from airflow_provider_uniapi_fal import __version__
from airflow_provider_uniapi_fal.protocol.messages import HttpReply

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.messages import HttpRequest
    from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount

USER_AGENT = f"airflow-provider-uniapi-fal/{__version__}"

#: A longer JSON body is not read to its end: 64 MiB holds several data URIs of large pictures.
MAX_BODY = 64 * 1024 * 1024

#: A shorter key cannot be told from other text: blotting it out would garble addresses in results.
SHORTEST_SECRET = 8


class Unsendable(OSError):
    """What keeps every request from being sent, found before any is; its text quotes no secret."""


class NoStream(Exception):
    """
    There is no stream of events.

    :param reply: what came instead, without its body; None if nothing came
    :param silent: there is a connection, but no answer came over it
    """

    def __init__(self, reason: str, reply: HttpReply | None = None, *, silent: bool = False) -> None:
        super().__init__(reason)
        self.reply = reply
        self.silent = silent


def headers_for(account: GatewayAccount, request: HttpRequest, url: str) -> dict[str, str]:
    """Return the headers of a request, with the credential if its address may have it."""
    headers = {"Accept": "application/json", "User-Agent": USER_AGENT, **account.headers, **request.headers}
    if request.json is not None:
        headers["Content-Type"] = "application/json"
    credential = account.credential(request.family, url)
    if credential is not None:
        headers["Authorization"] = credential
    return headers


def proxy_for(account: GatewayAccount, url: str) -> str | None:
    """
    Return the connection's proxy, else the environment's, with its exceptions in ``NO_PROXY``.

    :raises Unsendable: if it is none that both transports can use
    """
    proxy: str | None = account.proxy or select_proxy(url, get_environ_proxies(url, no_proxy=None))
    if not proxy:
        return None
    proxy = proxy if "://" in proxy else f"http://{proxy}"
    try:
        parts = urlsplit(proxy)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise Unsendable("the proxy's address is none of an HTTP proxy")
    return proxy


def ca_file(account: GatewayAccount) -> str:
    """Return the file of CA certificates: the connection's, the environment's, or certifi's."""
    return account.ca_bundle or os.environ.get("REQUESTS_CA_BUNDLE") or certifi.where()


def tls_context(account: GatewayAccount) -> ssl.SSLContext:
    """
    Return a context that trusts the account's CA certificates. Reads a file: not for an event loop.

    :raises Unsendable: if there are none in that file
    """
    path = ca_file(account)
    try:
        if Path(path).is_dir():
            return ssl.create_default_context(capath=path)
        return ssl.create_default_context(cafile=path)
    except OSError as error:
        raise Unsendable(f"no CA certificates can be read from {path}") from error


def reply_of(
    account: GatewayAccount, status: int, headers: Mapping[str, str], body: bytes, max_body: int
) -> HttpReply:
    """Return a reply as both transports give it: names in lower case, without the key, not too long."""
    oversized = len(body) > max_body
    lowered = {name.lower(): value for name, value in headers.items()}
    together = "\n".join(lowered.values())
    if account.key in together or not together.isascii():
        lowered = {name: _header_without_key(account, value) for name, value in lowered.items()}
    return HttpReply(status, lowered, b"" if oversized else without_key(account, body), oversized)


def _header_without_key(account: GatewayAccount, value: str) -> str:
    if not value.isascii():
        return without_key(account, value.encode("latin-1", "replace")).decode("latin-1")
    return value.replace(account.key, "***") if len(account.key) >= SHORTEST_SECRET else value


def without_key(account: GatewayAccount, text: bytes) -> bytes:
    """Blot out the key in a reply: a gateway that quotes it in an error must not bring it into a log."""
    for secret, stars in _spellings(account.key):
        text = text.replace(secret, stars)
    return text


@lru_cache
def _spellings(key: str) -> tuple[tuple[bytes, bytes], ...]:
    """Return the bytes that a key may be written in, with what to write instead."""
    if len(key) < SHORTEST_SECRET:
        return ()
    return tuple((key.encode(form), "***".encode(form)) for form in ("utf-8", "utf-16-le", "utf-16-be"))
