from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach
from fsspec.spec import AbstractBufferedFile, AbstractFileSystem  # type: ignore[import-untyped]

from airflow_provider_uniapi_fal.landing.storage import is_plain_name, put


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
def bucket(request: pytest.FixtureRequest) -> tuple[Bucket, ObjectStoragePath]:
    made = Bucket()
    conn_id = f"bucket-{id(made)}"
    attach("memory", conn_id, fs=made)
    return made, ObjectStoragePath("memory://night", conn_id=conn_id) / "a.png"


def test_an_object_is_stored_through_its_own_connection(bucket: tuple[Bucket, ObjectStoragePath]) -> None:
    store, target = bucket
    put(whole(b"a picture"), target)
    put(whole(b"another picture"), target)
    assert list(store.objects.values()) == [b"another picture"]


def test_an_interrupted_upload_leaves_no_half_object(bucket: tuple[Bucket, ObjectStoragePath]) -> None:
    store, target = bucket
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


@pytest.mark.parametrize("name", ["a", "a.b", "夜景 01", "x" * 200, "-", "..a", "海" * 66])
def test_a_plain_name_is_one(name: str) -> None:
    assert is_plain_name(name)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a/b", "../a", "a\\b", "a\nb", "a\0", " a", "a ", "x" * 201, "海" * 67, "\x7f"],
)
def test_what_leads_elsewhere_or_is_too_long_is_no_plain_name(name: str) -> None:
    assert not is_plain_name(name)
