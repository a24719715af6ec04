"""One suite for both transports, against real sockets: they must not differ."""

from __future__ import annotations

import asyncio
import gzip
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

import pytest
import trustme

from airflow_provider_uniapi_fal.protocol.messages import (
    Flow,
    HttpReply,
    HttpRequest,
    NotSent,
    ReplyLost,
    Send,
    Sent,
    Sleep,
)
from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount
from airflow_provider_uniapi_fal.transport.blocking import BlockingTransport
from airflow_provider_uniapi_fal.transport.nonblocking import NonblockingTransport, pooled
from tests.transport.servers import (
    Answer,
    Proxy,
    Server,
    answer,
    close,
    free_port,
    proxying,
    raw,
    serving,
)

if TYPE_CHECKING:
    from pathlib import Path

KEY = "sk-test-0123456789"
GET = HttpRequest("GET", "fal", "/flux/requests/r-1/status", {"logs": "1"})
POST = HttpRequest("POST", "fal", "/flux/dev", json={"prompt": "a fox"})
PUT = HttpRequest("PUT", "fal", "/flux/requests/r-1/cancel")

Run = Callable[..., list[Sent]]
Kind = Literal["blocking", "nonblocking"]


def asking(*effects: HttpRequest | Sleep) -> Flow[list[Sent]]:
    """Send the requests one after the other, and return what came back."""
    got = []
    for effect in effects:
        sent = yield effect if isinstance(effect, Sleep) else Send(effect)
        if sent is not None:
            got.append(sent)
    return got


def run_with(
    kind: Kind, account: GatewayAccount, *requests: HttpRequest | Sleep, **options: int
) -> list[Sent]:
    if kind == "blocking":
        return BlockingTransport(account, **options).run(asking(*requests))

    async def run() -> list[Sent]:
        transport = NonblockingTransport(account, **options)
        try:
            return await transport.run(asking(*requests))
        finally:
            await transport.close()

    return asyncio.run(run())


@pytest.fixture(params=["blocking", "nonblocking"])
def run(request: pytest.FixtureRequest) -> Run:
    def with_this_one(account: GatewayAccount, *requests: HttpRequest | Sleep, **options: int) -> list[Sent]:
        return run_with(request.param, account, *requests, **options)

    return with_this_one


@pytest.fixture
def start() -> Iterator[Callable[..., Server]]:
    with ExitStack() as stack:

        def begin(*answers: Answer, context: ssl.SSLContext | None = None) -> Server:
            return stack.enter_context(serving(*answers, context=context))

        yield begin


@pytest.fixture
def proxy() -> Iterator[Proxy]:
    with proxying() as running:
        yield running


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def tls(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1", "localhost").configure_cert(context)
    return context


@pytest.fixture
def trusted(authority: trustme.CA, tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(path)
    return str(path)


def account_at(url: str, **changes: Any) -> GatewayAccount:
    times = {"connect_timeout": 5.0, "read_timeout": 5.0}
    return GatewayAccount(base_url=url, key=KEY, **{**times, **changes})


def only(sent: list[Sent]) -> Sent:
    (one,) = sent
    return one


def whole(sent: Sent) -> HttpReply:
    assert isinstance(sent, HttpReply), str(sent)
    return sent


Start = Callable[..., Server]


# --- what arrives and what comes back -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "request_",
    [
        GET,
        PUT,
        POST,
        HttpRequest("GET", "openai", "/billing/usage", {"unit": "usd"}),
        HttpRequest(
            "POST",
            "fal",
            "/flux/dev",
            {"fal_max_queue_length": "3"},
            {"X-Fal-Queue-Priority": "low", "X-Fal-Runner-Hint": "a b"},
            {"prompt": "媒 é 😀 <&>", "n": 1.5, "deep": [{"a": None, "b": True}], "empty": {}},
        ),
        HttpRequest("POST", "fal", "/flux/dev", json={}),
    ],
    ids=["GET", "PUT", "POST", "other family", "everything", "no arguments"],
)
def test_both_send_the_same_bytes(start: Start, request_: HttpRequest) -> None:
    server = start()
    account = account_at(f"{server.url}/gw", headers={"X-Team": "media"})
    kinds: list[Kind] = ["blocking", "nonblocking"]
    for kind in kinds:
        whole(only(run_with(kind, account, request_)))
    one, other = server.seen
    hop = ("host", "connection", "accept-encoding")

    def of_the_message(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
        return sorted((name.lower(), value) for name, value in headers if name.lower() not in hop)

    assert (one.method, one.target, one.body) == (other.method, other.target, other.body)
    assert of_the_message(one.headers) == of_the_message(other.headers)
    assert one.header("host") == other.header("host")
    scheme = "Bearer" if request_.family == "openai" else "Key"
    assert one.header("authorization") == f"{scheme} {KEY}"
    assert one.header("x-team") == "media"
    assert (one.header("content-type") == "application/json") == (request_.json is not None)


def test_a_reply_comes_back_whole(run: Run, start: Start) -> None:
    server = start(answer(b'{"a": 1}', "202 Accepted", X_Fal_Billable_Units="2"))
    got = whole(only(run(account_at(server.url), GET)))
    assert (got.status, got.body, got.oversized) == (202, b'{"a": 1}', False)
    assert got.headers["x-fal-billable-units"] == "2"


@pytest.mark.parametrize(
    "code", ["400 Bad", "401 No", "404 Gone", "422 No", "429 Busy", "500 Oops", "503 Down"]
)
def test_an_error_status_is_a_reply_like_any_other(run: Run, start: Start, code: str) -> None:
    server = start(answer(b'{"detail": "x"}', code))
    assert whole(only(run(account_at(server.url), POST))).status == int(code[:3])
    assert len(server.seen) == 1


def test_a_compressed_reply_is_unpacked(run: Run, start: Start) -> None:
    server = start(answer(gzip.compress(b'{"a": 1}'), Content_Encoding="gzip"))
    assert whole(only(run(account_at(server.url), GET))).body == b'{"a": 1}'


def test_heartbeats_before_the_body_are_waited_out(run: Run, start: Start) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    server = start(raw(head, b"1\r\n\n\r\n", b"1\r\n\n\r\n", b"2\r\n{}\r\n0\r\n\r\n", pause=0.05))
    assert whole(only(run(account_at(server.url), GET))).body == b"\n\n{}"


def test_headers_as_long_as_fal_allows_are_read(run: Run, start: Start) -> None:
    server = start(answer(b"{}", X_Fal_Runner_Hints="h" * 15_000))
    assert len(whole(only(run(account_at(server.url), POST))).headers["x-fal-runner-hints"]) == 15_000


def test_what_a_flow_sleeps_is_slept_and_its_end_returned(run: Run, start: Start) -> None:
    server = start()
    assert len(run(account_at(server.url), GET, Sleep(0.01), PUT)) == 2


def test_cookies_are_not_sent_back(run: Run, start: Start) -> None:
    server = start(answer(Set_Cookie="track=me; Path=/"))
    run(account_at(server.url), GET, GET)
    assert [seen.header("cookie") for seen in server.seen] == [None, None]


# --- not sent, or lost --------------------------------------------------------------------------------------


@pytest.mark.parametrize("request_", [GET, POST])
def test_a_refused_connection_is_not_sent(run: Run, request_: HttpRequest) -> None:
    sent = only(run(account_at(f"http://127.0.0.1:{free_port()}"), request_))
    assert isinstance(sent, NotSent)
    assert "refused" in sent.reason.lower()


def test_a_name_that_does_not_exist_is_not_sent(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def know_nobody(*args: object, **kwargs: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", know_nobody)
    assert isinstance(only(run(account_at("http://nobody.localhost"), POST)), NotSent)


HEAD = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n"


@pytest.mark.parametrize("request_", [GET, POST])
@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(close, id="closed after the request"),
        pytest.param(raw(b"HTTP/1.1 20"), id="closed in the status line"),
        pytest.param(raw(HEAD), id="closed in the headers"),
        pytest.param(raw(HEAD + b"\r\n"), id="closed before the body"),
        pytest.param(raw(HEAD + b'\r\n{"request_id": "r-'), id="closed in the body"),
        pytest.param(raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}"), id="cut chunk"),
        pytest.param(
            raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"), id="no last chunk"
        ),
        pytest.param(raw(b"SSH-2.0-OpenSSH_9.9\r\n\r\n"), id="another protocol"),
        pytest.param(answer(b"not gzip", Content_Encoding="gzip"), id="broken compression"),
    ],
)
def test_a_reply_that_does_not_come_whole_is_lost(
    run: Run, start: Start, request_: HttpRequest, reply: Answer
) -> None:
    server = start(reply)
    sent = only(run(account_at(server.url), request_))
    assert isinstance(sent, ReplyLost), str(sent)
    assert KEY not in sent.reason
    if request_ is POST:
        assert len(server.seen) == 1, "a submit was posted more than once"


def test_an_error_that_the_caller_is_already_handling_does_not_make_a_lost_reply_one_not_sent(
    run: Run, start: Start
) -> None:
    server = start(close)
    try:
        raise ConnectionRefusedError("the caller's own trouble")
    except ConnectionRefusedError:
        sent = only(run(account_at(server.url), POST))
    assert isinstance(sent, ReplyLost)


SLOW_HEAD = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    "reply",
    [
        pytest.param(raw(b"", SLOW_HEAD + b"\r\n", pause=1.2), id="silence"),
        pytest.param(raw(SLOW_HEAD + b"Content-Length: 40\r\n\r\n", *[b"a"] * 40, pause=0.05), id="drops"),
        pytest.param(raw(SLOW_HEAD + b"\r\n", *[b"a"] * 40, pause=0.05), id="drops without a length"),
        pytest.param(
            raw(SLOW_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[b"1\r\na\r\n"] * 40, pause=0.05),
            id="chunks",
        ),
    ],
)
def test_a_reply_slower_than_the_reply_time_out_is_lost(run: Run, start: Start, reply: Answer) -> None:
    server = start(reply)
    begun = time.monotonic()
    sent = only(run(account_at(server.url, read_timeout=0.3), POST))
    assert isinstance(sent, ReplyLost), str(sent)
    assert time.monotonic() - begun < 1.1
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    ("size", "oversized"),
    [(1000, False), (1001, True), (3_000_000, True)],
    ids=["fits", "one more", "far more"],
)
@pytest.mark.parametrize("with_length", [True, False])
def test_a_longer_body_than_wanted_is_oversized_and_empty(
    run: Run, start: Start, size: int, oversized: bool, with_length: bool
) -> None:
    body = b"a" * size
    server = start(answer(body) if with_length else raw(b"HTTP/1.1 200 OK\r\n\r\n" + body))
    got = whole(only(run(account_at(server.url), GET, max_body=1000)))
    assert (got.oversized, got.body) == (oversized, b"" if oversized else body)


# --- the key ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize("request_", [GET, POST, PUT])
def test_a_redirect_is_not_followed(run: Run, start: Start, request_: HttpRequest, code: str) -> None:
    foreign = start()
    server = start(answer(b"", code, Location=f"{foreign.url}/fal-ai/flux"))
    assert whole(only(run(account_at(server.url), request_))).status == int(code[:3])
    assert (len(server.seen), foreign.connections) == (1, 0)


@pytest.mark.parametrize("location", ["http://[", "", "\x7f", "//", "http://x:99999/", "é"])
def test_a_redirect_to_nowhere_is_a_reply_like_any_other(run: Run, start: Start, location: str) -> None:
    server = start(answer(b"{}", "307 Temporary", Location=location))
    assert whole(only(run(account_at(server.url), POST))).status == 307


def test_the_key_is_blotted_out_of_a_reply_that_quotes_it(run: Run, start: Start) -> None:
    quoted = f'{{"detail": "bad key {KEY}"}}'
    utf_16 = answer(quoted.encode("utf-16"), "400 Bad")
    server = start(answer(quoted.encode(), "401 No", X_Fal_Error_Type=f"bad {KEY}"), utf_16)
    first, second = run(account_at(server.url), GET, GET)
    assert whole(first).body == b'{"detail": "bad key ***"}'
    assert KEY not in str(first)
    assert KEY not in whole(second).body.decode("utf-16")


def test_a_key_too_short_to_be_told_from_other_text_does_not_garble_replies(run: Run, start: Start) -> None:
    server = start(answer(b'{"url": "http://x/demo.png"}'))
    assert (
        whole(only(run(replace(account_at(server.url), key="demo"), GET))).body
        == b'{"url": "http://x/demo.png"}'
    )


def test_a_netrc_does_not_replace_the_key(
    run: Run, start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login someone password else\ndefault login a password b\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    run(account_at(server.url), GET, POST)
    assert {seen.header("authorization") for seen in server.seen} == {f"Key {KEY}"}


# --- connections --------------------------------------------------------------------------------------------


def test_a_submit_never_goes_over_a_connection_used_before(run: Run, start: Start) -> None:
    server = start()
    run(account_at(server.url), GET, GET, POST, POST, GET)
    numbers = [seen.connection for seen in server.seen]
    assert numbers[0] == numbers[1], "reads share a connection"
    posts = [seen.connection for seen in server.seen if seen.method == "POST"]
    assert len(set(posts)) == 2
    assert not set(posts) & set(numbers[:2])


def test_a_submit_after_the_server_closed_an_idle_connection_is_sent(run: Run, start: Start) -> None:
    def answer_then_close(connection: Any, seen: Any) -> bool:
        answer()(connection, seen)
        return False

    server = start(answer_then_close)
    got = run(account_at(server.url), GET, POST, POST)
    assert [whole(sent).status for sent in got] == [200, 200, 200]


# --- proxies ------------------------------------------------------------------------------------------------


def test_the_connections_proxy_is_used(run: Run, start: Start, proxy: Proxy) -> None:
    server = start()
    whole(only(run(account_at(server.url, proxy=proxy.url), POST)))
    assert [seen.target for seen in proxy.seen] == [f"{server.url}/fal-ai/flux/dev"]
    assert len(server.seen) == 1


@pytest.mark.parametrize("with_scheme", [True, False])
def test_the_environments_proxy_is_used(
    run: Run, start: Start, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, with_scheme: bool
) -> None:
    server = start()
    monkeypatch.setenv("HTTP_PROXY", proxy.url if with_scheme else f"127.0.0.1:{proxy.port}")
    monkeypatch.setenv("http_proxy", proxy.url if with_scheme else f"127.0.0.1:{proxy.port}")
    whole(only(run(account_at(server.url), GET)))
    assert len(proxy.seen) == 1


def test_no_proxy_goes_past_the_environments_proxy(
    run: Run, start: Start, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start()
    monkeypatch.setenv("http_proxy", proxy.url)
    monkeypatch.setenv("no_proxy", "localhost,127.0.0.1")
    whole(only(run(account_at(server.url), GET)))
    assert (len(proxy.seen), len(server.seen)) == (0, 1)


def test_through_a_tunnel_the_proxy_never_sees_the_key(
    run: Run, start: Start, proxy: Proxy, tls: ssl.SSLContext, trusted: str
) -> None:
    server = start(context=tls)
    whole(only(run(account_at(server.url, proxy=proxy.url, ca_bundle=trusted), POST)))
    (tunnel,) = proxy.seen
    assert (tunnel.method, tunnel.target) == ("CONNECT", f"127.0.0.1:{server.port}")
    assert KEY not in tunnel.raw
    assert server.seen[0].header("authorization") == f"Key {KEY}"


def test_a_proxys_password_is_sent_to_the_proxy_only(run: Run, start: Start, proxy: Proxy) -> None:
    server = start()
    url = proxy.url.replace("://", "://user:pass-word@")
    whole(only(run(account_at(server.url, proxy=url), GET)))
    assert proxy.seen[0].header("proxy-authorization") == "Basic dXNlcjpwYXNzLXdvcmQ="
    assert "pass-word" not in proxy.seen[0].raw


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_proxy_that_cannot_be_reached_means_not_sent_and_its_password_stays_secret(
    run: Run, scheme: str
) -> None:
    account = account_at(f"{scheme}://127.0.0.1:9", proxy=f"http://user:pass-word@127.0.0.1:{free_port()}")
    sent = only(run(account, POST))
    assert isinstance(sent, NotSent)
    assert "pass-word" not in sent.reason


@pytest.mark.parametrize("code", ["407 Proxy Authentication Required", "502 Bad Gateway", "403 Forbidden"])
def test_a_refused_tunnel_means_not_sent(run: Run, code: str) -> None:
    with proxying(answer(b"no", code)) as proxy:
        sent = only(run(account_at("https://127.0.0.1:9", proxy=proxy.url), POST))
    assert isinstance(sent, NotSent), str(sent)


@pytest.mark.parametrize("proxy_url", ["socks5://127.0.0.1:1080", "http://[", "ftp://127.0.0.1:1", "http://"])
def test_a_proxy_that_cannot_be_used_means_not_sent(run: Run, start: Start, proxy_url: str) -> None:
    server = start()
    sent = only(run(account_at(server.url, proxy=proxy_url), POST))
    assert isinstance(sent, NotSent), str(sent)
    assert server.seen == []


# --- TLS ----------------------------------------------------------------------------------------------------


def test_a_gateway_with_a_certificate_of_ones_own_authority_is_reached(
    run: Run, start: Start, tls: ssl.SSLContext, trusted: str
) -> None:
    server = start(context=tls)
    got = run(account_at(server.url, ca_bundle=trusted), GET, POST)
    assert [whole(sent).status for sent in got] == [200, 200]


def test_the_environments_authority_counts_too(
    run: Run, start: Start, tls: ssl.SSLContext, trusted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(context=tls)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", trusted)
    assert whole(only(run(account_at(server.url), POST))).status == 200


def test_an_untrusted_certificate_means_not_sent(run: Run, start: Start, tls: ssl.SSLContext) -> None:
    server = start(context=tls)
    assert isinstance(only(run(account_at(server.url), POST)), NotSent)
    assert server.seen == []


def test_a_certificate_for_another_name_means_not_sent(
    run: Run, start: Start, authority: trustme.CA, trusted: str
) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("elsewhere.example").configure_cert(context)
    server = start(context=context)
    assert isinstance(only(run(account_at(server.url, ca_bundle=trusted), POST)), NotSent)
    assert server.seen == []


def test_https_spoken_to_a_plain_server_means_not_sent(run: Run, start: Start) -> None:
    server = start()
    sent = only(run(account_at(server.url.replace("http:", "https:")), POST))
    assert isinstance(sent, NotSent), str(sent)


@pytest.mark.parametrize("content", [None, "no certificate", ""])
def test_a_ca_file_that_is_none_means_not_sent(
    run: Run, start: Start, tls: ssl.SSLContext, tmp_path: Path, content: str | None
) -> None:
    server = start(context=tls)
    path = tmp_path / "broken.pem"
    if content is not None:
        path.write_text(content)
    sent = only(run(account_at(server.url, ca_bundle=str(path)), POST))
    assert isinstance(sent, NotSent), str(sent)
    assert server.seen == []


# --- the shared pool ----------------------------------------------------------------------------------------


def test_all_waits_of_an_account_share_one_pool_and_the_last_one_closes_it(start: Start) -> None:
    server = start()
    account = account_at(server.url)

    async def use() -> None:
        async with (
            pooled(account) as one,
            pooled(account) as same,
            pooled(replace(account, key="k2")) as other,
        ):
            assert one is same
            assert other is not one
            await one.run(asking(GET))
            await same.run(asking(GET))
        async with pooled(account) as later:
            assert later is not one
            await later.run(asking(GET))

    asyncio.run(use())
    asyncio.run(use())
    assert len({seen.connection for seen in server.seen}) == 4


def test_a_transport_opens_again_after_it_was_closed(start: Start) -> None:
    server = start()

    async def use() -> None:
        transport = NonblockingTransport(account_at(server.url))
        await transport.run(asking(GET))
        await transport.close()
        await transport.run(asking(GET))
        await transport.close()
        await transport.close()

    asyncio.run(use())
    assert len(server.seen) == 2


@pytest.mark.parametrize(
    ("brief", "brief_seconds", "read_timeout", "lost"),
    [(True, 0.3, 60.0, True), (True, 60.0, 0.3, True), (False, 0.3, 60.0, False), (True, 60.0, 60.0, False)],
)
def test_a_reply_that_should_come_at_once_has_less_time_if_the_caller_says_so(
    start: Start, brief: bool, brief_seconds: float, read_timeout: float, lost: bool
) -> None:
    body = b"a" * 30
    server = start(
        raw(SLOW_HEAD + b"Content-Length: 30\r\n\r\n", *[bytes([each]) for each in body], pause=0.05)
    )

    def asking() -> Flow[Sent | None]:
        return (yield Send(GET, brief))

    async def use() -> Any:
        transport = NonblockingTransport(account_at(server.url, read_timeout=read_timeout))
        try:
            return await transport.run(asking(), brief_seconds=brief_seconds)
        finally:
            await transport.close()

    assert isinstance(asyncio.run(use()), ReplyLost if lost else HttpReply)
