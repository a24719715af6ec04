"""Numbers and times as the pages show them."""

from __future__ import annotations

import json
from datetime import datetime, timezone
from decimal import Decimal
from typing import Any


def in_bytes(count: int) -> str:
    """Return a size such as ``1.4 MB``."""
    size = Decimal(count)  # which no number in a manifest is too large for
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            return f"{size:.0f} {unit}" if unit == "B" or size >= 100 else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("the last unit takes all")


def in_seconds(seconds: float | None) -> str:
    """Return a length of time such as ``4.2 s`` or ``2 min 05 s``; a dash if it is not known."""
    if seconds is None:
        return "–"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def clock(seconds: float | None) -> str:
    """Return how long a video plays, such as ``0:05``; empty if it is not known."""
    if seconds is None:
        return ""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02}"


def moment(at: float | datetime | None) -> str:
    """Return a time such as ``2026-11-25 02:03:04 UTC``; a dash if it is not known."""
    if at is None or at == 0:
        return "–"
    when = at if isinstance(at, datetime) else datetime.fromtimestamp(at, timezone.utc)
    return when.astimezone(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")


def outcome(word: str) -> str:
    """Return an outcome as a reader's word."""
    return word.replace("_", " ")


def as_json(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON; what is nested too deeply to be written, as a remark."""
    try:
        return json.dumps(value, ensure_ascii=False, indent=indent)
    except RecursionError:
        return "(nested too deeply to be shown)"
