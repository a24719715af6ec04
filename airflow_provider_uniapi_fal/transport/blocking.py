"""Conversations with the gateway from a worker, on requests."""

from __future__ import annotations

import socket
import ssl
import sys
import time
import traceback
from collections.abc import Iterator
from http.cookiejar import DefaultCookiePolicy
from typing import TYPE_CHECKING, TypeVar

import certifi
import requests
import requests.adapters
import urllib3.exceptions

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
    Unsendable,
    ca_file,
    headers_for,
    proxy_for,
    reply_of,
    tls_context,
)

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount

T = TypeVar("T")

CHUNK_BYTES = 65536


class _Session(requests.Session):
    """A session that sends no more than it is asked to."""

    def __init__(self) -> None:
        super().__init__()
        # Proxies and CA certificates are read in one place for both transports, and a .netrc must not
        # replace the credential.
        self.trust_env = False
        self.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))
        self.mount("http://", requests.adapters.HTTPAdapter(max_retries=0))
        self.mount("https://", requests.adapters.HTTPAdapter(max_retries=0))

    def get_redirect_target(self, resp: requests.Response) -> None:
        """Leave a redirect alone: it is not followed, and requests would stumble over a malformed address."""


class BlockingTransport:
    """
    Sends requests to one account's gateway.

    :param account: where to, and with which key
    :param max_body: bytes of a body that are read at most
    """

    def __init__(self, account: GatewayAccount, max_body: int = MAX_BODY) -> None:
        self.account = account
        self._max_body = max_body

    def run(self, flow: Flow[T]) -> T:
        """Run a conversation to its end and return what it returns."""
        with _Session() as session:
            effect = advance(flow, None)
            while not isinstance(effect, Done):
                if isinstance(effect, Send):
                    effect = advance(flow, self._send(session, effect.request))
                else:
                    time.sleep(effect.seconds)
                    effect = advance(flow, None)
            return effect.value

    def _send(self, session: requests.Session, request: HttpRequest) -> Sent:
        url = self.account.url(request.family, request.path)
        headers = headers_for(self.account, request, url)
        if request.method == "POST":
            # A kept connection may be closed by the server just as the post is sent, which cannot be told
            # from a lost reply: a submit always has a connection of its own.
            session.close()
        patience = request.read_timeout or self.account.read_timeout
        deadline = time.monotonic() + patience
        # The caller may be handling an error of its own, which Python then adds to the causes of ours.
        callers_error = sys.exc_info()[1]
        try:
            proxy = proxy_for(self.account, url)
            trusted = ca_file(self.account)
            if trusted != certifi.where() and url.startswith("https://"):
                tls_context(self.account)  # requests would not say that it was the file
            with session.request(
                request.method,
                url,
                params=dict(request.query),
                headers=headers,
                json=request.json,
                timeout=(self.account.connect_timeout, patience),
                allow_redirects=False,
                stream=True,
                proxies={"http": proxy, "https": proxy} if proxy else {},
                verify=trusted,
            ) as response:
                body = b"".join(self._chunks(response, deadline))
                return reply_of(self.account, response.status_code, response.headers, body, self._max_body)
        except Unsendable as error:
            return NotSent(str(error), permanent=True)
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            causes = list(_causes(error, callers_error))
            reason = _reason(causes)
            return NotSent(reason) if _never_left(causes, url) else ReplyLost(reason)

    def _chunks(self, response: requests.Response, deadline: float) -> Iterator[bytes]:
        """Read the body as it comes: requests alone bounds neither its length nor the time it takes."""
        length = 0
        while chunk := response.raw.read1(CHUNK_BYTES, decode_content=True):
            yield chunk
            length += len(chunk)
            if length > self._max_body:
                return
            if time.monotonic() > deadline:
                raise requests.exceptions.ReadTimeout("the reply came too slowly")


def _causes(error: BaseException, callers_error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and what led to it, but not what the caller was handling when the request was made."""
    seen = {id(callers_error)}
    todo: list[object] = [error]
    while todo:
        cause = todo.pop()
        if not isinstance(cause, BaseException) or id(cause) in seen:
            continue
        seen.add(id(cause))
        yield cause
        todo += [cause.__cause__, cause.__context__, getattr(cause, "reason", None), *cause.args]


def _never_left(causes: list[BaseException], url: str) -> bool:
    """
    Whether the request provably never reached the gateway.

    That is so when no connection came about: refused, no route, no such name, too slow, a certificate that is
    not trusted or another fault before the end of the TLS handshake, or a proxy that made no tunnel to an
    https address. All else is not provable.
    """
    for cause in causes:
        if isinstance(
            cause,
            (
                urllib3.exceptions.NewConnectionError,
                urllib3.exceptions.ConnectTimeoutError,
                requests.exceptions.ConnectTimeout,
                requests.exceptions.InvalidSchema,
                requests.exceptions.InvalidURL,
                requests.exceptions.InvalidHeader,
                ssl.SSLCertVerificationError,
                ConnectionRefusedError,
                socket.gaierror,
            ),
        ):
            return True
        if isinstance(cause, urllib3.exceptions.ProxyError) and url.startswith("https://"):
            return True
        # The standard library has no class of its own for what goes wrong in the handshake.
        if any(frame.name == "do_handshake" for frame in traceback.extract_tb(cause.__traceback__)):
            return True
    return False


def _reason(causes: list[BaseException]) -> str:
    """Name the innermost cause without quoting it: its text may hold addresses with passwords."""
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno is not None:
            return f"{type(cause).__name__}: {cause.strerror or cause.errno}"
    return type(causes[-1]).__name__
