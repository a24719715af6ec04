"""
The state file: what must survive the emulator's end, one line of JSON for each event.

A line is with the operating system before the call that caused it is answered, so that no end of the process, not
even a kill, loses an accepted post. (Only the end of the whole machine could.)
"""

from __future__ import annotations

import fcntl
import json
import os
from typing import Any

HEADER = b'{"event": "emulator", "format": 1}\n'


class StateFile:
    """The file, held by one emulator at a time."""

    def __init__(self, file: str) -> None:
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self._name = file
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._file)
            raise OSError(f"the state file {file} is in use by another emulator") from None

    def read(self) -> list[dict[str, Any]]:
        """
        Return the events so far, and make ready to write.

        A last line without an end was cut off by a kill, before its call was answered: it never happened.
        """
        with os.fdopen(os.dup(self._file), "rb") as file:
            file.seek(0)
            data = file.read()
        if data[: len(HEADER)] != HEADER[: len(data)]:
            raise OSError(f"{self._name} is no state file of this emulator")
        if len(data) <= len(HEADER):
            self.clear()
            return []
        end = data.rfind(b"\n") + 1
        os.ftruncate(self._file, end)
        return [json.loads(line) for line in data[len(HEADER) : end].splitlines()]

    def write(self, event: str, **fields: Any) -> None:
        """Append an event."""
        self._append(json.dumps({"event": event, **fields}).encode() + b"\n")

    def clear(self) -> None:
        """Forget all events."""
        os.ftruncate(self._file, 0)
        self._append(HEADER)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)

    def _append(self, line: bytes) -> None:
        while line:
            line = line[os.write(self._file, line) :]
