"""How closely requests follow each other after the gateway has asked for patience."""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.protocol import pacing
from airflow_provider_uniapi_fal.protocol.pacing import Pace

NOW = 1000.0


def refused(pace: Pace, now: float, *, started_at: float, retry_after: float | None = None) -> None:
    pace.refused(now, started_at=started_at, retry_after=retry_after, jitter=0.0)


def test_a_gateway_that_never_refused_is_asked_at_once() -> None:
    pace = Pace()
    pace.started(NOW)
    pace.answered(NOW, started_at=NOW)
    assert pace.may_start_at(NOW) == NOW


@given(st.lists(st.tuples(st.sampled_from(["ask", "answer", "refuse"]), st.floats(0, 60)), max_size=60))
def test_nothing_starts_before_it_was_asked_to_and_the_pace_always_recovers(
    events: list[tuple[str, float]],
) -> None:
    pace, now, patience = Pace(), NOW, NOW
    for event, seconds in events:
        now += 0.01
        if event == "ask":
            pace.started(now)
        elif event == "answer":
            # Of one that had started before; another would have shown that there need be no pause.
            pace.answered(now, started_at=NOW - 1)
        else:
            refused(pace, now, started_at=now - 0.005, retry_after=seconds)
            patience = max(patience, now + seconds)
        assert patience <= pace.may_start_at(now) or patience <= now
        assert pace.may_start_at(now) <= max(now, patience) + 1 / pacing.SLOWEST_RATE
        assert pace.may_start_at(now, urgent=True) <= now + pacing.URGENT_GAP
    later = max(now, patience) + pacing.FREE_SECONDS + 1
    pace.started(later)
    pace.answered(later, started_at=later)
    assert pace.may_start_at(later) == later


def test_requests_that_were_under_way_together_are_refused_once() -> None:
    alone, together = Pace(), Pace()
    refused(alone, NOW, started_at=NOW - 1)
    for number in range(50):
        refused(together, NOW, started_at=NOW - 1 - number / 1000)
    for pace in (alone, together):
        pace.started(NOW + 10)
    assert alone.may_start_at(NOW + 10) == together.may_start_at(NOW + 10)


def test_refusals_one_after_the_other_make_the_pauses_longer() -> None:
    pace, now, waits = Pace(), NOW, []
    for _ in range(5):
        pace.started(now)
        refused(pace, now + 0.1, started_at=now)
        waits.append(pace.may_start_at(now + 0.1) - (now + 0.1))
        now = pace.may_start_at(now + 0.1)
    assert waits == sorted(waits)
    assert waits[-1] > 4 * waits[0]


def test_an_answer_to_what_waited_for_no_pause_ends_the_pause() -> None:
    pace = Pace()
    refused(pace, NOW, started_at=NOW, retry_after=60.0)
    pace.answered(NOW + 1, started_at=NOW - 1)
    assert pace.may_start_at(NOW + 2) == NOW + 60
    pace.started(NOW + 2)
    pace.answered(NOW + 2, started_at=NOW + 2)
    assert pace.may_start_at(NOW + 3) == NOW + 3


def test_after_a_pause_few_ask_until_the_first_is_answered() -> None:
    pace = Pace()
    for number in range(1000):
        pace.answered(NOW + number / 1000, started_at=NOW)
    refused(pace, NOW + 1, started_at=NOW)
    now = pace.may_start_at(NOW + 1)
    for _ in range(4):
        pace.started(now)
        assert pace.may_start_at(now) == now + pacing.PROBE_GAP
        now = pace.may_start_at(now)
    pace.answered(now, started_at=now)
    assert pace.may_start_at(now) < now + pacing.PROBE_GAP / 10


# --- a crowd before a gateway -------------------------------------------------------------------------------


@dataclass
class Crowd:
    """
    Waits that are always due, before a gateway, in time that only the test lets pass.

    :param refuses: whether the gateway refuses a request that starts now
    :param latency: seconds until it answers
    """

    refuses: Callable[[float], bool]
    latency: float = 0.05
    pace: Pace = field(default_factory=Pace)
    now: float = NOW
    asked: list[tuple[float, bool]] = field(default_factory=list)
    _under_way: list[tuple[float, float, bool]] = field(default_factory=list)

    def until(self, end: float) -> None:
        while self.now < end:
            start = self.pace.may_start_at(self.now)
            ready = start if len(self._under_way) < 100 else float("inf")
            if self._under_way and self._under_way[0][0] <= ready:
                self.now, started, no = heapq.heappop(self._under_way)
                if no:
                    refused(self.pace, self.now, started_at=started)
                else:
                    self.pace.answered(self.now, started_at=started)
            elif ready > self.now:
                self.now = min(ready, end)
            else:
                self.pace.started(self.now)
                no = self.refuses(self.now)
                self.asked.append((self.now, no))
                heapq.heappush(self._under_way, (self.now + self.latency, self.now, no))
                self.now += 0.0005

    def share_refused(self, begin: float, end: float) -> float:
        some = [no for moment, no in self.asked if begin <= moment < end]
        return sum(some) / len(some)

    def answered_a_second(self, begin: float, end: float) -> float:
        return sum(not no for moment, no in self.asked if begin <= moment < end) / (end - begin)


class Bucket:
    """Refuses what is more than so many a second, with a second's worth in reserve."""

    def __init__(self, rate: float) -> None:
        self._rate, self._tokens, self._at = rate, rate, NOW

    def __call__(self, now: float) -> bool:
        self._tokens = min(self._rate, self._tokens + (now - self._at) * self._rate)
        self._at = now
        if self._tokens < 1:
            return True
        self._tokens -= 1
        return False


@pytest.mark.parametrize("latency", [0.01, 0.2, 1.0])
@pytest.mark.parametrize("limit", [2.0, 10.0, 50.0])
def test_under_a_limit_that_lasts_few_are_refused_and_it_is_made_use_of(limit: float, latency: float) -> None:
    crowd = Crowd(Bucket(limit), latency)
    crowd.until(NOW + 400)
    assert crowd.share_refused(NOW + 60, NOW + 400) < 0.15
    assert crowd.answered_a_second(NOW + 60, NOW + 400) > 0.75 * limit


@pytest.mark.parametrize("seconds", [0.1, 10.0, 60.0])
def test_after_a_trouble_that_has_passed_all_are_soon_as_fast_as_before(seconds: float) -> None:
    trouble = (NOW + 60, NOW + 60 + seconds)
    crowd = Crowd(lambda now: trouble[0] <= now < trouble[1], latency=0.5)
    crowd.until(NOW + 400)
    before = crowd.answered_a_second(NOW + 50, NOW + 60)
    # After the last pause, of 45 seconds at most.
    again = trouble[1] + 45 + 30
    assert crowd.answered_a_second(again, again + 10) > 0.95 * before
    assert crowd.share_refused(again, NOW + 400) == 0.0


def test_refusals_among_few_answers_do_not_throw_away_what_was_answered_before() -> None:
    """A gateway that refuses one kind of calls for a while, and answers all others."""
    pace, now = Pace(), NOW
    for _ in range(200):
        now += 0.05
        pace.started(now)
        pace.answered(now + 0.01, started_at=now)
    for _ in range(5):
        now = pace.may_start_at(now)
        pace.started(now)
        pace.answered(now + 0.01, started_at=now)
        now = pace.may_start_at(now + 0.02)
        pace.started(now)
        refused(pace, now + 0.01, started_at=now, retry_after=1.0)
    now = pace.may_start_at(now) + 10
    pace.started(now)
    pace.answered(now, started_at=now)
    assert pace.may_start_at(now) - now < 1 / (0.9 * 20 * pacing.SHARE**8)


@pytest.mark.parametrize("seconds", [30, 90, 170, 190])
def test_a_rate_that_nobody_has_tried_is_not_taken_for_one_that_was_kept(seconds: int) -> None:
    """Some ask ten times a second all the time, which is refused once, and later once more."""
    pace, now = Pace(), NOW
    for again in (20, seconds):
        for _ in range(10 * again):
            now += 0.1
            pace.started(now)
            pace.answered(now + 0.01, started_at=now)
        pace.started(now + 0.05)
        refused(pace, now + 0.06, started_at=now + 0.05, retry_after=0.0)
    pace.started(now + 1)
    pace.answered(now + 1, started_at=now + 1)
    assert pace.may_start_at(now + 1) - (now + 1) > 1 / 10
