"""What is sent and what comes back, as values; and the tolerant reading of bodies."""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeAlias, TypeVar

EXCERPT_CHARS = 200

#: Deeper JSON is taken for unreadable: no answer of a model is, and all that walks through one recurses.
MAX_DEPTH = 100

#: Half of a surrogate pair. JSON can write one, and so can a header that is no UTF-8; UTF-8 and databases cannot.
_HALF = re.compile(r"[\ud800-\udfff]")
_HALF_IN_JSON = re.compile(r"\\u[dD][89a-fA-F]")

# Made once: json.loads makes a new decoder for every text that is read with a setting.
_read = json.JSONDecoder(parse_constant=lambda _: None).decode


@dataclass(frozen=True)
class HttpRequest:
    """
    One request to the gateway.

    :param method: HTTP method
    :param family: the gateway's family of paths, such as ``fal``; it decides path prefix and credential
    :param path: path below the family's prefix, beginning with ``/``
    :param query: query parameters
    :param headers: headers besides the credential and the connection's own
    :param json: the body, or None for no body
    :param read_timeout: seconds for a whole reply; None for the account's
    """

    method: Literal["GET", "POST", "PUT"]
    family: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    json: Mapping[str, Any] | None = None
    read_timeout: float | None = None


@dataclass(frozen=True)
class HttpReply:
    """
    A reply that arrived whole, or was cut off on purpose because it is too long.

    :param status: HTTP status code
    :param headers: header names in lower case
    :param body: the bytes, empty when ``oversized``
    :param oversized: the body is longer than the transport was asked to read
    """

    status: int
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""
    oversized: bool = False

    @property
    def ok(self) -> bool:
        """Whether the status is 2xx; 202 means "still pending" on the fal queue and is fine."""
        return 200 <= self.status < 300


@dataclass(frozen=True)
class NotSent:
    """
    No byte of the request can have reached the gateway: nothing was created there.

    :param permanent: sending it again cannot help, because a setting is wrong
    """

    reason: str
    permanent: bool = False


@dataclass(frozen=True)
class ReplyLost:
    """The request may have reached the gateway, but no whole reply came back."""

    reason: str


Sent: TypeAlias = "HttpReply | NotSent | ReplyLost"


@dataclass(frozen=True)
class Send:
    """
    Effect of a flow: send this request; the answer is a :data:`Sent`.

    :param brief: the reply is short and should come at once, as a status does
    """

    request: HttpRequest
    brief: bool = False


@dataclass(frozen=True)
class Sleep:
    """Effect of a flow: let this many seconds pass."""

    seconds: float


T = TypeVar("T")

#: A conversation with the gateway, written once: a blocking and a non-blocking driver both run it.
Flow: TypeAlias = Generator["Send | Sleep", "Sent | None", T]


@dataclass(frozen=True)
class Done(Generic[T]):
    """The end of a flow, with what it returns."""

    value: T


def advance(flow: Flow[T], answer: Sent | None) -> Send | Sleep | Done[T]:
    """Give a flow what it waits for, and return what it wants next."""
    try:
        return flow.send(answer)
    except StopIteration as end:
        return Done(end.value)


@dataclass(frozen=True)
class Unreadable:
    """A body that is not JSON, with the beginning of its text."""

    excerpt: str


def read_json(reply: HttpReply) -> Any | Unreadable:
    """
    Read a JSON body as tolerantly as is safe.

    Blank lines before the JSON (the gateway's heartbeat sends one every five seconds under an early 200),
    a byte order mark, UTF-16 and a declared charset are all read. Bytes that fit no charset are replaced,
    so that the ids and states, which are ASCII, can still be read. ``NaN`` and the infinities become null,
    because the databases behind XCom refuse them; for the same reason half of a surrogate pair is replaced.

    Sources: UniAPI's page on errors (heartbeat); the rest was seen from proxies between client and queue.
    """
    text = _decode(reply.body, reply.headers.get("content-type", "")).strip("\ufeff \t\r\n\0")
    if not text:
        return Unreadable("" if not reply.oversized else "a body too long to read")
    try:
        value = _read(text)
    except (ValueError, RecursionError):
        return Unreadable(excerpt(text))
    # What has fewer brackets than that is not deeper, and need not be walked through.
    brackets = text.count("[") + text.count("{")
    if brackets > MAX_DEPTH and _is_too_deep(value):
        return Unreadable(excerpt(text))
    has_halves = _HALF_IN_JSON.search(text) or (not text.isascii() and _HALF.search(text))
    return _whole_below(value) if has_halves else value


def whole_text(text: str) -> str:
    """Return foreign text in which no half of a surrogate pair is left, so that it can be written anywhere."""
    return _HALF.sub("\ufffd", text)


def excerpt(text: str) -> str:
    """Return the beginning of foreign text on one line, printable, for use in a message."""
    flat = " ".join(text[: 20 * EXCERPT_CHARS].split())
    printable = "".join(character if character.isprintable() else "?" for character in flat)
    return printable if len(printable) <= EXCERPT_CHARS else printable[: EXCERPT_CHARS - 1] + "…"


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(MAX_DEPTH):
        if not level:
            return False
        outer, level = level, []
        for item in outer:
            if isinstance(item, dict):
                level += item.values()
            elif isinstance(item, list):
                level += item
    return True


def _whole_below(value: Any) -> Any:
    """Return a JSON value of which every text is whole."""
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, dict):
        return {whole_text(key): _whole_below(item) for key, item in value.items()}
    return [_whole_below(item) for item in value] if isinstance(value, list) else value


def _decode(body: bytes, content_type: str) -> str:
    # JSON is UTF-8 (or tells its encoding by its first bytes), whatever a server declares by habit.
    try:
        return body.decode(json.detect_encoding(body))
    except ValueError:
        declared = content_type.lower().partition("charset=")[2].partition(";")[0].strip(" \"'")
    try:
        return body.decode(declared)
    except (LookupError, ValueError):  # no such charset, or not in it
        return body.decode("utf-8", errors="replace")
