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
_CLASSES = ("image/", "video/", "audio/")

#: Media that their bytes do not tell, or not to us: they are believed. Any other picture, video or sound must be one.
UNTOLD = {
    *(
        "image/heic",
        "image/heif",
        "image/ktx2",
        "image/qoi",
        "image/tga",
        "image/vnd.radiance",
        "image/x-tga",
    ),
    *("video/h264", "video/h265", "video/mp2t", "video/x-ivf"),
    *("audio/basic", "audio/l16", "audio/l24", "audio/mp2", "audio/pcm", "audio/x-w64"),
}


def media_type(content: bytes) -> str | None:
    """Return the type of a picture, video or audio file, told from its bytes; None for anything else."""
    return next(iter(_media_types(content)), None)


def _media_types(content: bytes) -> list[str]:
    """Return all types that the bytes may have, the likeliest first."""
    # Its tables take a while to load, and whoever reads a DAG file needs none.
    import puremagic

    try:
        matches = puremagic.magic_string(content[:HEAD_BYTES])
    except (puremagic.PureError, ValueError):
        return []
    kinds = (str(match.mime_type) for match in matches)
    return [kind for kind in kinds if kind.startswith(_CLASSES)]


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
    :raises ValueError: if it is a page or a text where media were promised, or anything else than the picture, or
        the video or sound, that was promised; but for :data:`UNTOLD`
    """
    text = _looks_like_text(head)
    if text and _PAGE.match(head):
        raise ValueError("its bytes are an HTML page instead of media")
    said = next((kind for kind in (promised, served) if kind not in _VAGUE), None)
    sniffed = _media_types(head) if b"\0" in head or not text else []
    if sniffed:
        return _the_promised(sniffed, None if promised in _VAGUE else promised)
    if text and not _SVG.match(head) and not (promised or "").startswith(_TEXTS):
        if (served or "").startswith(_TEXTS):
            raise ValueError(f"its server sent {served} instead of media")
        if said is not None and said.startswith(_CLASSES):
            raise ValueError(f"its bytes are a text, although it is called {said}")
    if not text and said is not None and said.startswith(_CLASSES) and not _is_untold(said):
        raise ValueError(f"its bytes are no picture, video or sound, although it is called {said}")
    if not text and (served or "").startswith(_TEXTS):
        served = None
    return next((kind for kind in (served, promised) if kind not in _VAGUE), served or promised)


def _the_promised(sniffed: list[str], promised: str | None) -> str:
    """Return the type that was told from the bytes, if it can be what was promised."""
    if promised is None or not promised.startswith(_CLASSES):
        return sniffed[0]
    # Sounds come in the containers of videos.
    classes = ("image/",) if promised.startswith("image/") else ("video/", "audio/")
    fitting = next((kind for kind in sniffed if kind.startswith(classes)), None)
    if fitting is not None:
        return fitting
    if _is_untold(promised):
        return promised
    raise ValueError(f"its bytes are {sniffed[0]}, although it is called {promised}")


def _is_untold(kind: str) -> bool:
    return kind.partition(";")[0].strip().lower() in UNTOLD


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
