"""Measuring media from their bytes, where the extra ``media`` is installed; nothing is decoded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

if TYPE_CHECKING:
    from av.container import InputContainer

#: FFmpeg's name of each container that is opened. It is named rather than guessed: a guess could take a text for
#: a playlist, and open what that names.
_CONTAINERS = {
    "video/mp4": "mp4",
    "video/quicktime": "mov",
    "video/x-m4v": "mp4",
    "video/webm": "matroska",
    "video/x-matroska": "matroska",
    "video/x-msvideo": "avi",
    "audio/mp4": "mp4",
    "audio/x-m4a": "mp4",
    "audio/m4a": "mp4",
    "audio/mpeg": "mp3",
    "audio/wav": "wav",
    "audio/wave": "wav",
    "audio/x-wav": "wav",
    "audio/flac": "flac",
    "audio/x-flac": "flac",
    "audio/ogg": "ogg",
    "audio/aac": "aac",
}

#: Seconds that FFmpeg may look for what is in a container, and again for each packet of it.
_FFMPEG_SECONDS = 20.0

#: Formats whose size Pillow reads from the header alone, in pure code.
_PICTURES = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "AVIF")


@dataclass(frozen=True)
class Measures:
    """
    What a file measures; None for what cannot be told.

    :param width: pixels; so is ``height``
    :param duration: seconds
    """

    width: int | None = None
    height: int | None = None
    duration: float | None = None


class TooManyPixels(ValueError):
    """A picture so large that Pillow refuses to open it: 178,956,970 pixels and more."""


def measure(path: Path, kind: str | None) -> Measures:
    """
    Return what a file measures; nothing of it if it cannot be told, or the extra ``media`` is not installed.

    :param path: the file on the local disk
    :param kind: its content type, told from its bytes
    :raises TooManyPixels: if it is a decompression bomb
    """
    try:
        if (kind or "").startswith("image/"):
            return _picture(path)
        if kind in _CONTAINERS:
            return _film(path, kind)
    except TooManyPixels:
        raise
    except Exception:  # noqa: BLE001 - a parser of a stranger's bytes may raise anything
        return Measures()
    return Measures()


def _picture(path: Path) -> Measures:
    try:
        from PIL import Image
    except ImportError:
        return Measures()
    try:
        with Image.open(path, formats=_PICTURES) as picture:
            return Measures(*picture.size)
    except Image.DecompressionBombError as error:
        raise TooManyPixels(str(error)) from error


def _film(path: Path, kind: str) -> Measures:
    try:
        import av
    except ImportError:
        return Measures()
    with path.open("rb") as file, open_film(file, kind) as film:
        streams: Any = film.streams.video
        width, height = (streams[0].width, streams[0].height) if streams else (None, None)
        seconds = None if film.duration is None else round(film.duration / av.time_base, 3)
        return Measures(width or None, height or None, seconds)


def open_film(file: BinaryIO, kind: str) -> InputContainer:
    """
    Open a video or a sound as what its content type says, and nothing else on its behalf.

    :param file: the stranger's bytes
    :param kind: content type, without parameters
    :raises ValueError: if it is none of the types that are opened
    :raises av.FFmpegError: if it is not what its type says, or takes too long
    :raises ImportError: if the extra ``media`` is not installed
    """
    import av

    if kind not in _CONTAINERS:
        raise ValueError(f"{kind!r} is no type of video or sound that is opened")
    return av.open(
        file,
        "r",
        format=_CONTAINERS[kind],
        # A container can refer to other files too, even a QuickTime one: none is opened, by whatever protocol.
        io_open=_open_nothing,
        container_options={"protocol_whitelist": ""},
        metadata_errors="ignore",
        timeout=_FFMPEG_SECONDS,
    )


def _open_nothing(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise PermissionError("a media file may not open other files")
