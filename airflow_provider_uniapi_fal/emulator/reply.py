"""An answer as a value, before it is sent; faults change it, ``sending`` sends it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# Made once: json.dumps makes a new encoder for every answer that is not pure ASCII.
_write = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True)
class HangUp:
    """No answer at all: the connection is closed, or reset."""

    reset: bool = False


@dataclass(frozen=True)
class Journey:
    """How an answer travels that does not simply arrive at once and whole."""

    beats: int = 0
    """Blank lines before the body."""
    pieces: int = 1
    """The body comes in so many pieces."""
    pause: float = 0.0
    """Seconds after each blank line, and between pieces."""
    share: float = 1.0
    """The part of the body that arrives; after less than all of it the connection ends."""
    padding: int = 0
    """Bytes without meaning after the body."""
    announced: bool = True
    """Whether Content-Length names the size of body and padding."""
    reset: bool = False
    """Whether a connection that ends too early is reset instead of closed."""


@dataclass(frozen=True)
class Reply:
    """Status, headers and body of an answer, and how it travels."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    journey: Journey | None = None
    pieces: Callable[[], AsyncIterator[bytes]] | None = None
    """What the body is made of while it is sent; then ``body`` is empty."""

    @classmethod
    def json(cls, payload: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
        """Return an answer whose body is JSON."""
        # Half of a surrogate pair has no place in UTF-8, but JSON can write it.
        body = _write(payload).encode("utf-8", "backslashreplace")
        return cls(status, body, headers=headers or {})

    @classmethod
    def gateway_error(cls, status: int, message: str, headers: Mapping[str, str] | None = None) -> Reply:
        """Return an error in the words of the gateway itself, which differ from those of fal."""
        error = {"message": message, "type": "gateway_error", "param": None, "code": str(status)}
        return cls.json({"error": error}, status, headers)

    @classmethod
    def html(cls, status: int) -> Reply:
        """Return the page of a proxy that could not reach what is behind it."""
        page = f"<html><head><title>{status}</title></head><body><center><h1>{status}</h1></center></body></html>"
        return cls(status, page.encode(), content_type="text/html")
