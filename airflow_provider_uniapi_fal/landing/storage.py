"""
Writing one file to object storage: whole or not at all.

What a killed process leaves behind on a local disk, half a file or a folder of copies, is cleared away by those that
come later. A process has a lock on what it is still working on, which ends with it, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

_NAME = re.compile(r"[^/\\\x00-\x1f\x7f]+")

#: File systems count bytes, and most of them take 255; a suffix follows.
_MAX_NAME_BYTES = 200

_CHUNK_BYTES = 1024 * 1024

#: Bytes of one part of an upload, and what an upload holds in memory. S3 takes 5 MiB at least, and 10,000 parts.
_PART_BYTES = 8 * 1024 * 1024

_opening = threading.Lock()

#: How folders of copies on the local disk are called.
_SPOOL = "uniapi-fal-spool-"

#: How half a file is called on a local file system, after the machine that writes it.
_MACHINE = hashlib.sha256(platform.node().encode("utf-8", "replace")).hexdigest()[:8]
_PART = re.compile(r"\.([0-9a-f]{8})-[0-9a-f]{32}\.part")

#: Not every shared file system tells one machine of the locks of another: so long nothing is written to a half file
#: of another machine before it counts as left over.
OTHERS_REST_SECONDS = 600.0


def is_plain_name(name: str) -> bool:
    """Whether a text is the name of a file and leads nowhere else."""
    try:
        short = len(name.encode()) <= _MAX_NAME_BYTES
    except UnicodeEncodeError:  # half of a surrogate pair, which has no place in a path
        return False
    # fsspec reads a path with two colons as one file inside another.
    return (
        short
        and "::" not in name
        and _NAME.fullmatch(name) is not None
        and name not in (".", "..")
        and name == name.strip()
    )


def json_text(value: Any, *, errors: str = "replace", indent: int | None = None) -> bytes:
    """
    Return JSON as it is written into storage, whatever texts a stranger's reply has brought into it.

    :param errors: what becomes of half a surrogate pair, which UTF-8 has no place for: ``replace`` puts a question
        mark there, so that everybody can read it; ``backslashreplace`` is read back as the very same text
    """
    return json.dumps(value, ensure_ascii=False, indent=indent).encode("utf-8", errors)


def put(source: Path, target: ObjectStoragePath) -> None:
    """
    Copy a local file to storage under its final name, replacing what is there.

    On a local file system it is written beside the target and renamed into place. An object store shows an
    object once its upload is complete, so the upload is completed only when all of the file is in it. Several
    threads may do so at once.
    """
    if is_local(target):
        _put_local(source, Path(target.path))
        return
    writer = _begin_upload(target)
    try:
        with source.open("rb") as reader:
            shutil.copyfileobj(reader, writer, _CHUNK_BYTES)
        writer.close()
        writer.commit()
    except BaseException:
        writer.discard()
        # Its finalizer would complete the upload of what is open.
        writer.closed = True
        raise


def put_bytes(content: bytes, target: ObjectStoragePath) -> None:
    """Write a small file to storage under its final name, whole or not at all, replacing what is there."""
    with spool() as folder:
        source = folder / "content"
        source.write_bytes(content)
        put(source, target)


def is_local(path: ObjectStoragePath) -> bool:
    """Whether a path is one of the local file system."""
    return path.protocol in ("file", "local", "")


@contextlib.contextmanager
def spool() -> Iterator[Path]:
    """Lend a folder on the local disk; it is gone afterwards."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=_SPOOL))
        with contextlib.suppress(FileNotFoundError):
            number = os.open(folder, os.O_RDONLY)
            if _is_kept(number, folder):
                break
            os.close(number)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(number)


def clear_spools() -> None:
    """Remove the local folders of processes that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_SPOOL}*"):
        if folder.is_dir() and not folder.is_symlink():
            _clear(folder, os.O_RDONLY)


def clear_halves(folder: ObjectStoragePath) -> None:
    """Remove the half files that killed processes have left in a folder, if it is one of the local file system."""
    if not is_local(folder):
        return
    with contextlib.suppress(OSError), os.scandir(folder.path) as found:
        for entry in found:
            match = _PART.fullmatch(entry.name)
            if match is None or not entry.is_file(follow_symlinks=False):
                continue
            with contextlib.suppress(FileNotFoundError):
                rests = time.time() - entry.stat().st_mtime
                if match[1] == _MACHINE or rests > OTHERS_REST_SECONDS:
                    _clear(Path(entry.path), os.O_RDWR)


def size_of(path: ObjectStoragePath) -> int | None:
    """Return the length of a file in storage; None if there is none."""
    try:
        info = path.fs.info(path.path)
    except FileNotFoundError:
        return None
    return int(info["size"]) if info["type"] == "file" else None


def sha256_of(path: ObjectStoragePath, into: Path | None = None) -> tuple[int, str]:
    """
    Read a file in storage; return its length and hash.

    :param into: local file to copy it to on the way
    :raises OSError: if it cannot be read
    """
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as reader, Path(into or os.devnull).open("wb") as copy:
        while chunk := reader.read(_CHUNK_BYTES):
            size += len(chunk)
            digest.update(chunk)
            copy.write(chunk)
    return size, digest.hexdigest()


def holds(path: ObjectStoragePath, size: int, sha256: str) -> bool:
    """Whether a file in storage has these very bytes; it is read only if it has their length."""
    try:
        return size_of(path) == size and sha256_of(path) == (size, sha256)
    except FileNotFoundError:
        return False


def _begin_upload(target: ObjectStoragePath) -> Any:
    """
    Open an object so that closing it does not complete it.

    fsspec keeps each such file for the transaction of its file system, which all threads share, and which would
    complete the half-written ones of others, too: so it is taken out of there, and completed on its own.
    """
    store = target.fs
    with _opening:
        writer = store.open(target.path, "wb", block_size=_PART_BYTES, autocommit=False)
        store.transaction.files.pop()
    return writer


def _put_local(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    beside, writer = _opened_beside(target)
    try:
        with writer, source.open("rb") as reader:
            shutil.copyfileobj(reader, writer, _CHUNK_BYTES)
            writer.flush()
            os.fsync(writer.fileno())
            beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)


def _opened_beside(target: Path) -> tuple[Path, BinaryIO]:
    while True:
        path = target.parent / f".{_MACHINE}-{uuid.uuid4().hex}.part"
        writer = path.open("xb")
        if _is_kept(writer.fileno(), path):
            return path, writer
        writer.close()


def _is_kept(number: int, path: Path) -> bool:
    """Lock what this process has just made; False if somebody has cleared it away before that."""
    with contextlib.suppress(OSError):  # a file system without locks
        fcntl.flock(number, fcntl.LOCK_EX)
    return path.exists()


def _clear(path: Path, flags: int) -> None:
    """Remove a file or folder if no process has it; what belongs to others stays."""
    try:
        number = os.open(path, flags)
    except OSError:
        return
    try:
        fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()
    except OSError:
        return
    finally:
        os.close(number)
