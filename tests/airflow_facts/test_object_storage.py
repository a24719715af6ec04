"""What a path in storage says and does; ``landing/storage.py`` and ``landing/inputs.py`` hang on it."""

from __future__ import annotations

import uuid
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

if TYPE_CHECKING:
    from pathlib import Path


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
    # landing/media.py: destination / name
    assert target.conn_id == target.parent.conn_id
    # And the text that XCom carries as `path` leads there again.
    assert ObjectStoragePath(str(target)).conn_id == target.conn_id


def test_an_upload_that_breaks_off_leaves_half_an_object_but_in_a_transaction_none(
    target: ObjectStoragePath,
) -> None:
    # landing/storage.py: put() opens a transaction around the copying.
    with suppress(Interrupted):
        write_half(target)
    assert target.read_bytes() == b"half"

    other = target.parent / "other"
    with suppress(Interrupted), other.fs.transaction:
        write_half(other)
    assert not other.exists()


def write_half(target: ObjectStoragePath) -> None:
    with target.open("wb") as writer:
        writer.write(b"half")
        raise Interrupted


def test_an_upload_in_a_transaction_replaces_what_is_there_when_it_is_whole(
    target: ObjectStoragePath,
) -> None:
    target.write_bytes(b"before")
    with target.fs.transaction, target.open("wb") as writer:
        writer.write(b"after")
        assert target.read_bytes() == b"before"
    assert target.read_bytes() == b"after"


def test_what_cannot_be_read_is_an_error_of_a_kind_that_is_expected(tmp_path: Path) -> None:
    # landing/inputs.py: _data_uri() refuses the input before anything is paid.
    for address, kind in (
        ((tmp_path / "missing").as_uri(), OSError),
        ("nosuchscheme://bucket/key", ValueError),
    ):
        with pytest.raises(kind):
            ObjectStoragePath(address).open("rb").close()
