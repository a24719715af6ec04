"""Results that mean harm: each is a clear error of its own row, and the rest of the night lands unharmed."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import socket
import struct
import tempfile
import time
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.abc import ResolveResult
from PIL import Image

from airflow_provider_uniapi_fal.exceptions import FalError, FalInputError, FalProtocolError
from airflow_provider_uniapi_fal.landing.media import Lander, Landing, Limits
from airflow_provider_uniapi_fal.landing.names import Names
from airflow_provider_uniapi_fal.protocol.job import JobResult, MediaFile
from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount
from airflow_provider_uniapi_fal.transport import media as transport
from tests.fakes import KEY, Exchange, ScriptedServer, handle
from tests.storage import Store

MIB = 1024 * 1024
GIB = 1024 * MIB
HTML = b"<!doctype html><html><body><svg/>Not here</body></html>"
Serve = Callable[[Callable[[Exchange], None]], ScriptedServer]


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(buffer, "png")
    return buffer.getvalue()


PNG = picture()


def png_that_says(width: int, height: int) -> bytes:
    """Return a small PNG whose header promises any number of pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.fixture
def serve() -> Iterator[Serve]:
    with ExitStack() as stack:
        yield lambda answer: stack.enter_context(ScriptedServer(answer))


@pytest.fixture(autouse=True)
def spool(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give local copies a folder of their own; whatever happens, they are gone at the end."""
    folder = tmp_path / "spool"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield folder
    assert list(folder.iterdir()) == []


@pytest.fixture
def folder(store: Store) -> Store:
    return Store(f"{store.root}/landed", store.conn_id)


def escaped(folder: Store) -> list[str]:
    """Name what lies beside the folder instead of in it."""
    around = Store(folder.root.partition("/landed")[0], folder.conn_id)
    return [name for name in around.names() if not name.startswith("landed/")]


def result_of(*files: MediaFile) -> JobResult:
    return JobResult(handle(), {}, files)


def file_at(url: str, **fields: Any) -> MediaFile:
    return MediaFile("images[0]", url, **fields)


def night(
    folder: Store,
    results: dict[str, JobResult],
    *,
    hosts: tuple[str, ...] = ("127.0.0.1",),
    parallel: int = 4,
    **limits: Any,
) -> dict[str, Landing]:
    """Land all results at once with one Lander."""

    async def run() -> list[Landing]:
        account = GatewayAccount("http://127.0.0.1:1", KEY, media_hosts=hosts)
        async with Lander(account, limits=Limits(**limits), parallel=parallel) as lander:
            destination = folder.path
            return await asyncio.gather(
                *(lander.attempt(result, destination, Names(key=key)) for key, result in results.items())
            )

    return dict(zip(results, asyncio.run(run()), strict=True))


def error_beside_good_rows(serve: Serve, folder: Store, hostile: JobResult, **options: Any) -> FalError:
    """Land a hostile result among good ones; the good ones must be there, and nothing else."""
    good = serve(lambda call: call.answer(PNG, "image/png"))
    rows = {f"good-{index}": result_of(file_at(f"{good.url}/{index}")) for index in range(4)}
    ended = night(folder, {**dict(list(rows.items())[:2]), "hostile": hostile, **rows}, **options)
    for key in rows:
        assert ended[key].error is None, key
    assert folder.names() == sorted(f"{key}.png" for key in rows)
    assert escaped(folder) == []
    error = ended["hostile"].error
    assert ended["hostile"].files == ()
    assert error is not None
    assert "nothing is submitted" in str(error)
    return error


def test_a_file_name_with_dots_and_slashes_only_lends_its_suffix(serve: Serve, folder: Store) -> None:
    server = serve(lambda call: call.answer(b"\x00\x01", "application/octet-stream"))
    names = ["../../escaped.glb", "..\\..\\escaped.glb", "/etc/cron.d/job.glb", "a/../../b.glb"]
    files = [MediaFile(f"m[{i}]", f"{server.url}/x", file_name=name) for i, name in enumerate(names)]
    ended = night(folder, {"mesh": result_of(*files)})
    assert ended["mesh"].error is None
    assert folder.names() == [f"mesh-{i}.glb" for i in range(4)]
    assert escaped(folder) == []


@pytest.mark.parametrize("key", ["../escaped", "a/b", "..", "", "a\\b", "a\0b"])
def test_a_key_that_leads_elsewhere_is_refused_before_anything_is_fetched(
    serve: Serve, folder: Store, key: str
) -> None:
    server = serve(lambda call: call.answer(PNG))
    ended = night(folder, {key: result_of(file_at(server.url)), "good": result_of(file_at(server.url))})
    assert isinstance(ended[key].error, FalInputError)
    assert len(server.seen) == 1
    assert folder.names() == ["good.png"]
    assert escaped(folder) == []


def test_an_address_on_a_private_host_is_not_asked(serve: Serve, folder: Store) -> None:
    inner = serve(lambda call: call.answer(PNG))
    hostile = result_of(file_at(inner.url.replace("127.0.0.1", "localhost")))
    error = error_beside_good_rows(serve, folder, hostile)
    assert "private address" in str(error)
    assert inner.connections == 0


def test_a_redirect_to_a_private_host_is_not_followed(serve: Serve, folder: Store) -> None:
    inner = serve(lambda call: call.answer(PNG))
    location = inner.url.replace("127.0.0.1", "localhost")
    outer = serve(lambda call: call.answer(b"", "", 302, Location=location))
    error = error_beside_good_rows(serve, folder, result_of(file_at(outer.url)))
    assert "private address" in str(error)
    assert inner.connections == 0


# The client of S3 connects by the same means, which are replaced here.
@pytest.mark.parametrize("store", ["local"], indirect=True)
def test_a_name_that_turns_private_at_the_second_look_is_not_connected_to(
    serve: Serve, folder: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(lambda call: call.answer(PNG, "image/png", Connection="close"))
    addresses = ["8.8.8.8", "127.0.0.1"]
    meant: list[str] = []

    class Resolver:
        async def resolve(self, host: str, port: int, family: int) -> list[ResolveResult]:
            return [
                ResolveResult(
                    hostname=host, host=addresses.pop(0), port=port, family=socket.AF_INET, proto=0, flags=0
                )
            ]

        async def close(self) -> None:
            """Nothing to close."""

    async def connect(addr_infos: Any, **_: Any) -> socket.socket:
        meant.extend(info[4][0] for info in addr_infos)
        connection = socket.create_connection(("127.0.0.1", int(server.url.rpartition(":")[2])))
        connection.setblocking(False)
        return connection

    monkeypatch.setattr(transport, "ThreadedResolver", Resolver)
    monkeypatch.setattr("aiohttp.connector.aiohappyeyeballs.start_connection", connect)

    async def run() -> tuple[Landing, Landing]:
        async with Lander(GatewayAccount("http://127.0.0.1:1", KEY)) as lander:
            destination = folder.path
            result = result_of(file_at("http://rebind.test/a.png"))
            first = await lander.attempt(result, destination, Names(key="first"))
            session = lander._fetcher._session
            assert session is not None
            assert isinstance(session.connector, aiohttp.TCPConnector)
            session.connector.clear_dns_cache()
            return first, await lander.attempt(result, destination, Names(key="second"))

    first, second = asyncio.run(run())
    assert [Path(file.path).name for file in first.files] == ["first.png"]
    assert isinstance(second.error, FalProtocolError)
    assert "private address" in str(second.error)
    assert meant == ["8.8.8.8"]
    assert len(server.seen) == 1


@pytest.mark.parametrize("announced", [True, False])
def test_two_gigabytes_for_a_promised_two_megabytes_are_refused_early(
    serve: Serve, folder: Store, announced: bool
) -> None:
    sent = 0

    def flood(call: Exchange) -> None:
        nonlocal sent
        call.head(2 * GIB if announced else None, "image/png", Connection="close")
        call.hang_up()
        while sent < 2 * GIB:
            call.write(bytes(MIB))
            sent += MIB

    hostile = result_of(file_at(f"{serve(flood).url}/a.png", file_size=2 * MIB))
    tracemalloc.start()
    try:
        error = error_beside_good_rows(serve, folder, hostile)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "5242880" in str(error), "twice what was promised, and a MiB"
    assert sent < 64 * MIB
    assert peak < 32 * MIB


@pytest.mark.parametrize("served_as", ["image/png", "text/html", "application/octet-stream", ""])
@pytest.mark.parametrize("promised", ["image/png", None])
def test_a_page_named_as_a_picture_is_refused(
    serve: Serve, folder: Store, served_as: str, promised: str | None
) -> None:
    server = serve(lambda call: call.answer(HTML, served_as))
    file = file_at(f"{server.url}/a.png", file_name="a.png", content_type=promised)
    assert "HTML page" in str(error_beside_good_rows(serve, folder, result_of(file)))


@pytest.mark.parametrize("body", [b'{"detail": "Not found"}', b"upstream connect error", b"BM, or not BM"])
def test_a_text_in_the_place_of_a_picture_is_refused(serve: Serve, folder: Store, body: bytes) -> None:
    server = serve(lambda call: call.answer(body, "image/png"))
    file = file_at(f"{server.url}/a.png", content_type="image/png")
    assert "text, although it is called image/png" in str(
        error_beside_good_rows(serve, folder, result_of(file))
    )


def test_a_body_that_unpacks_to_gigabytes_is_refused_after_a_few_megabytes(
    serve: Serve, folder: Store
) -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(packer.compress(bytes(MIB)) for _ in range(100)) + packer.flush()
    assert len(bomb) < MIB / 4
    server = serve(lambda call: call.answer(bomb, "image/png", Content_Encoding="gzip"))
    tracemalloc.start()
    try:
        error = error_beside_good_rows(serve, folder, result_of(file_at(server.url)))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "decompression bomb" in str(error)
    assert peak < 32 * MIB


def test_a_file_that_its_server_packed_unasked_is_unpacked(serve: Serve, folder: Store) -> None:
    server = serve(lambda call: call.answer(gzip.compress(PNG), "image/png", Content_Encoding="gzip"))
    [file] = night(folder, {"packed": result_of(file_at(server.url))})["packed"].files
    assert folder.read("packed.png") == PNG
    assert file.bytes == len(PNG)
    assert server.seen[0].headers["Accept-Encoding"] == "identity"


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, gzip"])
def test_a_packing_that_cannot_be_bounded_is_refused(serve: Serve, folder: Store, encoding: str) -> None:
    server = serve(lambda call: call.answer(PNG, "image/png", Content_Encoding=encoding))
    assert "was not asked for" in str(error_beside_good_rows(serve, folder, result_of(file_at(server.url))))


@pytest.mark.parametrize(("width", "height"), [(100_000, 100_000), (2_000_000_000, 2_000_000_000)])
def test_a_picture_of_absurdly_many_pixels_is_refused_without_decoding_it(
    serve: Serve, folder: Store, width: int, height: int
) -> None:
    server = serve(lambda call: call.answer(png_that_says(width, height), "image/png"))
    error = error_beside_good_rows(serve, folder, result_of(file_at(server.url)))
    assert "pixels" in str(error)


def test_a_picture_of_more_pixels_than_the_user_allows_is_refused(serve: Serve, folder: Store) -> None:
    server = serve(lambda call: call.answer(png_that_says(100, 100), "image/png"))
    error = error_beside_good_rows(serve, folder, result_of(file_at(server.url)), max_pixels=9_999)
    assert "100 x 100 pixels; at most 9999" in str(error)
    ended = night(folder, {"large": result_of(file_at(server.url))}, max_pixels=10_000)
    assert ended["large"].error is None


@pytest.mark.parametrize("side", ["width", "height"])
def test_a_side_that_no_picture_has_does_not_reach_the_manifest_of_a_file_that_cannot_be_measured(
    serve: Serve, folder: Store, side: str
) -> None:
    server = serve(lambda call: call.answer(b"\0 no known kind", "application/octet-stream"))
    hostile = result_of(file_at(server.url, **{side: 2**64}))
    assert f"{2**64}" in str(error_beside_good_rows(serve, folder, hostile))


def test_ten_thousand_files_in_one_result_are_refused_before_the_first_is_fetched(
    serve: Serve, folder: Store
) -> None:
    server = serve(lambda call: call.answer(PNG))
    files = [MediaFile(f"images[{index}]", f"{server.url}/{index}") for index in range(10_000)]
    error = error_beside_good_rows(serve, folder, result_of(*files))
    assert "10000 files; at most 100" in str(error)
    assert server.connections == 0


def test_a_server_that_drips_is_given_up(serve: Serve, folder: Store) -> None:
    stop = False

    def drip(call: Exchange) -> None:
        call.head(len(PNG), "image/png")
        for byte in PNG:
            if stop:
                return
            call.write(bytes([byte]))
            time.sleep(0.2)

    error = error_beside_good_rows(serve, folder, result_of(file_at(serve(drip).url)), max_seconds=2)
    stop = True
    assert "not there after 2 seconds" in str(error)


def test_a_data_uri_is_held_to_the_same_limits(serve: Serve, folder: Store) -> None:
    def uri(content: bytes) -> JobResult:
        return result_of(file_at(f"data:image/png;base64,{base64.b64encode(content).decode()}"))

    for content, limits, says in (
        (PNG + bytes(2000), {"max_bytes": 2000}, "at most 2000 are allowed"),
        (HTML, {}, "HTML page"),
        (png_that_says(100_000, 100_000), {}, "pixels"),
        (PNG[:-8], {}, "ends in the middle"),
        (b"", {}, "empty"),
    ):
        target = Store(f"{folder.root}/{says.replace(' ', '-')}", folder.conn_id)
        assert says in str(error_beside_good_rows(serve, target, uri(content), **limits))
