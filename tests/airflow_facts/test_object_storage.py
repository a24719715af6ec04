"""What a path in storage says and does; ``landing/storage.py`` and ``landing/inputs.py`` hang on it."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

from tests.storage import bucket, s3_server

__all__ = ["bucket", "s3_server"]

if TYPE_CHECKING:
    from pathlib import Path

    from tests.storage import Store


class Interrupted(BaseException):
    """As a time-out that breaks into the copying: no Exception."""


@pytest.fixture
def target() -> ObjectStoragePath:
    """Return a place in an object store that is reached through a connection of its own."""
    name = uuid.uuid4().hex
    attach("memory", name, fs=MemoryFileSystem())
    return ObjectStoragePath(f"memory://{name}", conn_id=name) / "folder" / "file"


@pytest.mark.parametrize(
    ("address", "protocol"),
    [("file:///a/b", "file"), ("local:///a/b", "local"), ("/a/b", ""), ("s3://a/b", "s3")],
)
def test_a_local_path_is_known_by_its_protocol(address: str, protocol: str) -> None:
    # landing/storage.py: put() writes it beside its target and renames it.
    path = ObjectStoragePath(address)
    assert path.protocol == protocol
    if protocol != "s3":
        assert path.path == "/a/b"


def test_a_file_below_a_folder_is_reached_through_the_folders_connection(target: ObjectStoragePath) -> None:
    # landing/media.py: _NamesTaken.free() lays each file below the destination.
    assert target.conn_id == target.parent.conn_id
    # And the text that XCom carries as `path` leads there again.
    assert ObjectStoragePath(str(target)).conn_id == target.conn_id


def test_an_upload_that_breaks_off_leaves_half_an_object_unless_it_is_to_be_committed(bucket: Store) -> None:
    # landing/storage.py: put() opens each object with autocommit=False, and commits or discards it.
    target = bucket.path / "file"
    with suppress(Interrupted):
        write_half(target)
    assert target.read_bytes() == b"half"

    other = target.parent / "other"
    with suppress(Interrupted):
        write_half(other, autocommit=False)
    assert not other.exists()


def write_half(target: ObjectStoragePath, **options: bool) -> None:
    with target.fs.open(target.path, "wb", **options) as writer:
        writer.write(b"half")
        raise Interrupted


def test_an_upload_replaces_what_is_there_when_it_is_committed(bucket: Store) -> None:
    target = bucket.path / "file"
    target.write_bytes(b"before")
    with target.fs.open(target.path, "wb", autocommit=False) as writer:
        writer.write(b"after")
    assert target.read_bytes() == b"before"
    writer.commit()
    assert target.read_bytes() == b"after"


def test_a_file_that_is_to_be_committed_is_kept_last_for_a_transaction(bucket: Store) -> None:
    target = bucket.path / "file"
    # landing/storage.py: _begin_upload() takes it out again, for all threads share the transaction.
    kept = target.fs.transaction.files
    with target.fs.open(target.path, "wb", autocommit=False) as writer:
        assert target.fs.transaction.files[-1] is writer
    assert target.fs.transaction.files is kept
    assert kept.pop() is writer
    writer.discard()


def test_what_cannot_be_read_is_an_error_of_a_kind_that_is_expected(tmp_path: Path) -> None:
    # landing/inputs.py: _data_uri() refuses the input before anything is paid.
    for address, kind in (
        ((tmp_path / "missing").as_uri(), OSError),
        ("nosuchscheme://bucket/key", ValueError),
    ):
        with pytest.raises(kind):
            ObjectStoragePath(address).open("rb").close()
