"""Media files: fetched whole, without credentials, and from nowhere that a stranger could point us to."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

import aiohttp
import pytest
import trustme
from aiohttp.abc import ResolveResult

from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount
from airflow_provider_uniapi_fal.transport import media
from airflow_provider_uniapi_fal.transport.media import Fetched, MediaError, MediaFetcher
from tests.transport.servers import Answer, Server, answer, proxying, raw, serving

if TYPE_CHECKING:
    from pathlib import Path

KEY = "sk-test-0123456789"
PICTURE = bytes(range(256)) * 40
LOCAL = ("127.0.0.1",)
Start = Callable[..., Server]


@pytest.fixture
def start() -> Iterator[Start]:
    with ExitStack() as stack:

        def begin(*answers: Answer, context: ssl.SSLContext | None = None) -> Server:
            return stack.enter_context(serving(*answers, context=context))

        yield begin


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Let the pauses between attempts pass at once, and write them down."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    shim = SimpleNamespace(
        sleep=sleep,
        to_thread=asyncio.to_thread,
        wait_for=asyncio.wait_for,
        TimeoutError=asyncio.TimeoutError,
    )
    monkeypatch.setattr(media, "asyncio", shim)
    return pauses


def account(hosts: tuple[str, ...] = LOCAL, **changes: Any) -> GatewayAccount:
    times = {"connect_timeout": 5.0, "read_timeout": 5.0}
    return GatewayAccount(
        "https://api.uniapi.io",
        KEY,
        media_hosts=hosts,
        headers={"X-Secret": "header"},
        **{**times, **changes},
    )


def fetch(
    url: str,
    folder: Path,
    *,
    hosts: tuple[str, ...] = LOCAL,
    max_bytes: int = 1_000_000,
    size: int | None = None,
    **changes: Any,
) -> Fetched:
    async def run() -> Fetched:
        async with MediaFetcher(account(hosts, **changes), max_bytes=max_bytes) as fetcher:
            return await fetcher.fetch(url, folder / "file", size=size)

    return asyncio.run(run())


def refused(url: str, folder: Path, **options: Any) -> MediaError:
    with pytest.raises(MediaError) as caught:
        fetch(url, folder, **options)
    return caught.value


def resolving(monkeypatch: pytest.MonkeyPatch, **names: list[str]) -> list[str]:
    """Resolve these names (underscores stand for dots) to their addresses, one look-up after the other."""
    asked: list[str] = []
    book = {name.replace("_", "."): list(addresses) for name, addresses in names.items()}

    class Resolver:
        async def resolve(self, host: str, port: int, family: int) -> list[ResolveResult]:
            asked.append(host)
            addresses = book[host]
            address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
            return [
                ResolveResult(hostname=host, host=address, port=port, family=socket.AF_INET, proto=0, flags=0)
            ]

        async def close(self) -> None:
            """Nothing to close."""

    monkeypatch.setattr(media, "ThreadedResolver", Resolver)
    return asked


# --- fetching -----------------------------------------------------------------------------------------------


def test_a_file_is_saved_whole_with_size_checksum_and_type(start: Start, tmp_path: Path) -> None:
    server = start(answer(PICTURE, Content_Type="image/png; x=y"))
    target = "/a%2Fb%20c.png?X-Goog-Credential=x%40y&Signature=a%2Bb%3D~-_"
    got = fetch(server.url + target, tmp_path)
    assert got.path.read_bytes() == PICTURE
    assert (got.size, got.sha256) == (len(PICTURE), hashlib.sha256(PICTURE).hexdigest())
    assert got.content_type == "image/png"
    assert unquote(server.seen[0].target) == unquote(target)
    assert "a%2Fb%20c.png" in server.seen[0].target
    assert "a%2Bb" in server.seen[0].target


def test_a_file_of_unannounced_length_must_have_the_length_that_its_result_names(
    start: Start, tmp_path: Path, slept: list[float]
) -> None:
    unannounced = raw(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + PICTURE)
    fetched = fetch(f"{start(unannounced).url}/a", tmp_path, size=len(PICTURE))
    assert fetched.size == len(PICTURE)
    error = refused(f"{start(unannounced).url}/a", tmp_path, size=len(PICTURE) + 1)
    assert f"{len(PICTURE)} bytes of {len(PICTURE) + 1}" in str(error)


def test_a_full_disk_is_said_at_once(
    start: Start, tmp_path: Path, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    server = start(answer(PICTURE))
    monkeypatch.setattr(type(tmp_path), "open", full)
    assert "no room for it on the local disk" in str(refused(f"{server.url}/a", tmp_path))
    assert slept == []


def test_no_credential_and_no_header_of_the_gateways_goes_along(start: Start, tmp_path: Path) -> None:
    server = start(answer(b"", "302 Found", Location="/b.png"), answer(PICTURE))
    fetch(f"{server.url}/a.png", tmp_path)
    assert len(server.seen) == 2
    for seen in server.seen:
        assert seen.header("authorization") is None
        assert KEY not in seen.raw
        assert "header" not in seen.raw.lower().replace("headers", "")


@pytest.mark.parametrize("status", ["500 Oops", "503 Down", "429 Busy", "408 Late"])
def test_a_passing_fault_is_met_by_fetching_again(
    start: Start, tmp_path: Path, slept: list[float], status: str
) -> None:
    server = start(answer(b"x", status), answer(b"x", status), answer(PICTURE))
    assert fetch(f"{server.url}/a", tmp_path).size == len(PICTURE)
    assert slept == sorted(slept)
    assert len(slept) == 2


@pytest.mark.parametrize(
    "broken",
    [
        answer(PICTURE, length=len(PICTURE) + 1),
        raw(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n"),
        raw(b"HTTP/1.1 200 OK\r\n"),
        answer(b""),
    ],
    ids=["length", "chunks", "headers", "empty"],
)
def test_a_truncated_file_is_fetched_again_and_never_passed_off_as_whole(
    start: Start, tmp_path: Path, slept: list[float], broken: Answer
) -> None:
    assert fetch(f"{start(broken, answer(PICTURE)).url}/a", tmp_path).path.read_bytes() == PICTURE
    server = start(broken)
    assert f"{media.MAX_ATTEMPTS} attempts" in str(refused(f"{server.url}/a", tmp_path))
    # aiohttp by itself asks a second time if a connection closes without an answer.
    assert len(server.seen) in (media.MAX_ATTEMPTS, 2 * media.MAX_ATTEMPTS)


@pytest.mark.parametrize(
    ("status", "gone"), [("404 No", True), ("410 Gone", True), ("403 No", False), ("400 Bad", False)]
)
def test_a_file_that_is_gone_or_refused_is_not_asked_for_again(
    start: Start, tmp_path: Path, status: str, gone: bool
) -> None:
    server = start(answer(b"x", status))
    error = refused(f"{server.url}/a", tmp_path)
    assert (error.gone, error.status) == (gone, int(status[:3]))
    assert len(server.seen) == 1


@pytest.mark.parametrize(
    "reply",
    [answer(PICTURE), raw(b"HTTP/1.1 200 OK\r\n\r\n" + PICTURE)],
    ids=["announced", "not announced"],
)
def test_a_file_longer_than_allowed_is_refused_at_once(start: Start, tmp_path: Path, reply: Answer) -> None:
    server = start(reply)
    assert fetch(f"{start(reply).url}/a", tmp_path, max_bytes=len(PICTURE)).size == len(PICTURE)
    assert "allowed" in str(refused(f"{server.url}/a", tmp_path, max_bytes=len(PICTURE) - 1))
    assert len(server.seen) == 1


def test_a_message_names_the_host_but_not_the_signed_address(
    start: Start, tmp_path: Path, slept: list[float]
) -> None:
    server = start(answer(b"x", "500 Oops"))
    says = str(refused(f"{server.url}/path?signature=secret", tmp_path))
    assert "127.0.0.1" in says
    assert "secret" not in says


# --- where from ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.1",
        "2130706433",
        "0177.0.0.1",
        "0",
        "①②⑦.⓪.⓪.①",
        "127.0.0.1.",
        "[::1]",
        "[::ffff:127.0.0.1]",
        "[::]",
        "localhost",
        "LOCALHOST",
        "10.0.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "[fe80::1%25lo]",
        "[fd00::1]",
        "user:word@127.0.0.1",
        "8.8.8.8\\@127.0.0.1",
    ],
)
def test_a_private_host_is_not_even_connected_to_however_it_is_written(
    start: Start, tmp_path: Path, slept: list[float], host: str
) -> None:
    server = start(answer(PICTURE))
    refused(f"http://{host}:{server.port}/latest/meta-data", tmp_path, hosts=())
    assert server.connections == 0
    assert slept == [], "this is no fault that passes"


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "LocalHost"])
def test_a_private_host_that_was_allowed_is_fetched_from(start: Start, tmp_path: Path, host: str) -> None:
    server = start(answer(PICTURE))
    allowed = ("127.0.0.1", "localhost")
    assert fetch(f"http://{host}:{server.port}/a", tmp_path, hosts=allowed).size == len(PICTURE)


def test_the_refusal_says_how_to_allow_the_host(start: Start, tmp_path: Path) -> None:
    assert "media_hosts" in str(refused(f"{start().url}/a", tmp_path, hosts=()))


@pytest.mark.parametrize(
    "url",
    [
        "ftp://127.0.0.1/a",
        "file:///etc/passwd",
        "data:text/plain,a",
        "//127.0.0.1/a",
        "/a",
        "",
        "http://",
        "http://[",
    ],
)
def test_what_is_no_web_address_is_refused(tmp_path: Path, url: str) -> None:
    refused(url, tmp_path)


def test_a_redirect_to_a_private_host_is_refused(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner = start(answer(PICTURE))
    for location in (
        f"http://inner.test:{inner.port}/a",
        f"//127.0.0.2:{inner.port}/a",
        f"http://127.1:{inner.port}/",
    ):
        resolving(monkeypatch, inner_test=["127.0.0.1"])
        server = start(answer(b"", "302 Found", Location=location))
        refused(f"{server.url}/a", tmp_path)
    assert inner.connections == 0


def test_three_redirects_are_followed_and_no_fourth(start: Start, tmp_path: Path) -> None:
    hop = answer(b"", "302 Found", Location="/next")
    assert fetch(f"{start(hop, hop, hop, answer(PICTURE)).url}/a", tmp_path).size == len(PICTURE)
    server = start(hop)
    assert "redirects" in str(refused(f"{server.url}/a", tmp_path))
    assert len(server.seen) == 4


@pytest.mark.parametrize("location", ["http://[", "ftp://127.0.0.1/a", "file:///etc/passwd", "http://:80/"])
def test_a_redirect_to_nowhere_is_refused(start: Start, tmp_path: Path, location: str) -> None:
    server = start(answer(b"", "302 Found", Location=location))
    refused(f"{server.url}/a", tmp_path)


def test_a_redirect_away_from_https_is_refused(start: Start, tmp_path: Path) -> None:
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    bundle = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(bundle)
    plain = start(answer(PICTURE))
    server = start(answer(b"", "302 Found", Location=f"{plain.url}/a"), context=context)
    assert "https" in str(refused(f"{server.url}/a", tmp_path, ca_bundle=str(bundle)))
    assert plain.connections == 0


@pytest.fixture
def wire(monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], Callable[[int], None]]:
    """Lead every connection to one loopback port, and write down to which address it was meant to go."""
    meant: list[str] = []
    port = 0

    async def connect(addr_infos: Any, **_: Any) -> socket.socket:
        meant.extend(info[4][0] for info in addr_infos)
        connection = socket.create_connection(("127.0.0.1", port))
        connection.setblocking(False)
        return connection

    def lead_to(number: int) -> None:
        nonlocal port
        port = number

    monkeypatch.setattr("aiohttp.connector.aiohappyeyeballs.start_connection", connect)
    return meant, lead_to


def test_a_name_that_leads_to_a_private_address_at_the_second_look_is_refused(
    start: Start,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wire: tuple[list[str], Callable[[int], None]],
) -> None:
    meant, lead_to = wire
    close_after = raw(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
    lead_to(start(close_after).port)
    asked = resolving(monkeypatch, rebind_test=["8.8.8.8", "127.0.0.1"])

    async def run() -> None:
        async with MediaFetcher(account(()), max_bytes=100) as fetcher:
            assert (await fetcher.fetch("http://rebind.test/a", tmp_path / "one")).size == 2
            session = fetcher._session
            assert session is not None
            assert isinstance(session.connector, aiohttp.TCPConnector)
            session.connector.clear_dns_cache()
            await fetcher.fetch("http://rebind.test/a", tmp_path / "two")

    with pytest.raises(MediaError, match="private address"):
        asyncio.run(run())
    assert asked == ["rebind.test", "rebind.test"]
    assert meant == ["8.8.8.8"], "only the address that was checked is connected to"


@pytest.mark.parametrize("host", ["innocent.test", "0x7f.0.0.1"])
@pytest.mark.parametrize("addresses", [["10.1.2.3"], ["::1"], ["169.254.169.254"]])
def test_a_public_name_with_a_private_address_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    wire: tuple[list[str], Callable[[int], None]],
    addresses: list[str],
    host: str,
) -> None:
    resolving(monkeypatch, **{host: addresses})
    assert "private address" in str(refused(f"http://{host}/a", tmp_path, hosts=()))
    assert wire[0] == []


# --- proxies and certificates -------------------------------------------------------------------------------


def test_a_proxy_with_a_private_address_may_be_used_but_not_fetched_from(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = start(answer(PICTURE))
    resolving(monkeypatch, proxy_test=["127.0.0.1"])
    with proxying() as proxy:
        by_name = f"http://proxy.test:{proxy.port}"
        assert fetch(f"{server.url}/a", tmp_path, proxy=by_name).size == len(PICTURE)
        assert [seen.target for seen in proxy.seen] == [f"{server.url}/a"]
        refused(f"{by_name}/admin", tmp_path, proxy=by_name)
        assert len(proxy.seen) == 1


def test_a_gateways_own_authority_does_not_take_the_place_of_the_public_ones(tmp_path: Path) -> None:
    bundle = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(bundle)

    async def trusted() -> int:
        async with MediaFetcher(account(ca_bundle=str(bundle)), max_bytes=1) as fetcher:
            session = fetcher._session
            assert session is not None
            assert isinstance(session.connector, aiohttp.TCPConnector)
            context = session.connector._ssl
            assert isinstance(context, ssl.SSLContext)
            return context.cert_store_stats()["x509_ca"]

    assert asyncio.run(trusted()) > 50
