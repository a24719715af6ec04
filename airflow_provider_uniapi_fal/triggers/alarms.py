"""One timer of the event loop for thousands of things that are due at some time."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

T = TypeVar("T")

#: Seconds that are let pass between two rings: what is due soon after each other is due together.
TICK = 0.02

#: Alarms that were taken back and are still in the heap, at least, before it is cleared of them.
MANY_DEAD = 1000


class Alarms(Generic[T]):
    """
    Rings for each thing at its time, on the event loop that runs.

    A timer of the loop for each would be three objects that live until then, which makes Python look through all
    objects of the process for garbage more often; pairs of numbers it passes over.

    :param ring: called with each thing that is due
    """

    def __init__(self, ring: Callable[[T], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._ring = ring
        self._count = 0
        self._heap: list[tuple[float, int]] = []
        self._things: dict[int, T] = {}
        self._timer: asyncio.TimerHandle | None = None
        #: When the timer rings; not while it is ringing.
        self._rings_at = math.inf
        self._rang_at = -math.inf

    def set(self, thing: T, at: float) -> int:
        """
        Set an alarm.

        :param at: by the loop's clock
        :return: its number, by which it can be taken back
        """
        self._count += 1
        self._things[self._count] = thing
        heappush(self._heap, (at, self._count))
        if at < self._rings_at:
            self._wind(at)
        return self._count

    def take_back(self, number: int) -> None:
        """Take an alarm back, which may have rung."""
        self._things.pop(number, None)
        if len(self._heap) > 2 * len(self._things) + MANY_DEAD:
            self._heap = [entry for entry in self._heap if entry[1] in self._things]
            heapify(self._heap)

    def close(self) -> None:
        """Take back all."""
        self._heap.clear()
        self._things.clear()
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._rings_at = None, math.inf

    def _wind(self, at: float) -> None:
        at = max(at, self._rang_at + TICK)
        if at < self._rings_at:
            if self._timer is not None:
                self._timer.cancel()
            self._rings_at = at
            self._timer = self._loop.call_at(at, self._rings)

    def _rings(self) -> None:
        now = self._rang_at = self._loop.time()
        # While it rings, it is wound by nobody.
        self._timer, self._rings_at = None, -math.inf
        try:
            while self._heap and self._heap[0][0] <= now:
                thing = self._things.pop(heappop(self._heap)[1], None)
                if thing is not None:
                    self._ring(thing)
        finally:
            self._rings_at = math.inf
            if self._heap:
                self._wind(self._heap[0][0])
