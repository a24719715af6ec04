"""Small pictures of media files, made once and kept on the API server's disk."""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import os
import stat
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from airflow_provider_uniapi_fal.landing.measuring import open_film
from airflow_provider_uniapi_fal.plugins.gallery.files import part_of
from airflow_provider_uniapi_fal.plugins.gallery.kinds import kind_of, served_as

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

#: Pixels of the longer side: a card is half as wide, and screens have two pixels for one.
SIDE = 512

#: A larger file or picture gets no thumbnail: it would take the API server's memory.
MAX_BYTES = 256 * 1024 * 1024
MAX_PIXELS = 100_000_000

#: Seconds that a video may be searched for a frame.
MAX_SECONDS = 20.0

CONTENT_TYPE = "image/webp"

_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "AVIF")
_PRUNE_EVERY = 200


class ThumbnailsUnavailable(Exception):
    """What makes them is not installed, or there is no place to keep them."""


class Thumbnails:
    """
    Makes and keeps thumbnails.

    :param folder: where they are kept; it is made, for this user alone
    :param max_bytes: room they may take; those not looked at for longest go first
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._turn = threading.BoundedSemaphore(2)
        self._written = itertools.count(1)

    def of(self, path: ObjectStoragePath, size: int, sha256: str, content_type: str | None) -> bytes | None:
        """
        Return the thumbnail of a file, or None if there can be none.

        :raises ThumbnailsUnavailable: if Pillow (for videos: av) is not installed, or the folder is not ours
        :raises OSError: if the file cannot be read
        """
        if kind_of(content_type) not in ("picture", "video") or size > MAX_BYTES:
            return None
        self._own_folder()
        kept = self._kept_at(path, size, sha256, served_as(content_type))
        made = _read(kept)
        if made is None:
            with self._turn:
                made = _read(kept)
                if made is None:
                    with tempfile.TemporaryFile(dir=self._folder) as copy:
                        _copied(path, size, copy)
                        made = _made(copy, served_as(content_type))
                    self._keep(kept, made)
        # An empty one says that it was tried.
        return made or None

    def _own_folder(self) -> None:
        """Make the folder; in a place for temporary files, somebody else may have been there before."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            found = self._folder.lstat()
        except OSError as error:
            raise ThumbnailsUnavailable(f"{self._folder} cannot be made: {error.strerror}") from error
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise ThumbnailsUnavailable(f"{self._folder} belongs to somebody else")

    def _kept_at(self, path: ObjectStoragePath, size: int, sha256: str, content_type: str) -> Path:
        # Path and type are part of the name: a manifest that lies about a checksum spoils no other file's picture,
        # and one that lies about a type not that of the same file in another manifest.
        told = [str(path), size, sha256, content_type, SIDE]
        name = hashlib.sha256(json.dumps(told).encode()).hexdigest()
        return self._folder / name[:2] / f"{name}.webp"

    def _keep(self, target: Path, content: bytes) -> None:
        target.parent.mkdir(mode=0o700, exist_ok=True)
        beside = target.with_suffix(f".{os.getpid()}.{threading.get_ident()}.part")
        beside.write_bytes(content)
        beside.replace(target)
        if next(self._written) % _PRUNE_EVERY == 0:
            self._prune()

    def _prune(self) -> None:
        kept = sorted(
            ((file.stat().st_mtime, file.stat().st_size, file) for file in self._folder.glob("*/*.webp")),
            key=lambda entry: entry[:2],
        )
        total = sum(size for _, size, _ in kept)
        for _, size, file in kept:
            if total <= self._max_bytes:
                break
            file.unlink(missing_ok=True)
            total -= size


def _read(kept: Path) -> bytes | None:
    try:
        content = kept.read_bytes()
    except FileNotFoundError:
        return None
    os.utime(kept)
    return content


def _copied(path: ObjectStoragePath, size: int, copy: BinaryIO) -> None:
    """
    Copy a file to the disk, so that a storage that fails is not taken for a file that is broken.

    :raises OSError: if it cannot be read to its end
    """
    try:
        for chunk in part_of(path, size, None):
            copy.write(chunk)
    except OSError:
        raise
    except Exception as error:
        raise OSError(f"the file cannot be read ({type(error).__name__})") from error
    if copy.tell() != size:
        raise OSError("the file has become shorter")
    copy.seek(0)


def _made(file: BinaryIO, content_type: str) -> bytes:
    """Return the thumbnail of a file on the local disk; empty if it cannot be decoded."""
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise ThumbnailsUnavailable("Pillow is not installed") from error
    try:
        video = kind_of(content_type) == "video"
        image = _frame(file, content_type) if video else _picture(file, Image)
        image = ImageOps.exif_transpose(image)
        image.thumbnail((SIDE, SIDE))
        target = io.BytesIO()
        image.convert("RGBA" if image.mode in ("RGBA", "LA", "P") else "RGB").save(target, "WEBP", quality=80)
        return target.getvalue()
    except ThumbnailsUnavailable:
        raise
    except Exception:  # noqa: BLE001 - decoders raise all kinds of errors over a broken file
        return b""


def _picture(file: BinaryIO, pillow: Any) -> Any:
    image = pillow.open(file, formats=_FORMATS)
    if image.width * image.height > MAX_PIXELS:
        raise ValueError("too many pixels")
    image.draft("RGB", (SIDE * 2, SIDE * 2))
    return image


def _frame(file: BinaryIO, content_type: str) -> Any:
    """Return a frame from the first third of a video, where something can be seen as a rule."""
    deadline = time.monotonic() + MAX_SECONDS
    try:
        film = open_film(file, content_type)
    except ImportError as error:
        raise ThumbnailsUnavailable("av is not installed") from error
    with film:
        stream = film.streams.video[0]
        if stream.codec_context.width * stream.codec_context.height > MAX_PIXELS:
            raise ValueError("too many pixels")
        if film.duration:
            film.seek(film.duration // 3)
        # Packet by packet: a film can have any number of them that bring no frame.
        for packet in film.demux(stream):
            for frame in packet.decode():
                return frame.to_image()  # type: ignore[no-untyped-call]
            if time.monotonic() > deadline:
                raise TimeoutError("no frame is found in time")
    raise ValueError("there is no frame in it")
