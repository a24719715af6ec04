"""One media file in storage, as a value."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class LandedFile:
    """
    One media file in storage.

    :param where: its place in the model's answer, such as ``images[0]``
    :param path: where it is now
    :param bytes: its length
    :param sha256: its hash, in hexadecimal digits
    :param content_type: told from the bytes, else as the server said
    :param width: pixels
    :param height: pixels
    :param duration: seconds of a video or a sound, where they can be told
    :param flagged: the server marked it as unsafe; it is then usually a black picture
    """

    where: str
    path: str
    bytes: int
    sha256: str
    content_type: str | None
    width: int | None
    height: int | None
    flagged: bool
    duration: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LandedFile:
        """Read what :meth:`to_json` wrote; fields of a later version are passed over."""
        return cls(**{name: data[name] for name in cls.__dataclass_fields__ if name in data})
