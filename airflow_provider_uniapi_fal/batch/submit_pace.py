"""How fast submits leave: so many a second, and all of them slower when the gateway asks one for patience."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from airflow_provider_uniapi_fal.protocol.messages import Done, Flow, Sleep, advance

T = TypeVar("T")

#: Seconds after which one that waits asks whether submits are over: a worker that is ended has five.
ASK_EVERY = 0.5


class SubmitsOver(Exception):
    """Raised in a submit that waits while submits are over: it is not on its way, and none of it was accepted."""


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

    def of(self, flow: Flow[T], *, sent: Callable[[bool], None], over: Callable[[], bool]) -> Flow[T]:
        """
        Return a submit that keeps the pace of all others.

        :param sent: called with True just before it is sent, and with False once it provably was not accepted
        :param over: whether nothing more is to be sent
        :raises SubmitsOver: in the flow, if so, before it is sent
        """
        yield from self._rest(self.wait(), over)
        effect = advance(flow, None)
        while not isinstance(effect, Done):
            if isinstance(effect, Sleep):
                # A submit rests only if it was not accepted, and before it is sent again.
                sent(False)
                self.pause(effect.seconds)
                effect = advance(flow, None)
                continue
            while (seconds := self.paused()) > 0:
                yield from self._rest(seconds, over)
            sent(True)
            effect = advance(flow, (yield effect))
        return effect.value

    def _rest(self, seconds: float, over: Callable[[], bool]) -> Flow[None]:
        until = self._clock() + seconds
        left = seconds
        while True:
            yield Sleep(min(left, ASK_EVERY))
            if over():
                raise SubmitsOver
            left = until - self._clock()
            if left <= 0:
                return
