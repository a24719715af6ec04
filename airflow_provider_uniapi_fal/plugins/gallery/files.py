"""Opening a file below a root."""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal.plugins.gallery.roots import NotAllowed, RootedPlace

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.plugins.gallery.ranges import ByteRange

CHUNK_BYTES = 256 * 1024


def located(place: RootedPlace) -> tuple[ObjectStoragePath, int]:
    """
    Return a file and its size; on a local disk with every link in its path resolved.

    :raises NotAllowed: if a link leads out of the root, or it is no regular file
    :raises OSError: if it is not there, or cannot be looked at
    """
    root = place.root
    if root.protocol == "file":
        real = Path(place.path).resolve(strict=True)
        if not real.is_relative_to(Path(root.path).resolve(strict=True)):
            raise NotAllowed("a link in its path leads out of the folder that media_roots names")
        found = real.stat()
        if not stat.S_ISREG(found.st_mode):
            raise NotAllowed("it is no file")
        return ObjectStoragePath(f"file://{real}"), found.st_size
    path = ObjectStoragePath(f"{root.protocol}://{place.path}", conn_id=root.conn_id)
    return path, int(path.stat().st_size)


def chunks_of(path: ObjectStoragePath, first: int, length: int) -> Iterator[bytes]:
    """Read a part of a file, in pieces; it ends early if the file does."""
    with path.open("rb") as reader:
        reader.seek(first)
        while length > 0 and (chunk := reader.read(min(CHUNK_BYTES, length))):
            length -= len(chunk)
            yield chunk


def part_of(path: ObjectStoragePath, size: int, span: ByteRange | None) -> Iterator[bytes]:
    """Read a range of a file, or the whole of it."""
    return chunks_of(path, 0, size) if span is None else chunks_of(path, span.first, span.length)
