"""Byte ranges (RFC 9110, section 14), by which a browser seeks in a video."""

from __future__ import annotations

import re
from dataclasses import dataclass

# One range; a server may answer a request for several with the whole, and 20 digits are more than any file has.
_ONE_RANGE = re.compile(r"bytes=([0-9]{0,20})-([0-9]{0,20})")


@dataclass(frozen=True)
class ByteRange:
    """Bytes ``first`` to ``last``, both included."""

    first: int
    last: int

    @property
    def length(self) -> int:
        """How many bytes these are."""
        return self.last - self.first + 1

    def of(self, size: int) -> str:
        """Return the value of ``Content-Range``."""
        return f"bytes {self.first}-{self.last}/{size}"


class Unsatisfiable(ValueError):
    """The range begins behind the end of the file."""


def read_range(header: str | None, size: int) -> ByteRange | None:
    """
    Return the part of a file that was asked for, or None for the whole of it.

    :param header: the ``Range`` header; one that is malformed or asks for several ranges counts as none
    :param size: bytes of the file
    :raises Unsatisfiable: if no byte of the file is in the range
    """
    match = _ONE_RANGE.fullmatch(header.strip()) if header else None
    if match is None or match.groups() == ("", ""):
        return None
    first_text, last_text = match.groups()
    if not first_text:
        count = min(int(last_text), size)
        if count == 0:
            raise Unsatisfiable
        return ByteRange(size - count, size - 1)
    first = int(first_text)
    last = int(last_text) if last_text else size - 1
    if last < first and last_text:
        return None
    if first >= size:
        raise Unsatisfiable
    return ByteRange(first, min(last, size - 1))
