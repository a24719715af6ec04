"""How fast submits leave: so many a second, and all of them slower when the gateway asks one for patience."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from airflow_provider_uniapi_fal.protocol.messages import Done, Flow, Sleep, advance

T = TypeVar("T")


class SubmitPace:
    """
    Decides when the next submit may leave, for all of one batch.

    :param rate_limit: submits a second; None for no limit
    :param clock: seconds that only go forward
    """

    def __init__(self, rate_limit: float | None, clock: Callable[[], float]) -> None:
        self._between = 0.0 if rate_limit is None else 1.0 / rate_limit
        self._clock = clock
        self._next = clock()
        self._paused_until = 0.0

    def wait(self) -> float:
        """Take the next place in the line, and return the seconds until it is due."""
        now = self._clock()
        due = max(self._next, self._paused_until, now)
        self._next = due + self._between
        return due - now

    def paused(self) -> float:
        """Return the seconds that the gateway still wants to be left alone."""
        return max(self._paused_until - self._clock(), 0.0)

    def pause(self, seconds: float) -> None:
        """Let nothing leave for so long: one submit was told to wait, and the account is the same for all."""
        self._paused_until = max(self._paused_until, self._clock() + seconds)

    def of(self, flow: Flow[T], *, sending: Callable[[], None]) -> Flow[T]:
        """
        Return a submit that keeps the pace of all others.

        :param sending: called just before it is sent
        """
        yield Sleep(self.wait())
        effect = advance(flow, None)
        while not isinstance(effect, Done):
            if isinstance(effect, Sleep):
                self.pause(effect.seconds)
                yield Sleep(effect.seconds)
                effect = advance(flow, None)
                continue
            while (seconds := self.paused()) > 0:
                yield Sleep(seconds)
            sending()
            effect = advance(flow, (yield effect))
        return effect.value
