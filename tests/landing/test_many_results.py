"""Many results with one Lander, in a local folder and in a bucket: bounded, resumed, skipped, told apart."""

from __future__ import annotations

import asyncio
import hashlib
import io
import os
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import pytest
from airflow.sdk import ObjectStoragePath
from PIL import Image

from airflow_provider_uniapi_fal.exceptions import FalProtocolError, FalResultExpired
from airflow_provider_uniapi_fal.landing import media
from airflow_provider_uniapi_fal.landing.media import Lander
from airflow_provider_uniapi_fal.landing.names import Names
from airflow_provider_uniapi_fal.landing.storage import put
from airflow_provider_uniapi_fal.protocol.job import JobResult, MediaFile
from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount
from tests.fakes import KEY, Exchange, ScriptedServer, handle
from tests.storage import Store

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.landing.files import LandedFile

Serve = Callable[[Callable[[Exchange], None]], ScriptedServer]
T = TypeVar("T")


def picture(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(buffer, "png")
    return buffer.getvalue()


def as_its_path_says(call: Exchange) -> None:
    call.answer(picture(int(call.path.rpartition("/")[2])), "image/png")


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


def result_of(server: ScriptedServer, *numbers: int) -> JobResult:
    files = (MediaFile(f"images[{i}]", f"{server.url}/{number}") for i, number in enumerate(numbers))
    return JobResult(handle(), {}, tuple(files))


def with_lander(work: Callable[[Lander], Awaitable[T]], **options: Any) -> T:
    async def run() -> T:
        async with Lander(
            GatewayAccount("http://127.0.0.1:1", KEY, media_hosts=("127.0.0.1",)), **options
        ) as lander:
            return await work(lander)

    return asyncio.run(run())


def land_all(
    store: Store, results: dict[str, JobResult], template: str = "{key}", **options: Any
) -> dict[str, list[LandedFile]]:
    destination = store.path

    async def work(lander: Lander) -> list[list[LandedFile]]:
        return await asyncio.gather(
            *(
                lander.land(result, destination, Names(key=key, template=template))
                for key, result in results.items()
            )
        )

    return dict(zip(results, with_lander(work, **options), strict=True))


def written(store: Store) -> dict[str, Any]:
    """Return when each file was written last."""
    store.path.fs.invalidate_cache()
    return {
        name: store.path.fs.info((store.path / name).path).get("mtime")
        or store.path.fs.info((store.path / name).path)["LastModified"]
        for name in store.names()
    }


def test_many_results_land_whole_and_each_under_its_key(serve: Serve, store: Store) -> None:
    server = serve(as_its_path_says)
    results = {f"key-{n}": result_of(server, 2 * n, 2 * n + 1) for n in range(12)}
    landed = land_all(store, results, "{key}/{index}", parallel=5)
    assert store.names() == sorted(f"key-{n}/{i}.png" for n in range(12) for i in range(2))
    for n in range(12):
        for i, file in enumerate(landed[f"key-{n}"]):
            content = store.read(f"key-{n}/{i}.png")
            assert content == picture(2 * n + i)
            assert (file.bytes, file.sha256) == (len(content), hashlib.sha256(content).hexdigest())
            # The path of a manifest leads there again, also in another process.
            assert ObjectStoragePath(file.path).read_bytes() == content


def test_no_more_files_are_under_way_than_allowed(serve: Serve, store: Store) -> None:
    lock, now, most = threading.Lock(), 0, 0
    begun = threading.Semaphore(0)

    def slowly(call: Exchange) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        begun.release()
        # Hold on until others have begun, too, so that a bound that does not hold would show.
        begun.acquire(timeout=0.05)
        with lock:
            now -= 1
        as_its_path_says(call)

    server = serve(slowly)
    results = {f"key-{n}": result_of(server, *range(3 * n, 3 * n + 3)) for n in range(10)}
    land_all(store, results, parallel=3)
    assert len(store.names()) == 30
    assert most <= 3
    assert server.connections <= 3


def test_the_same_bytes_are_not_written_again_and_others_are_replaced(serve: Serve, store: Store) -> None:
    server = serve(as_its_path_says)
    land_all(store, {"same": result_of(server, 1), "other": result_of(server, 2)})
    before = written(store)
    puts: list[str] = []

    def put_and_tell(source: Path, target: ObjectStoragePath) -> None:
        puts.append(target.name)
        put(source, target)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(media, "put", put_and_tell)
        land_all(store, {"same": result_of(server, 1), "other": result_of(server, 3)})
    assert puts == ["other.png"]
    assert written(store)["same.png"] == before["same.png"]
    assert store.read("other.png") == picture(3)
    assert store.names() == ["other.png", "same.png"]


def test_what_landed_before_is_not_fetched_again(serve: Serve, store: Store) -> None:
    server = serve(as_its_path_says)
    result = result_of(server, 1, 2, 3)
    landed = land_all(store, {"night": result})["night"]
    (store.path / "night-1.png").unlink()
    (store.path / "night-2.png").write_bytes(b"half a file")
    store.path.fs.invalidate_cache()
    server.seen.clear()

    async def work(lander: Lander) -> list[LandedFile]:
        return await lander.land(result, store.path, Names(key="night"), already=landed)

    assert with_lander(work) == landed
    assert sorted(call.path for call in server.seen) == ["/2", "/3"], (
        "what is gone, and what has another size"
    )
    assert [store.read(f"night-{index}.png") for index in range(3)] == [picture(n) for n in (1, 2, 3)]


def test_two_files_never_share_a_name_and_none_is_lost(serve: Serve, store: Store) -> None:
    """A key that looks like another's numbered file, and one that differs in nothing but its case."""
    server = serve(as_its_path_says)
    results = {
        "a": result_of(server, 1, 2),
        "a-0": result_of(server, 3),
        "A-0": result_of(server, 4),
    }
    landed = land_all(store, results)
    paths = [file.path for files in landed.values() for file in files]
    assert len({path.lower() for path in paths}) == len(paths) == len(store.names()) == 4
    assert {store.read(name) for name in store.names()} == {picture(n) for n in (1, 2, 3, 4)}
    hashes = {file.sha256[:8] for files in landed.values() for file in files}
    assert sum(any(each in name for each in hashes) for name in store.names()) == 2


def test_a_name_of_the_same_night_stays_taken_over_a_retry(serve: Serve, store: Store) -> None:
    server = serve(as_its_path_says)
    first = land_all(store, {"a": result_of(server, 1, 2)})["a"]

    async def work(lander: Lander) -> list[LandedFile]:
        lander.remember(first)
        return await lander.land(result_of(server, 3), store.path, Names(key="a-0"))

    [second] = with_lander(work)
    assert store.read("a-0.png") == picture(1)
    assert store.read(f"a-0-{second.sha256[:8]}.png") == picture(3)


def test_equal_files_by_their_hash_are_one_file(serve: Serve, store: Store) -> None:
    server = serve(as_its_path_says)
    landed = land_all(store, {"a": result_of(server, 7), "b": result_of(server, 7)}, "{hash}")
    assert len({file.path for files in landed.values() for file in files}) == len(store.names()) == 1


def test_storage_that_refuses_is_an_error_of_the_row_without_its_secrets(
    serve: Serve, tmp_path: Path
) -> None:
    server = serve(as_its_path_says)
    (tmp_path / "file").write_bytes(b"in the way")
    store = Store((tmp_path / "file" / "night").as_uri())
    with pytest.raises(FalProtocolError, match=r"storage says NotADirectoryError"):
        land_all(store, {"a": result_of(server, 1)})


def test_files_of_a_manifest_are_copied_and_proven(
    serve: Serve, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(as_its_path_says)
    landed = land_all(store, {"a": result_of(server, 1, 2)})["a"]
    elsewhere = Store((tmp_path / "elsewhere").as_uri())
    (tmp_path / "elsewhere").mkdir()

    async def work(lander: Lander) -> Any:
        return await lander.copy(landed, elsewhere.path, Names(key="b"))

    copied = with_lander(work)
    assert copied.error is None
    assert [replace(file, path="") for file in copied.files] == [replace(file, path="") for file in landed]
    assert elsewhere.names() == ["b-0.png", "b-1.png"]
    monkeypatch.setattr(media, "put", lambda *_: pytest.fail("the same bytes are there"))
    assert with_lander(work) == copied


def test_a_file_that_was_changed_or_taken_away_is_not_copied_on(serve: Serve, store: Store) -> None:
    server = serve(as_its_path_says)
    landed = land_all(store, {"a": result_of(server, 1, 2, 3)})["a"]
    content = bytearray(store.read("a-0.png"))
    content[-1] ^= 1
    (store.path / "a-0.png").write_bytes(bytes(content))
    (store.path / "a-1.png").unlink()
    store.path.fs.invalidate_cache()

    async def work(lander: Lander) -> Any:
        return await lander.copy(landed, store.path / "copy", Names(key="b"))

    copied = with_lander(work)
    assert isinstance(copied.error, FalProtocolError)
    assert "not the one that the manifest names" in str(copied.error)
    assert [Path(file.path).name for file in copied.files] == ["b-2.png"]
    assert [name for name in store.names() if "copy" in name] == ["copy/b-2.png"]

    async def only_the_missing(lander: Lander) -> Any:
        return await lander.copy(landed[1:2], store.path / "copy", Names(key="c"))

    assert isinstance(with_lander(only_the_missing).error, FalResultExpired)


def test_memory_stays_flat_over_hundreds_of_files(serve: Serve, tmp_path: Path) -> None:
    import gc
    import tracemalloc

    body = picture(1)[:-12] + os.urandom(64 * 1024) + b"IEND\0\0\0\0"
    server = serve(lambda call: call.answer(body, "image/png"))
    folder = tmp_path / "many"
    folder.mkdir()

    async def work(lander: Lander) -> int:
        async def batch(start: int) -> int:
            results = [
                lander.land(result_of(server, *range(10)), store.path, Names(key=f"k-{start}-{n}"))
                for n in range(10)
            ]
            await asyncio.gather(*results)
            # What has gone round in circles, of other tests also, is not what is remembered.
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        await batch(0)
        first = await batch(1)
        for number in range(2, 5):
            last = await batch(number)
        return last - first

    store = Store(folder.as_uri())
    tracemalloc.start()
    try:
        growth = with_lander(work)
    finally:
        tracemalloc.stop()
    assert len(store.names()) == 500
    # What is remembered of 300 more files: their names, and nothing of their bytes. What is on the way through the
    # server's threads, which are not ours, is here as well.
    assert growth < 300 * len(body) / 4


def test_leaving_in_the_middle_leaves_nothing_half_and_nothing_on_the_local_disk(
    serve: Serve, store: Store
) -> None:
    class Leave(BaseException):
        pass

    server = serve(as_its_path_says)

    async def work(lander: Lander) -> None:
        landing = asyncio.ensure_future(
            lander.land(result_of(server, *range(40)), store.path, Names(key="a"))
        )
        while len(server.seen) < 10:
            await asyncio.sleep(0.01)
        landing.cancel()
        raise Leave

    with pytest.raises(Leave):
        with_lander(work)
    for name in store.names():
        assert store.read(name) in [picture(n) for n in range(40)]
