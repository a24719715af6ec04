"""What a file is, told from its bytes: its type, its suffix, and whether all of it is there."""

from __future__ import annotations

import mimetypes
import re
from pathlib import Path, PurePosixPath
from typing import BinaryIO

#: Bytes from the beginning that tell a file's type.
HEAD_BYTES = 8192

#: Bytes at the end in which the mark is looked for that closes a file; a few tools write more after it.
_TAIL_BYTES = 64 * 1024

_SUFFIXES = {"image/jpeg": ".jpg", "image/webp": ".webp", "audio/mpeg": ".mp3", "video/quicktime": ".mov"}
_END_MARKS = {"image/png": b"IEND", "image/jpeg": b"\xff\xd9"}
_TEXTS = ("text/", "application/json", "application/xml", "application/problem+json")
_BEFORE_THE_ROOT = rb"\xef?\xbb?\xbf?(\s|<\?.*?\?>|<!--.*?-->)*"
_PAGE = re.compile(_BEFORE_THE_ROOT + rb"<(!doctype\s+html|html)", re.IGNORECASE | re.DOTALL)
_SVG = re.compile(_BEFORE_THE_ROOT + rb"(<!doctype\s+svg[^>]*>\s*)?<svg", re.IGNORECASE | re.DOTALL)
_VAGUE = (None, "", "application/octet-stream", "binary/octet-stream")


def media_type(content: bytes) -> str | None:
    """Return the type of a picture, video or audio file, told from its bytes; None for anything else."""
    # Its tables take a while to load, and whoever reads a DAG file needs none.
    import puremagic

    try:
        matches = puremagic.magic_string(content[:HEAD_BYTES])
    except (puremagic.PureError, ValueError):
        return None
    kinds = (str(match.mime_type) for match in matches)
    return next((kind for kind in kinds if kind.startswith(("image/", "video/", "audio/"))), None)


def binary_media_type(content: bytes) -> str | None:
    """
    Return the type of a media file, but of no text.

    Some formats are told by two letters ("BM", "P1", "if"), which begin texts as well: a text has no zero byte.
    """
    return media_type(content) if b"\0" in content[:HEAD_BYTES] else None


def checked_kind(head: bytes, *, served: str | None, promised: str | None) -> str | None:
    """
    Return what a file is: told from its bytes, else as its server says, else as the result says.

    :param head: its first bytes
    :param served: the server's content type
    :param promised: the content type in the result
    :raises ValueError: if it is a page or a text where media were promised
    """
    text = _looks_like_text(head)
    if text and _PAGE.match(head):
        raise ValueError("its bytes are an HTML page instead of media")
    sniffed = binary_media_type(head)
    if sniffed is not None:
        return sniffed
    if text and not _SVG.match(head) and not (promised or "").startswith(_TEXTS):
        if (served or "").startswith(_TEXTS):
            raise ValueError(f"its server sent {served} instead of media")
        said = next((kind for kind in (promised, served) if kind not in _VAGUE), None)
        if said is not None and said.startswith(("image/", "video/", "audio/")):
            raise ValueError(f"its bytes are a text, although it is called {said}")
    if not text and (served or "").startswith(_TEXTS):
        served = None
    return next((kind for kind in (served, promised) if kind not in _VAGUE), served or promised)


def is_cut_off(path: Path, kind: str | None) -> bool:
    """
    Whether a file surely ends in the middle, although its server announced no more.

    Told by the mark or the length that its own format has; of other formats nothing can be said.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(12)
        if head[:4] == b"RIFF":
            announced = int.from_bytes(head[4:8], "little")
            return announced not in (0, 0xFFFFFFFF) and announced + 8 > size
        if head[4:8] == b"ftyp":
            return _has_a_box_beyond_its_end(file, size)
        mark = _END_MARKS.get(kind or "")
        if mark is None:
            return False
        file.seek(max(0, size - _TAIL_BYTES))
        return mark not in file.read()


def suffix_of(kind: str | None, *names: str | None) -> str:
    """Return the suffix for a type; where the type is vague, that of the first name that has a plain one."""
    guessed = _SUFFIXES.get(kind or "") or (
        None if kind in _VAGUE else mimetypes.guess_extension(kind or "", strict=False)
    )
    if guessed:
        return guessed
    for name in names:
        suffix = PurePosixPath(name or "").suffix.lower()
        if suffix[1:].isalnum() and suffix.isascii() and len(suffix) <= 6:
            return suffix
    return ".bin"


def _looks_like_text(head: bytes) -> bool:
    if not head or b"\0" in head:
        return False
    try:
        head.decode("utf-8")
    except UnicodeDecodeError as error:
        return error.start > len(head) - 4  # a character cut in two at the end of what was read
    return True


def _has_a_box_beyond_its_end(file: BinaryIO, size: int) -> bool:
    """Walk the outermost boxes of an ISO media file (MP4, MOV, AVIF); each begins with its own length."""
    offset = 0
    while offset + 8 <= size:
        file.seek(offset)
        header = file.read(16)
        length = int.from_bytes(header[:4], "big")
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:  # 0 means up to the end; anything else is no box, and nothing can be said
            return False
        offset += length
    return offset > size
