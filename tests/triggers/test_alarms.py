"""Thousands of times, one timer: on an event loop whose clock jumps over what would be slept."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.triggers import alarms
from airflow_provider_uniapi_fal.triggers.alarms import TICK, Alarms


class Jumping(asyncio.SelectorEventLoop):
    """An event loop on which nothing takes time but to wait."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.timers = 0
        select = self._selector.select  # type: ignore[attr-defined]

        def jump(timeout: float | None = None) -> Any:
            self.now += timeout or 0.0
            return select(0)

        self._selector.select = jump  # type: ignore[attr-defined]

    def time(self) -> float:
        return self.now

    def call_at(self, *args: Any, **kwargs: Any) -> asyncio.TimerHandle:  # type: ignore[override]
        self.timers += 1
        return super().call_at(*args, **kwargs)


def run(test: Callable[[Jumping], Coroutine[Any, Any, None]]) -> Jumping:
    loop = Jumping()
    try:
        loop.run_until_complete(test(loop))
        return loop
    finally:
        loop.close()


@given(st.lists(st.tuples(st.floats(0, 100), st.none() | st.floats(0, 100)), max_size=60))
def test_each_rings_once_at_its_time_unless_it_was_taken_back_before(
    plan: list[tuple[float, float | None]],
) -> None:
    rang: dict[int, float] = {}

    async def test(loop: Jumping) -> None:
        def ring(thing: int) -> None:
            assert thing not in rang
            rang[thing] = loop.time()

        clock = Alarms[int](ring)
        for thing, (at, taken_back_at) in enumerate(plan):
            number = clock.set(thing, at)
            if taken_back_at is not None:
                loop.call_at(taken_back_at, clock.take_back, number)
        await asyncio.sleep(101)

    run(test)
    for thing, (at, taken_back_at) in enumerate(plan):
        if taken_back_at is None or taken_back_at > at + TICK:
            assert at <= rang[thing] <= at + 1.01 * TICK
        elif taken_back_at < at:
            assert thing not in rang


def test_an_earlier_one_does_not_wait_for_those_set_before() -> None:
    rang: list[str] = []

    async def test(loop: Jumping) -> None:
        clock = Alarms[str](rang.append)
        clock.set("late", 50.0)
        clock.set("early", 1.0)
        await asyncio.sleep(2)

    run(test)
    assert rang == ["early"]


def test_what_is_set_and_taken_back_while_it_rings_is_minded() -> None:
    rang: list[tuple[str, float]] = []

    async def test(loop: Jumping) -> None:
        def ring(thing: str) -> None:
            rang.append((thing, loop.time()))
            if thing == "first":
                clock.take_back(second)
                clock.set("third", loop.time())

        clock = Alarms[str](ring)
        clock.set("first", 1.0)
        second = clock.set("second", 1.0)
        await asyncio.sleep(2)

    run(test)
    assert [thing for thing, _ in rang] == ["first", "third"]


def test_one_that_cannot_be_rung_silences_no_other() -> None:
    rang: list[str] = []
    complaints: list[dict[str, Any]] = []

    async def test(loop: Jumping) -> None:
        def ring(thing: str) -> None:
            if thing == "broken":
                raise RuntimeError(thing)
            rang.append(thing)

        loop.set_exception_handler(lambda _, context: complaints.append(context))
        clock = Alarms[str](ring)
        for thing in ("broken", "same time", "broken"):
            clock.set(thing, 1.0)
        clock.set("later", 2.0)
        await asyncio.sleep(3)

    run(test)
    assert rang == ["same time", "later"]
    assert [str(each["exception"]) for each in complaints] == ["broken", "broken"]


def test_thousands_take_the_loop_as_many_timers_as_there_are_ticks() -> None:
    rang: list[int] = []

    async def test(loop: Jumping) -> None:
        clock = Alarms[int](rang.append)
        for number in range(10_000):
            clock.set(number, 1.0 + number / 10_000)
        await asyncio.sleep(3)

    loop = run(test)
    assert rang == list(range(10_000))
    assert loop.timers <= 1 / TICK + 5


def test_those_taken_back_take_no_room_until_their_time() -> None:
    async def test(loop: Jumping) -> None:
        clock = Alarms[int](lambda _: None)
        kept = clock.set(0, 2.0)
        for number in range(20_000):
            clock.take_back(clock.set(number, 1e6))
        assert len(clock._heap) <= alarms.MANY_DEAD + 2
        clock.take_back(kept)

    run(test)


def test_after_the_end_none_rings_that_was_set_before() -> None:
    rang: list[str] = []

    async def test(loop: Jumping) -> None:
        clock = Alarms[str](rang.append)
        clock.set("late", 1.0)
        clock.close()
        await asyncio.sleep(2)
        assert rang == []
        clock.set("anew", 3.0)
        await asyncio.sleep(2)

    run(test)
    assert rang == ["anew"]
