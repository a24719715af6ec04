"""
Following a job by its status stream: reading server-sent events, and knowing whether a gateway sends them.

fal documents one event for each change of the status, with the status as its data, and a comment every 15 seconds
that keeps the connection open; the server closes after the event that tells the end. Whether a gateway in front of
it passes the stream on, and unbuffered, is not documented: it is found out by one job that is polled as well.
"""

from __future__ import annotations

import math
from enum import Enum
from typing import Literal, TypeAlias

#: How to learn that a job has ended: by polls, by the stream, or by whatever serves.
WatchBy: TypeAlias = Literal["auto", "poll", "stream"]
WAYS: tuple[WatchBy, ...] = ("auto", "poll", "stream")

#: Without a byte for so many seconds a stream is given up; fal sends a comment every 15 seconds.
SILENCE_SECONDS = 20.0

#: A stream that is on trial must begin within so many seconds: its job is not polled until then.
OPENING_SECONDS = 3.0

#: Seconds without an event after which the status is asked for, however alive the stream is.
CHECK_SECONDS = 120.0

#: A gateway that does not stream is tried again after so many seconds.
FORGET_SECONDS = 3600.0

#: Streams in a row that come to nothing before there are polls only: for so many seconds, and longer each time.
MAX_CUTS = 3
FIRST_REST = 60.0
REST_GROWS = 4.0

#: An event is a status; one that is longer is skipped.
MAX_EVENT = 1024 * 1024


class EventReader:
    """Reads server-sent events from bytes, however they are cut; gives the data of each event."""

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []
        self._size = 0
        self._began = False

    def feed(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes; return the data of the events that they complete. Comments have none."""
        events = []
        text = self._rest + chunk
        if not self._began and len(text) >= 3:
            self._began, text = True, text.removeprefix(b"\xef\xbb\xbf")
        # A line feed may still follow a carriage return at the end.
        held = b"\r" if text.endswith(b"\r") else b""
        lines = text[: len(text) - len(held)].replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
        self._rest = lines.pop() + held
        for line in lines:
            if not line:
                if self._data and self._size <= MAX_EVENT:
                    events.append(b"\n".join(self._data))
                self._data, self._size = [], 0
                continue
            name, _, value = line.partition(b":")
            if name == b"data":
                self._add(value.removeprefix(b" "))
        if len(self._rest) > MAX_EVENT:
            # What is too long to be a status is not kept; its line is skipped to the end.
            self._rest, self._size = b":", MAX_EVENT + 1
        return events

    def _add(self, value: bytes) -> None:
        self._size += len(value) + 1
        if self._size <= MAX_EVENT:
            self._data.append(value)


class Trust(Enum):
    """How far a stream is trusted."""

    NONE = "poll only"
    TRIAL = "follow the stream, and poll as if there were none"
    FULL = "follow the stream alone"


class Gateway:
    """What is known of one gateway's streams. Times are seconds on any one clock."""

    def __init__(self) -> None:
        self._offered = False
        self._refused_until = -math.inf
        self._trying = False
        self._cuts = 0
        self._rest = FIRST_REST

    def trust(self, by: WatchBy, now: float) -> Trust:
        """Decide for one job: ``auto`` lets one job at a time find out, and polls the others meanwhile."""
        if by == "poll" or now < self._refused_until:
            return Trust.NONE
        if by == "stream" or self._offered:
            # After one that came to nothing nobody is left to the next alone.
            return Trust.TRIAL if self._cuts else Trust.FULL
        return Trust.NONE if self._trying else Trust.TRIAL

    def tries(self) -> None:
        """Take note that a trial begins."""
        self._trying = True

    def trial_ended(self) -> None:
        """Take note that a trial is over, however it went."""
        self._trying = False

    def flows(self) -> None:
        """
        Take note of a stream that brought the status of a job that goes on, and more later.

        One that is held back somewhere brings nothing until it ends, or a first part and nothing more.
        """
        self._offered = self._offered or not self._cuts

    def told(self) -> None:
        """Take note of a stream that told the end of its job."""
        self._offered, self._cuts, self._rest = True, 0, FIRST_REST

    def failed(self, now: float) -> None:
        """Take note that the gateway has no streams."""
        self._offered, self._cuts, self._refused_until = False, 0, now + FORGET_SECONDS

    def cut(self, now: float) -> None:
        """
        Take note of a stream that did not begin, fell silent, ended before its job did, or told less than a poll.

        One may be an accident of one connection, and some in a row one of the gateway, which passes.
        """
        self._cuts += 1
        if self._cuts >= MAX_CUTS and now >= self._refused_until:
            self._offered, self._refused_until = False, now + self._rest
            self._rest = min(REST_GROWS * self._rest, FORGET_SECONDS)
