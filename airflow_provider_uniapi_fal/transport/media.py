"""
Fetching media files: without credentials, from public hosts only, piece by piece onto a local disk.

The address of a media file comes from the network. So each host, also of a redirect, is checked, and so is
each address that its name resolves to; the connection is made to a checked address and no other.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import ipaddress
import socket
import zlib
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
import certifi
from aiohttp.abc import AbstractResolver, ResolveResult
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from airflow_provider_uniapi_fal.transport.settings import USER_AGENT, Unsendable, proxy_for, tls_context

if TYPE_CHECKING:
    import ssl
    from pathlib import Path

    from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount

MAX_REDIRECTS = 3
MAX_ATTEMPTS = 4
CHUNK_BYTES = 256 * 1024
MIB = 1024 * 1024

#: Encodings that are undone although none was asked for, and zlib's word for each. Media are packed already, so
#: that a body which grows more than a hundredfold is a bomb.
_ENCODINGS = {"gzip": 31, "x-gzip": 31, "deflate": 15}
_MAX_GROWTH = 100


@dataclass(frozen=True)
class Fetched:
    """
    A media file on the local disk.

    :param content_type: what the server says it is, without parameters
    """

    path: Path
    size: int
    sha256: str
    content_type: str | None


class MediaError(Exception):
    """
    A media file could not be fetched.

    :param gone: the server says that it has no such file (any more)
    :param status: HTTP status of the reply that refused it
    """

    def __init__(self, message: str, *, gone: bool = False, status: int | None = None) -> None:
        super().__init__(message)
        self.gone = gone
        self.status = status


class MediaFetcher:
    """
    Fetches media files over one pool of connections; an async context manager.

    :param account: for proxy, CA certificates and ``media_hosts``; its key is not used
    :param max_bytes: a longer file is refused
    :param max_seconds: a file that takes longer is given up; default an hour
    :param parallel: connections at most; default 8
    """

    def __init__(
        self,
        account: GatewayAccount,
        *,
        max_bytes: int,
        max_seconds: float = 3600.0,
        parallel: int = 8,
    ) -> None:
        self._account = account
        self._max_bytes = max_bytes
        self._max_seconds = max_seconds
        self._parallel = parallel
        self._session: aiohttp.ClientSession | None = None
        #: Resolved like any other host, but by the user's own will.
        self._proxies: set[str] = set()
        self._ways: dict[URL, str | None] = {}

    async def __aenter__(self) -> MediaFetcher:
        """Open the pool."""
        try:
            context = await asyncio.to_thread(self._trusting)
            proxies = [proxy_for(self._account, f"{scheme}://media.invalid/") for scheme in ("http", "https")]
        except Unsendable as error:
            raise MediaError(str(error)) from error
        self._proxies = {URL(proxy).raw_host or "" for proxy in proxies if proxy}
        allowed = {*self._account.media_hosts, *self._proxies}
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                ssl=context, resolver=_PublicResolver(allowed), limit=self._parallel
            ),
            timeout=aiohttp.ClientTimeout(
                total=None,
                sock_connect=self._account.connect_timeout,
                sock_read=self._account.read_timeout,
            ),
            headers={"User-Agent": USER_AGENT, "Accept-Encoding": "identity"},
            trust_env=False,
            # It would unpack into memory, without a bound that is ours.
            auto_decompress=False,
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the pool."""
        if self._session is not None:
            await self._session.close()

    async def fetch(self, url: str, path: Path, *, size: int | None = None) -> Fetched:
        """
        Fetch one file to a path; passing faults are met by fetching it again from the start.

        :param size: the file's length as the result gives it. Where the server announces none, it must be this
            one; a file of more than twice this length and a MiB is refused
        :raises MediaError: if it cannot be had, with the host but not the whole address
        """
        try:
            return await asyncio.wait_for(self._fetch(url, path, size), self._max_seconds)
        except asyncio.TimeoutError as error:
            raise MediaError(f"it was not there after {self._max_seconds:g} seconds") from error

    async def _fetch(self, url: str, path: Path, size: int | None) -> Fetched:
        attempt = 0
        while True:
            attempt += 1
            try:
                return await self._fetch_once(url, path, size)
            except _Passing as error:
                if attempt >= MAX_ATTEMPTS:
                    raise MediaError(f"{error} ({attempt} attempts)") from error
                await asyncio.sleep(0.5 * 2**attempt)

    def _trusting(self) -> ssl.SSLContext:
        """Trust the public authorities besides the gateway's own, for files lie elsewhere as a rule."""
        context = tls_context(self._account)
        context.load_verify_locations(certifi.where())
        return context

    async def _fetch_once(self, address: str, path: Path, size: int | None) -> Fetched:
        assert self._session is not None  # noqa: S101 - used inside its context only
        url = _url(address)
        for _ in range(MAX_REDIRECTS + 1):
            host = self._checked_host(url)
            try:
                async with self._session.get(
                    url, allow_redirects=False, proxy=self._proxy_for(url)
                ) as response:
                    if 300 <= response.status < 400 and "location" in response.headers:
                        url = _redirected(url, response.headers["location"])
                        continue
                    _check_status(response.status, host)
                    return await self._save(response, path, host, size)
            except _Forbidden as error:
                raise MediaError(str(error)) from error
            except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
                forbidden = _forbidden_in(error)
                if forbidden is not None:
                    raise MediaError(str(forbidden)) from error
                if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise MediaError("there is no room for it on the local disk") from error
                raise _Passing(f"fetching from {host} failed with {type(error).__name__}") from error
        raise MediaError(f"more than {MAX_REDIRECTS} redirects")

    def _proxy_for(self, url: URL) -> str | None:
        """Return the proxy on the way to a host; reading the environment costs more than to fetch a picture."""
        origin = url.origin()
        if origin not in self._ways:
            self._ways[origin] = proxy_for(self._account, str(origin))
        return self._ways[origin]

    def _checked_host(self, url: URL) -> str:
        host = url.raw_host or ""
        if url.scheme not in ("http", "https") or not host:
            raise MediaError(f"its address has the scheme {url.scheme[:20]!r}, not http or https")
        if host in self._proxies and host not in self._account.media_hosts:
            raise MediaError(f"{host} is the proxy")
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            if ":" in host or host.replace(".", "").isdigit():
                # aiohttp takes it for an address and asks no resolver; the system may read it as any.
                raise MediaError(f"its address has the host {host[:60]!r}, which is none") from None
            return host
        try:
            _check_address(host, literal, self._account.media_hosts)
        except _Forbidden as error:
            raise MediaError(str(error)) from error
        return host

    async def _save(
        self, response: aiohttp.ClientResponse, path: Path, host: str, expected: int | None
    ) -> Fetched:
        announced = response.content_length
        allowed = self._max_bytes if not expected else min(self._max_bytes, 2 * expected + MIB)
        if announced is not None and announced > allowed:
            raise MediaError(f"{host} announces {announced} bytes; at most {allowed} are allowed")
        body = _Body(response.headers.get("Content-Encoding", ""))
        digest = hashlib.sha256()
        size = 0
        with path.open("wb") as file:
            async for chunk in response.content.iter_chunked(CHUNK_BYTES):
                for piece in body.pieces(chunk):
                    size += len(piece)
                    if size > allowed:
                        raise MediaError(f"{host} sends more than the {allowed} bytes that are allowed")
                    digest.update(piece)
                    file.write(piece)
        if not body.whole:
            raise _Passing(f"{host} sent a packed file that ends in the middle")
        if size == 0:
            raise _Passing(f"{host} sent an empty file")
        if announced is None and expected is not None and size != expected:
            raise _Passing(f"{host} sent {size} bytes of {expected}")
        return Fetched(path, size, digest.hexdigest(), response.content_type or None)


class _Body:
    """The body of a reply, unpacked piece by piece where its server has packed it."""

    def __init__(self, encoding: str) -> None:
        encoding = encoding.strip().lower()
        if encoding in ("", "identity"):
            self._unpacker = None
        elif encoding in _ENCODINGS:
            self._unpacker = zlib.decompressobj(_ENCODINGS[encoding])
        else:
            raise MediaError(f"its server has packed it with {encoding[:20]!r}, which was not asked for")
        self._taken = self._given = 0

    @property
    def whole(self) -> bool:
        """Whether its end has been reached, where it is packed."""
        return self._unpacker is None or self._unpacker.eof

    def pieces(self, chunk: bytes) -> Iterator[bytes]:
        if self._unpacker is None:
            yield chunk
            return
        self._taken += len(chunk)
        more = True
        while more:
            try:
                piece = self._unpacker.decompress(chunk, CHUNK_BYTES)
            except zlib.error as error:
                raise MediaError("its server calls it packed, and it is not") from error
            chunk = self._unpacker.unconsumed_tail
            # It may hold back what did not fit, although it has taken all of the chunk.
            more = bool(chunk) or len(piece) == CHUNK_BYTES
            self._given += len(piece)
            if self._given > _MAX_GROWTH * self._taken + MIB:
                raise MediaError(
                    f"it is a decompression bomb: {self._taken} bytes have become more than {self._given}"
                )
            yield piece
        if self._unpacker.unused_data:
            raise MediaError("its server has sent more after the end of the packed file")


class _Passing(Exception):
    """A fault that may be gone at the next attempt."""


class _Forbidden(OSError):
    """A host that must not be asked. An OSError, because that is what aiohttp lets a resolver raise."""


class _PublicResolver(AbstractResolver):
    """Resolves names, and refuses those that lead to a private address: what it returns is connected to."""

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = allowed
        self._resolver = ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._resolver.resolve(host, port, family)
        for entry in found:
            _check_address(host, ipaddress.ip_address(entry["host"].partition("%")[0]), self._allowed)
        return found

    async def close(self) -> None:
        await self._resolver.close()


def _check_address(
    host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address, allowed: Collection[str]
) -> None:
    mapped = getattr(address, "ipv4_mapped", None) or address
    if not mapped.is_global and host.lower() not in allowed:
        raise _Forbidden(
            f"the host {host} has the private address {address}; if that is meant to be, add the host to "
            "media_hosts in the connection's extra"
        )


def _check_status(status: int, host: str) -> None:
    if status == 200:
        return
    if status in (404, 410):
        message = f"{host} answered HTTP {status}: it has no such file (any more)"
        raise MediaError(message, gone=True, status=status)
    if status >= 500 or status in (408, 425, 429):
        raise _Passing(f"{host} answered HTTP {status}")
    # A 403 is said of an address that was signed for a time, and by hosts that are busy: the file may be there.
    raise MediaError(f"{host} answered HTTP {status}", status=status)


def _url(address: str) -> URL:
    """Read an address with the very parser of the client: where two disagree, the wrong host is checked."""
    try:
        return URL(address)
    except ValueError as error:
        raise MediaError("its address is no URL") from error


def _redirected(url: URL, location: str) -> URL:
    target = url.join(_url(location))
    if url.scheme == "https" and target.scheme != "https":
        raise MediaError("a redirect leads away from https")
    return target


def _forbidden_in(error: BaseException) -> _Forbidden | None:
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, _Forbidden):
            return cause
        inner = getattr(cause, "os_error", None)
        cause = inner if isinstance(inner, BaseException) and inner is not cause else cause.__cause__
    return None
