from __future__ import annotations

import base64
import hashlib
import io
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import ObjectStoragePath
from PIL import Image

from airflow_provider_uniapi_fal.exceptions import FalError, FalProtocolError, FalResultExpired
from airflow_provider_uniapi_fal.landing.media import Limits, land
from airflow_provider_uniapi_fal.landing.names import Names
from airflow_provider_uniapi_fal.protocol.job import JobResult, MediaFile
from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount
from airflow_provider_uniapi_fal.transport import media as transport
from tests.fakes import KEY, Exchange, ScriptedServer, handle

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_uniapi_fal.landing.files import LandedFile

MIB = 1024 * 1024
HTML = b"<!doctype html><title>Not here</title>"


def picture(file_format: str = "png", colour: str = "teal") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(buffer, file_format)
    return buffer.getvalue()


PNG = picture()


@pytest.fixture
def serve() -> Iterator[Callable[[Callable[[Exchange], None]], ScriptedServer]]:
    servers: list[ScriptedServer] = []

    def begin(answer: Callable[[Exchange], None]) -> ScriptedServer:
        servers.append(ScriptedServer(answer).__enter__())
        return servers[-1]

    yield begin
    for server in servers:
        server.__exit__()


Serve = Callable[[Callable[[Exchange], None]], ScriptedServer]


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give local copies a folder of their own; whatever happens, they are gone at the end."""
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "landed"
    made.mkdir()
    return made


def landed(
    folder: Path, *files: Any, hosts: tuple[str, ...] = ("127.0.0.1",), **options: Any
) -> list[LandedFile]:
    media = tuple(
        file if isinstance(file, MediaFile) else MediaFile(f"images[{index}]", file)
        for index, file in enumerate(files)
    )
    return land(
        JobResult(handle(), {}, media),
        ObjectStoragePath(folder.as_uri()),
        Names(**{"key": "night", **options.pop("names", {})}),
        account=GatewayAccount("http://127.0.0.1:1", KEY, media_hosts=hosts),
        already=options.pop("already", ()),
        limits=Limits(**{"max_bytes": 100 * MIB, **options}),
    )


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_lands_is_what_was_served_and_is_accounted_for(serve: Serve, folder: Path) -> None:
    server = serve(lambda call: call.answer(PNG, "image/png"))
    file = MediaFile("images[0]", f"{server.url}/a", width=80, height=90, flagged=True)
    [made] = landed(folder, file)
    assert made.to_json() == {
        "where": "images[0]",
        "path": (folder / "night.png").as_uri(),
        "bytes": len(PNG),
        "sha256": hashlib.sha256(PNG).hexdigest(),
        "content_type": "image/png",
        "width": 8,
        "height": 8,
        "flagged": True,
        "duration": None,
    }
    assert (folder / "night.png").read_bytes() == PNG


def test_several_files_are_numbered_in_the_order_of_the_result(serve: Serve, folder: Path) -> None:
    bodies = {f"/{index}": picture(colour=colour) for index, colour in enumerate(("red", "lime", "blue"))}
    server = serve(lambda call: call.answer(bodies[call.path]))
    made = landed(folder, *(f"{server.url}{path}" for path in bodies))
    assert names(folder) == ["night-0.png", "night-1.png", "night-2.png"]
    for index, body in enumerate(bodies.values()):
        assert (folder / f"night-{index}.png").read_bytes() == body
        assert made[index].where == f"images[{index}]"


def test_a_result_without_media_lands_nothing(folder: Path) -> None:
    assert landed(folder) == []


@pytest.mark.parametrize(
    ("body", "served_as", "file_name", "suffix"),
    [
        (picture("jpeg"), "image/png", "a.png", ".jpg"),
        (picture("webp"), "application/octet-stream", None, ".webp"),
        (picture("gif"), "", None, ".gif"),
        (b"\x00\x01glb", "application/octet-stream", "scene.glb", ".glb"),
        (b"\x00\x01", "audio/basic", None, ".au"),
        (b"\x00\x01", "", "a.tar.b/../c.d?e", ".bin"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", None, ".svg"),
    ],
)
def test_the_suffix_follows_the_bytes_then_the_server_then_the_name(
    serve: Serve, folder: Path, body: bytes, served_as: str, file_name: str | None, suffix: str
) -> None:
    server = serve(lambda call: call.answer(body, served_as))
    landed(folder, MediaFile("image", f"{server.url}/a", file_name=file_name))
    assert names(folder) == [f"night{suffix}"]


@pytest.mark.parametrize("served_as", ["text/html", "text/html; charset=utf-8", "application/json"])
def test_a_page_instead_of_media_is_refused(serve: Serve, folder: Path, served_as: str) -> None:
    server = serve(lambda call: call.answer(HTML, served_as))
    with pytest.raises(FalProtocolError, match=r"images\[0\].*instead of media"):
        landed(folder, f"{server.url}/a.png")
    assert names(folder) == []


@pytest.mark.parametrize(
    ("status", "error"), [(403, FalProtocolError), (404, FalResultExpired), (410, FalResultExpired)]
)
def test_media_that_are_gone_are_called_expired_and_those_that_are_refused_are_not(
    serve: Serve, folder: Path, status: int, error: type[FalError]
) -> None:
    server = serve(lambda call: call.answer(HTML, "text/html", status))
    with pytest.raises(error, match=rf"HTTP {status}"):
        landed(folder, f"{server.url}/a.png")
    assert len(server.seen) == 1
    assert names(folder) == []


def test_a_truncated_file_is_fetched_again_and_never_landed_by_halves(serve: Serve, folder: Path) -> None:
    def truncate_once(call: Exchange) -> None:
        if len(server.seen) > 1:
            call.answer(PNG)
            return
        call.head(len(PNG))
        call.write(PNG[:20])
        call.hang_up()

    server = serve(truncate_once)
    [made] = landed(folder, f"{server.url}/a")
    assert made.sha256 == hashlib.sha256(PNG).hexdigest()
    assert len(server.seen) == 2


def test_a_file_that_is_always_truncated_lands_nothing(
    serve: Serve, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transport, "MAX_ATTEMPTS", 1)

    def truncate(call: Exchange) -> None:
        call.head(len(PNG))
        call.write(PNG[:20])
        call.hang_up()

    server = serve(truncate)
    with pytest.raises(FalProtocolError, match=r"images\[0\].*retry of the landing fetches it again"):
        landed(folder, f"{server.url}/a")
    assert names(folder) == []


def test_one_file_that_cannot_be_had_is_an_error_and_spares_the_others(serve: Serve, folder: Path) -> None:
    server = serve(lambda call: call.answer(PNG, status=200 if call.path == "/good" else 404))
    with pytest.raises(FalResultExpired, match=r"images\[1\]"):
        landed(folder, f"{server.url}/good", f"{server.url}/gone", f"{server.url}/good")
    assert names(folder) == ["night-0.png", "night-2.png"]


def test_a_file_above_the_limit_is_refused_announced_or_not(serve: Serve, folder: Path) -> None:
    def chunked(call: Exchange) -> None:
        if call.path == "/announced":
            call.answer(PNG)
            return
        call.head(None, Transfer_Encoding="chunked")
        call.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(PNG), PNG))

    server = serve(chunked)
    for path, says in (("/announced", "announces"), ("/unannounced", "sends more than")):
        with pytest.raises(FalProtocolError, match=says):
            landed(folder, f"{server.url}{path}", max_bytes=len(PNG) - 1)
        landed(folder, f"{server.url}{path}", max_bytes=len(PNG))


def test_neither_key_nor_cookie_goes_to_the_media_hosts(serve: Serve, folder: Path) -> None:
    def redirect(call: Exchange) -> None:
        if call.path == "/first":
            call.answer(b"", "", 302, Location="/second", Set_Cookie="a=b")
        else:
            call.answer(PNG)

    server = serve(redirect)
    landed(folder, f"{server.url}/first")
    assert [call.path for call in server.seen] == ["/first", "/second"]
    for call in server.seen:
        assert not {"authorization", "cookie"} & {name.lower() for name in call.headers}
        assert KEY not in str(call.headers)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_private_host_is_not_asked_unless_the_connection_names_it(
    serve: Serve, folder: Path, host: str
) -> None:
    server = serve(lambda call: call.answer(PNG))
    url = server.url.replace("127.0.0.1", host)
    with pytest.raises(FalProtocolError, match="media_hosts"):
        landed(folder, url, hosts=())
    assert server.connections == 0
    landed(folder, url, hosts=(host,))


def test_a_redirect_to_a_private_host_is_not_followed(serve: Serve, folder: Path) -> None:
    inner = serve(lambda call: call.answer(PNG))
    target = inner.url.replace("127.0.0.1", "localhost")
    outer = serve(lambda call: call.answer(b"", "", 302, Location=target))
    with pytest.raises(FalProtocolError, match="media_hosts"):
        landed(folder, outer.url, hosts=("127.0.0.1",))
    assert inner.connections == 0


def test_redirects_without_end_are_given_up(serve: Serve, folder: Path) -> None:
    server = serve(lambda call: call.answer(b"", "", 302, Location="/again"))
    with pytest.raises(FalProtocolError, match="more than 3 redirects"):
        landed(folder, server.url)
    assert len(server.seen) == 4


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://example.com/a.png", "http://", "http://[::1", "/etc/passwd"]
)
def test_only_addresses_on_the_web_are_fetched(folder: Path, url: str) -> None:
    with pytest.raises(FalProtocolError, match="cannot be landed"):
        landed(folder, url)


def test_a_proxy_that_is_none_is_said_as_an_error_of_the_job(folder: Path) -> None:
    with pytest.raises(FalProtocolError, match="the proxy's address is none") as caught:
        land(
            JobResult(handle(), {}, (MediaFile("images[0]", "https://media.example/a.png"),)),
            ObjectStoragePath(folder.as_uri()),
            Names(key="night"),
            account=GatewayAccount("http://127.0.0.1:1", KEY, proxy="socks9://nowhere"),
        )
    assert caught.value.failure.request_id == handle().request_id
    assert names(folder) == []


def test_a_data_uri_is_decoded(folder: Path) -> None:
    [made] = landed(folder, f"data:image/png;base64,{base64.b64encode(PNG).decode()}")
    assert (folder / "night.png").read_bytes() == PNG
    assert made.sha256 == hashlib.sha256(PNG).hexdigest()


@pytest.mark.parametrize("uri", ["data:image/png;base64,***", "data:image/png", None])
def test_a_data_uri_that_has_no_file_in_it_is_refused(folder: Path, uri: str | None) -> None:
    with pytest.raises(FalProtocolError, match="data URI"):
        landed(folder, uri)


def test_a_large_file_never_is_in_memory_as_a_whole(serve: Serve, folder: Path) -> None:
    chunk = bytes(range(256)) * (MIB // 256)
    count = 64

    def stream(call: Exchange) -> None:
        call.head(len(chunk) * count, "application/octet-stream")
        for _ in range(count):
            call.write(chunk)

    server = serve(stream)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        [made] = landed(folder, f"{server.url}/a.mp4")
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert peak < 8 * MIB
    assert made.bytes == count * MIB
    assert made.sha256 == hashlib.sha256(chunk * count).hexdigest()
