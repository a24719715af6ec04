"""Conversations with the gateway from an event loop, on aiohttp, with one pool of connections for all."""

from __future__ import annotations

import asyncio
import json
import math
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeVar

import aiohttp
from yarl import URL

from airflow_provider_uniapi_fal.protocol.messages import (
    Done,
    Flow,
    HttpRequest,
    NotSent,
    ReplyLost,
    Send,
    Sent,
    advance,
)
from airflow_provider_uniapi_fal.transport.settings import (
    MAX_BODY,
    NoStream,
    Unsendable,
    headers_for,
    proxy_for,
    reply_of,
    tls_context,
    without_key,
)

if TYPE_CHECKING:
    import ssl

    from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount

T = TypeVar("T")

#: Requests under way at once from one event loop to one account: more than looks, so that none waits for a place.
MAX_CONNECTIONS = 250

#: Addresses that are kept as aiohttp takes them apart, less than 1 KB each: a triggerer has 1,000 triggers by default.
#: Of more that are polled in turn none is found again, and each is taken apart as it was without.
MAX_ADDRESSES = 4096

#: fal's headers may have 16 KB together; a reply is not to be lost because one of them is long.
MAX_HEADER = 65536


class EventStream:
    """The bytes of one stream, as they come."""

    def __init__(self, account: GatewayAccount, response: aiohttp.ClientResponse) -> None:
        self._account = account
        self._response = response

    async def read(self, seconds: float) -> bytes | None:
        """Return the next bytes, none at the end of the stream, or None if nothing came in so many seconds."""
        try:
            chunk = await asyncio.wait_for(self._response.content.readany(), max(seconds, 0.0))
        except asyncio.TimeoutError:
            return None
        except (aiohttp.ClientError, OSError):
            return b""
        return without_key(self._account, chunk)


class NonblockingTransport:
    """
    Sends requests to one account's gateway over a pool of connections.

    :param account: where to, and with which key
    :param max_body: bytes of a body that are read at most
    """

    def __init__(self, account: GatewayAccount, max_body: int = MAX_BODY) -> None:
        self.account = account
        self._max_body = max_body
        self._session: aiohttp.ClientSession | None = None
        self._streams: aiohttp.ClientSession | None = None
        self._context: ssl.SSLContext | None = None
        self._opening = asyncio.Lock()
        self._proxy: tuple[str | None] | None = None
        self._under_way = 0
        self._closing = False

    async def run(
        self,
        flow: Flow[T],
        heard: Callable[[Sent, float], None] | None = None,
        *,
        brief_seconds: float = math.inf,
    ) -> T:
        """
        Run a conversation to its end and return what it returns.

        :param heard: called with what came of each request, and the loop's time at which it was begun
        :param brief_seconds: for a reply that should come at once, if it is less than for others
        """
        self._under_way += 1
        try:
            effect = advance(flow, None)
            while not isinstance(effect, Done):
                if isinstance(effect, Send):
                    begun = asyncio.get_running_loop().time()
                    sent = await self._send(effect, brief_seconds)
                    if heard is not None:
                        heard(sent, begun)
                    effect = advance(flow, sent)
                else:
                    await asyncio.sleep(effect.seconds)
                    effect = advance(flow, None)
            return effect.value
        finally:
            await self._ended()

    async def close(self) -> None:
        """Close the pool after the conversations under way; the transport opens a new one if it is used again."""
        self._closing = self._under_way > 0
        if self._closing:
            return
        sessions = (self._session, self._streams)
        self._session = self._streams = self._context = None
        for session in sessions:
            if session is not None:
                await session.close()

    @asynccontextmanager
    async def stream(self, request: HttpRequest, seconds: float) -> AsyncIterator[EventStream]:
        """
        Open a stream of server-sent events.

        Streams have connections of their own, as many as there are streams: they hold them for long.

        :param seconds: in which it must have begun to answer
        :raises NoStream: if it does not come about
        """
        self._under_way += 1
        try:
            url = self.account.url(request.family, request.path)
            async with self._opening:
                if self._streams is None or self._streams.closed:
                    self._streams = await self._open(force_close=False, for_streams=True)
            try:
                opening = self._streams.request(
                    request.method,
                    _as_it_is(url),
                    params=request.query,
                    headers=headers_for(self.account, request, url),
                    allow_redirects=False,
                    proxy=self._proxy_for(url),
                )
                response = await asyncio.wait_for(opening, seconds)
            except aiohttp.ClientError as error:
                raise NoStream(_reason(error)) from None
            except asyncio.TimeoutError:  # to Python it is an OSError
                raise NoStream("no answer", silent=True) from None
            except OSError as error:
                raise NoStream(_reason(error)) from None
            try:
                if response.status != 200 or response.content_type != "text/event-stream":
                    raise NoStream(
                        f"HTTP {response.status}",
                        reply_of(self.account, response.status, response.headers, b"", self._max_body),
                    )
                yield EventStream(self.account, response)
            finally:
                # One that was read to its end has given its connection back.
                response.close()
        finally:
            await self._ended()

    async def _ended(self) -> None:
        self._under_way -= 1
        if self._closing:
            await self.close()

    async def _send(self, effect: Send, brief_seconds: float) -> Sent:
        request = effect.request
        patience = request.read_timeout or self.account.read_timeout
        if effect.brief:
            patience = min(patience, brief_seconds)
        timeout = _timeout(self.account.connect_timeout, patience, of_all=effect.brief)
        try:
            url = self.account.url(request.family, request.path)
            headers = headers_for(self.account, request, url)
            if request.method == "POST":
                # As in the blocking transport: a submit never goes over a connection that may be closing.
                async with await self._open(force_close=True) as session:
                    return await self._exchange(session, request, url, headers, timeout, patience)
            pool = self._session
            if pool is None or pool.closed:
                pool = await self._opened()
            return await self._exchange(pool, request, url, headers, timeout, patience)
        except Unsendable as error:
            return NotSent(str(error), permanent=True)

    async def _opened(self) -> aiohttp.ClientSession:
        async with self._opening:
            if self._session is None or self._session.closed:
                self._session = await self._open(force_close=False)
            return self._session

    def _proxy_for(self, url: str) -> str | None:
        """Return the proxy; all addresses have one origin, and reading the environment costs more than a poll."""
        if self._proxy is None:
            self._proxy = (proxy_for(self.account, url),)
        return self._proxy[0]

    async def _open(self, *, force_close: bool, for_streams: bool = False) -> aiohttp.ClientSession:
        if self._context is None:
            # Reading the CA certificates takes longer than all else that a submit costs.
            self._context = await asyncio.to_thread(tls_context, self.account)
        limit = 0 if for_streams else MAX_CONNECTIONS
        connector = aiohttp.TCPConnector(limit=limit, ssl=self._context, force_close=force_close)
        # Who reads a stream has a patience of his own, for each read.
        timeout = _timeout(self.account.connect_timeout, None if for_streams else self.account.read_timeout)
        return aiohttp.ClientSession(
            connector=connector,
            timeout=timeout,
            trust_env=False,
            cookie_jar=aiohttp.DummyCookieJar(),
            max_line_size=MAX_HEADER,
            max_field_size=MAX_HEADER,
        )

    async def _exchange(
        self,
        session: aiohttp.ClientSession,
        request: HttpRequest,
        url: str,
        headers: dict[str, str],
        timeout: aiohttp.ClientTimeout,
        patience: float,
    ) -> Sent:
        proxy = self._proxy_for(url)
        try:
            async with session.request(
                request.method,
                _as_it_is(url),
                params=request.query,
                headers=headers,
                json=request.json,
                allow_redirects=False,
                proxy=proxy,
                timeout=timeout,
                # aiohttp would call a body that is not there a stream of octets; to leave that out takes it time.
                skip_auto_headers=None if request.method == "GET" else ["Content-Type"],
            ) as response:
                if response.content.is_eof():
                    # Most replies are here with their headers; a clock for each would be a task for each.
                    body = response.content.read_nowait()
                else:
                    body = await asyncio.wait_for(self._read(response), patience)
                return reply_of(self.account, response.status, response.headers, body, self._max_body)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError, aiohttp.InvalidURL) as error:
            # No connection came about: refused, no such name, too slow, or a certificate that is not trusted.
            return NotSent(_reason(error))
        except aiohttp.ClientHttpProxyError as error:
            # Raised when a proxy makes no tunnel, before anything is sent through it.
            return NotSent(_reason(error))
        except (aiohttp.ClientError, asyncio.TimeoutError, OSError) as error:
            return ReplyLost(_reason(error))

    async def _read(self, response: aiohttp.ClientResponse) -> bytes:
        body = bytearray()
        async for chunk in response.content.iter_chunked(65536):
            body += chunk
            if len(body) > self._max_body:
                break
        return bytes(body)


@dataclass
class _Pool:
    transport: NonblockingTransport
    users: int = 0


_pools: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, dict[str, _Pool]] = weakref.WeakKeyDictionary()


@asynccontextmanager
async def pooled(account: GatewayAccount, max_body: int = MAX_BODY) -> AsyncIterator[NonblockingTransport]:
    """
    Lend the transport that all users of an account share on this event loop; the last one closes it.

    The event loop is part of the key because a pool works on the loop it was opened on only.
    """
    pools = _pools.setdefault(asyncio.get_running_loop(), {})
    key = json.dumps([asdict(account), max_body], sort_keys=True)
    pool = pools.setdefault(key, _Pool(NonblockingTransport(account, max_body)))
    pool.users += 1
    try:
        yield pool.transport
    finally:
        pool.users -= 1
        if pool.users == 0 and pools.get(key) is pool:
            del pools[key]
            await asyncio.shield(pool.transport.close())


@lru_cache
def _timeout(connect_seconds: float, seconds: float | None, *, of_all: bool = False) -> aiohttp.ClientTimeout:
    """
    Return the limits of a request.

    :param seconds: in which the next bytes of its reply must come
    :param of_all: in which all of it must come, which is one timer and not one for each read; what waits for a place in
        the pool may not be told so, because that is not the gateway's slowness, but there are more places than looks
    """
    if of_all:
        return aiohttp.ClientTimeout(total=seconds, sock_connect=connect_seconds)
    return aiohttp.ClientTimeout(total=None, sock_connect=connect_seconds, sock_read=seconds)


@lru_cache(maxsize=MAX_ADDRESSES)
def _as_it_is(url: str) -> URL:
    """Return an address whose path is made of plain segments: there is nothing to encode, in none of thousand polls."""
    return URL(url, encoded=True)


def _reason(error: BaseException) -> str:
    """Name the cause without quoting it: its text may hold addresses with passwords."""
    inner = getattr(error, "os_error", error)
    if isinstance(inner, OSError) and inner.errno is not None and inner.strerror:
        return f"{type(inner).__name__}: {inner.strerror}"
    return type(error).__name__
