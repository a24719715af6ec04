"""An answer as a value, before it is sent; faults change it, the server sends it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Reply:
    """Status, headers and body of an answer, and the blank lines of a heartbeat before it."""

    status: int
    body: bytes
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    beats: int = 0
    beat_seconds: float = 0.0

    @classmethod
    def json(cls, payload: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
        """Return an answer whose body is JSON."""
        # Half of a surrogate pair, which JSON can write, has no place in UTF-8.
        body = json.dumps(payload, ensure_ascii=False).encode("utf-8", "replace")
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
