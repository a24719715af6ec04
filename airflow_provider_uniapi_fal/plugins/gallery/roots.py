"""
Which places in storage the gallery may show: those below a configured root, and no others.

A manifest names its files by address. Whoever can write a manifest could otherwise have the API server read
whatever it can reach, so an address is taken apart here, compared with the roots, and put together again from
the root that holds it, with the root's own connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]*", re.IGNORECASE)

#: Different words for the same store.
_SAME = {"local": "file", "s3a": "s3", "gcs": "gs"}

#: Not stores: the API server is not to call web addresses on behalf of a manifest.
_NO_STORES = ("http", "https", "ftp", "data", "memory")


class NotAllowed(ValueError):
    """An address is malformed, or below no root."""


@dataclass(frozen=True)
class Root:
    """
    A folder in storage whose files may be shown.

    :param protocol: such as ``file`` or ``s3``
    :param path: absolute path, or bucket and key, without a slash at the end
    :param conn_id: Airflow connection of the storage
    """

    protocol: str
    path: str
    conn_id: str | None = None


@dataclass(frozen=True)
class RootedPlace:
    """
    An address below a root.

    :param path: the whole path, in the form of the root's
    """

    root: Root
    path: str


def read_roots(text: str) -> tuple[Root, ...]:
    """
    Read the option ``media_roots``: addresses of folders, separated by commas or line breaks.

    :raises ValueError: naming the address that is no usable root
    """
    found = [part.strip() for part in re.split(r"[,\n]", text)]
    return tuple(_root(address) for address in found if address)


def place_of(address: str, roots: Iterable[Root]) -> RootedPlace:
    """
    Return where an address is below the roots.

    The connection that the address names, if any, is not used: the root's is.

    :raises NotAllowed: if it is below none of them, or is not made of plain segments
    """
    protocol, path, _ = _parts(address)
    for root in roots:
        if protocol == root.protocol and path.startswith(f"{root.path}/"):
            return RootedPlace(root, path)
    raise NotAllowed("it is below none of the folders that [uniapi_fal] media_roots names")


def folder_of(address: str) -> str:
    """Return the folder of an address, as one would write it into ``media_roots``."""
    return address.rpartition("/")[0]


def _root(address: str) -> Root:
    try:
        protocol, path, conn_id = _parts(address.rstrip("/"))
    except NotAllowed as error:
        raise ValueError(f"media_roots: {address!r} is no folder in storage: {error}") from error
    return Root(protocol, path, conn_id)


def _parts(address: str) -> tuple[str, str, str | None]:
    """Return protocol, path and connection; every segment of the path is plain."""
    if not isinstance(address, str) or len(address) > 4096:
        raise NotAllowed("it is no address")
    scheme, separator, rest = address.partition("://")
    if not separator:
        scheme, rest = "file", address
    protocol = _SAME.get(scheme.lower(), scheme.lower())
    if not _SCHEME.fullmatch(protocol) or protocol in _NO_STORES:
        raise NotAllowed(f"{scheme[:40]!r} is no storage")
    conn_id = None
    if protocol == "file":
        if not rest.startswith("/"):
            raise NotAllowed("its path is not absolute")
        segments = rest[1:].split("/")
    else:
        segments = rest.split("/")
        before, at, bucket = segments[0].rpartition("@")
        if at:
            conn_id, segments[0] = before or None, bucket
    for segment in segments:
        if segment in ("", ".", "..") or "\\" in segment or "::" in segment or not segment.isprintable():
            raise NotAllowed("its path is not made of plain segments")
    return protocol, ("/" if protocol == "file" else "") + "/".join(segments), conn_id
