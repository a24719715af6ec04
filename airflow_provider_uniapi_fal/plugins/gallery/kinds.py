"""What a browser may show of a file: only kinds on this list, and all others are downloads."""

from __future__ import annotations

import re
from urllib.parse import quote

#: No SVG, no HTML, no PDF: they can run scripts or fetch things.
PICTURES = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif", "image/avif"})
VIDEOS = frozenset({"video/mp4", "video/webm", "video/quicktime"})
SOUNDS = frozenset({"audio/mpeg", "audio/mp4", "audio/ogg", "audio/wav", "audio/x-wav", "audio/flac"})

DOWNLOAD = "application/octet-stream"


def kind_of(content_type: str | None) -> str:
    """Return ``picture``, ``video``, ``sound`` or ``other``."""
    plain = _plain(content_type)
    for kind, types in (("picture", PICTURES), ("video", VIDEOS), ("sound", SOUNDS)):
        if plain in types:
            return kind
    return "other"


def served_as(content_type: str | None) -> str:
    """Return the content type to serve a file with."""
    plain = _plain(content_type)
    return plain if kind_of(plain) != "other" else DOWNLOAD


def disposition(name: str, *, inline: bool) -> str:
    """Return the value of ``Content-Disposition`` for a file of this name."""
    ascii_name = re.sub(r"[^A-Za-z0-9._-]", "_", name) or "file"
    return f"{'inline' if inline else 'attachment'}; filename=\"{ascii_name}\"; filename*=UTF-8''{quote(name, safe='')}"


def _plain(content_type: str | None) -> str:
    return (content_type or "").partition(";")[0].strip().lower()
