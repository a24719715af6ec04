"""Writing one file to object storage: whole or not at all."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]+")

#: File systems count bytes, and most of them take 255; a suffix follows.
_MAX_NAME_BYTES = 200


def is_plain_name(name: str) -> bool:
    """Whether a text is the name of a file and leads nowhere else."""
    short = len(name.encode(errors="replace")) <= _MAX_NAME_BYTES
    return short and _NAME.fullmatch(name) is not None and name not in (".", "..") and name == name.strip()


def put(source: Path, target: ObjectStoragePath) -> None:
    """
    Copy a local file to storage under its final name, replacing what is there.

    On a local file system it is written beside the target and renamed into place. An object store shows an
    object once its upload is complete; closing the file completes it, even when the copying was interrupted, so
    the file belongs to a transaction, which completes or discards.
    """
    if target.protocol in ("file", "local", ""):
        _put_local(source, Path(target.path))
        return
    with target.fs.transaction, source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, 1024 * 1024)


def put_bytes(content: bytes, target: ObjectStoragePath) -> None:
    """Write a small file to storage under its final name, whole or not at all, replacing what is there."""
    with tempfile.TemporaryDirectory(prefix="uniapi-fal-") as folder:
        source = Path(folder, "content")
        source.write_bytes(content)
        put(source, target)


def _put_local(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.parent / f".{uuid.uuid4().hex}.part"
    try:
        with source.open("rb") as reader, beside.open("wb") as writer:
            shutil.copyfileobj(reader, writer, 1024 * 1024)
            writer.flush()
            os.fsync(writer.fileno())
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
