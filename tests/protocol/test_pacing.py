"""How closely requests follow each other after the gateway has asked for patience."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.protocol.pacing import LONGEST_GAP, Pace

NOW = 1000.0


def refused(pace: Pace, now: float, *, started_at: float, retry_after: float | None = None) -> None:
    pace.refused(now, started_at=started_at, retry_after=retry_after, jitter=0.0)


def test_a_gateway_that_never_refused_is_asked_at_once() -> None:
    pace = Pace()
    pace.started(NOW)
    pace.answered()
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
            pace.answered()
        else:
            refused(pace, now, started_at=now - 0.005, retry_after=seconds)
            patience = max(patience, now + seconds)
        assert patience <= pace.may_start_at(now) or patience <= now
        assert pace.may_start_at(now) <= max(now, patience) + LONGEST_GAP
    for _ in range(100):
        pace.answered()
    later = max(now, patience)
    pace.started(later)
    assert pace.may_start_at(later) == later


def test_requests_that_were_under_way_together_are_refused_once() -> None:
    alone, together = Pace(), Pace()
    refused(alone, NOW, started_at=NOW - 1)
    for number in range(50):
        refused(together, NOW + number / 1000, started_at=NOW - 1)
    for pace in (alone, together):
        pace.started(NOW + 10)
    assert alone.may_start_at(NOW + 10) == together.may_start_at(NOW + 10)


def test_refusals_one_after_the_other_make_the_pauses_and_the_gaps_longer() -> None:
    pace, now, waits, gaps = Pace(), NOW, [], []
    for _ in range(5):
        pace.started(now)
        refused(pace, now + 0.1, started_at=now)
        waits.append(pace.may_start_at(now + 0.1) - (now + 0.1))
        now = pace.may_start_at(now + 0.1)
        pace.started(now)
        gaps.append(pace.may_start_at(now) - now)
    assert waits == sorted(waits)
    assert gaps == sorted(gaps)
    assert gaps[0] > 0
    assert waits[-1] > 4 * waits[0]
