from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem  # type: ignore[import-untyped]

from airflow_provider_uniapi_fal.landing.storage import (
    OTHERS_REST_SECONDS,
    clear_halves,
    clear_spools,
    holds,
    is_plain_name,
    put,
    put_bytes,
    sha256_of,
    size_of,
    spool,
)

if TYPE_CHECKING:
    from tests.storage import Store


class Bucket(AbstractFileSystem):  # type: ignore[misc]
    """An object store of fsspec's kind: an object is there once its upload is complete, and closing completes."""

    protocol = "memory"
    cachable = False

    def __init__(self) -> None:
        super().__init__()
        self.objects: dict[str, bytes] = {}

    def _open(self, path: str, mode: str = "rb", autocommit: bool = True, **kwargs: Any) -> Upload:
        return Upload(self, path, mode, autocommit=autocommit, block_size=5)


class Upload(AbstractBufferedFile):  # type: ignore[misc]
    parts = b""

    def _initiate_upload(self) -> None:
        self.parts = b""

    def _upload_chunk(self, final: bool = False) -> bool:
        self.parts += self.buffer.getvalue()
        if final and self.autocommit:
            self.commit()
        return True

    def commit(self) -> None:
        self.fs.objects[self.path] = self.parts

    def discard(self) -> None:
        self.parts = b""


class TimeIsUp(BaseException):
    """As Airflow's execution_timeout breaks in: no Exception."""


class Interrupted(io.BytesIO):
    """A reader that breaks off in the middle of the file."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise TimeIsUp
        return super().read(10)


class Source:
    """A file that opens as the given reader."""

    def __init__(self, reader: io.BytesIO) -> None:
        self._reader = reader

    def open(self, mode: str) -> io.BytesIO:
        return self._reader


def interrupted() -> Any:
    return Source(Interrupted(b"x" * 100))


def whole(content: bytes) -> Any:
    return Source(io.BytesIO(content))


@pytest.fixture
def fake() -> tuple[Bucket, ObjectStoragePath]:
    made = Bucket()
    conn_id = f"bucket-{id(made)}"
    attach("memory", conn_id, fs=made)
    return made, ObjectStoragePath("memory://night", conn_id=conn_id) / "a.png"


def test_an_object_is_stored_through_its_own_connection(fake: tuple[Bucket, ObjectStoragePath]) -> None:
    store, target = fake
    put(whole(b"a picture"), target)
    put(whole(b"another picture"), target)
    assert list(store.objects.values()) == [b"another picture"]


def test_an_interrupted_upload_leaves_no_half_object(fake: tuple[Bucket, ObjectStoragePath]) -> None:
    store, target = fake
    with pytest.raises(TimeIsUp):
        put(interrupted(), target)
    assert store.objects == {}
    put(whole(b"a picture"), target)
    assert list(store.objects.values()) == [b"a picture"]


def test_an_interrupted_copy_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    target = ObjectStoragePath((tmp_path / "deep" / "down" / "a.png").as_uri())
    put(whole(b"a picture"), target)
    with pytest.raises(TimeIsUp):
        put(interrupted(), target)
    [only] = Path(target.path).parent.iterdir()
    assert (only.name, only.read_bytes()) == ("a.png", b"a picture")


def test_a_local_file_is_not_seen_before_all_of_it_is_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "a.png"
    seen = []
    monkeypatch.setattr(os, "fsync", lambda number: seen.append(target.exists()))
    put(whole(b"a picture"), ObjectStoragePath(target.as_uri()))
    assert seen == [False]
    assert target.read_bytes() == b"a picture"


MIB = 1024 * 1024

#: Puts what comes through a pipe into storage: it can be stopped in the middle of the file.
PUTTING = """
import sys
from pathlib import Path
from airflow.sdk import ObjectStoragePath
from airflow_provider_uniapi_fal.landing.storage import put

put(Path(sys.argv[1]), ObjectStoragePath(sys.argv[2], conn_id=sys.argv[3] or None))
"""


def test_a_process_killed_in_the_middle_of_a_file_leaves_the_old_one_and_no_half(
    store: Store, tmp_path: Path
) -> None:
    target = store.path / "night" / "a.png"
    put_bytes(b"the old file", target)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    process = subprocess.Popen([sys.executable, "-c", PUTTING, str(pipe), str(target), store.conn_id or ""])
    try:
        with pipe.open("wb") as writer:
            # More than two parts of an upload; each write returns when the other side has read what was before.
            for _ in range(20):
                writer.write(bytes(MIB))
            writer.flush()
            halves = [name for name in store.names() if name != "night/a.png"]
            assert len(halves) == (1 if store.conn_id is None else 0)
            clear_halves(target.parent)
            assert [name for name in store.names() if name != "night/a.png"] == halves, "it is at work on it"
            assert process.poll() is None, "it is still waiting for the rest"
            process.kill()
            process.wait(10)
    except BrokenPipeError:
        pass
    finally:
        process.kill()
        process.wait(10)
    assert store.read("night/a.png") == b"the old file"
    clear_halves(target.parent)
    assert store.names() == ["night/a.png"]
    put_bytes(b"the new file", target)
    assert store.read("night/a.png") == b"the new file"


def half_of(machine: str, folder: Path, age: float) -> Path:
    path = folder / f".{machine}-{'0' * 32}.part"
    path.write_bytes(b"half")
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_a_half_file_of_another_machine_is_left_alone_until_nothing_was_written_to_it_for_long(
    tmp_path: Path,
) -> None:
    """A file system need not tell one machine what another one has locked."""
    folder = ObjectStoragePath(tmp_path.as_uri())
    clear_halves(folder / "nowhere")
    fresh = half_of("00000000", tmp_path, 30.0)
    clear_halves(folder)
    assert fresh.exists()
    half_of("00000000", tmp_path, 2 * OTHERS_REST_SECONDS)
    clear_halves(folder)
    assert not fresh.exists()


def test_nothing_but_half_files_is_cleared_away(tmp_path: Path) -> None:
    names = [".hidden", "a.part", f".{'0' * 32}.part", ".DS_Store", "a.png"]
    for name in names:
        (tmp_path / name).write_bytes(b"kept")
    clear_halves(ObjectStoragePath(tmp_path.as_uri()))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


#: Lends itself a folder with a copy in it, says which, and waits.
SPOOLING = """
import sys
from airflow_provider_uniapi_fal.landing.storage import spool

with spool() as folder:
    (folder / "copy").write_bytes(b"x")
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_the_local_copies_of_a_killed_process_are_cleared_away_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    other = tmp_path / "uniapi-fal-thumbnails-1"
    other.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", SPOOLING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    try:
        assert process.stdout is not None
        copies = Path(process.stdout.readline().strip())
        with spool() as mine:
            clear_spools()
            assert {path.name for path in tmp_path.iterdir()} == {copies.name, mine.name, other.name}
            process.kill()
            process.wait(10)
            clear_spools()
            assert mine.exists()
        assert list(tmp_path.iterdir()) == [other]
    finally:
        process.kill()
        process.communicate()


def test_a_whole_file_of_several_parts_arrives_as_it_was(store: Store, tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.write_bytes(os.urandom(MIB) * 19)
    target = store.path / "a.bin"
    put(source, target)
    expected = (19 * MIB, hashlib.sha256(source.read_bytes()).hexdigest())
    assert sha256_of(target) == expected
    assert holds(target, *expected)
    assert not holds(target, expected[0], "0" * 64)
    assert size_of(target) == 19 * MIB
    assert size_of(store.path / "b.bin") is None
    assert not holds(store.path / "b.bin", *expected)


def test_many_threads_put_at_once_and_one_that_breaks_off_harms_no_other(
    bucket: Store, tmp_path: Path
) -> None:
    """A transaction of fsspec's would complete the broken one, for all threads share it."""
    others_are_done = threading.Event()

    class BreaksOffLast(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell():
                others_are_done.wait(20)
                raise TimeIsUp
            return super().read(10)

    broken: Any = Source(BreaksOffLast(b"x" * 100))
    failed: list[BaseException] = []

    def put_broken() -> None:
        try:
            put(broken, bucket.path / "broken.png")
        except TimeIsUp as error:
            failed.append(error)

    slow = threading.Thread(target=put_broken)
    slow.start()
    source = tmp_path / "source"
    source.write_bytes(b"a picture")
    threads = [
        threading.Thread(target=put, args=(source, bucket.path / f"{index}.png")) for index in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    others_are_done.set()
    slow.join(20)
    assert len(failed) == 1
    assert bucket.names() == [f"{index}.png" for index in range(6)]
    assert not list(bucket.path.fs.transaction.files), "nothing is left for another's transaction"


@pytest.mark.parametrize("name", ["a", "a.b", "夜景 01", "x" * 200, "-", "..a", "海" * 66])
def test_a_plain_name_is_one(name: str) -> None:
    assert is_plain_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/b",
        "../a",
        "a\\b",
        "a\nb",
        "a\0",
        " a",
        "a ",
        "x" * 201,
        "海" * 67,
        "\x7f",
        "a\ud83d",
        "a::b",
        "::",
    ],
)
def test_what_leads_elsewhere_or_is_too_long_is_no_plain_name(name: str) -> None:
    assert not is_plain_name(name)
