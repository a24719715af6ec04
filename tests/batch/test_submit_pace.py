"""The pace of many submits, with a clock that the test moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_uniapi_fal.batch.submit_pace import SubmitPace
from airflow_provider_uniapi_fal.protocol.messages import Done, HttpReply, HttpRequest, Send, Sleep, advance

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.messages import Flow

REQUEST = HttpRequest("POST", "fal", "/x")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def submit(pauses: int = 0) -> Flow[str]:
    """Return a submit that is told to wait two seconds, a few times."""
    for _ in range(pauses):
        yield Send(REQUEST)
        yield Sleep(2.0)
    yield Send(REQUEST)
    return "accepted"


def sends(pace: SubmitPace, clock: Clock, flow: Flow[Any]) -> list[float]:
    """Run a flow alone; return when it sends."""
    paced = pace.of(flow, sending=lambda: None)
    sent, effect = [], advance(paced, None)
    while not isinstance(effect, Done):
        if isinstance(effect, Sleep):
            clock.now += effect.seconds
            effect = advance(paced, None)
        else:
            sent.append(clock.now)
            effect = advance(paced, HttpReply(200))
    assert effect.value == "accepted"
    return sent


def test_without_a_limit_nothing_waits() -> None:
    clock = Clock()
    pace = SubmitPace(None, clock)
    assert [sends(pace, clock, submit()) for _ in range(3)] == [[100.0]] * 3


def test_submits_keep_the_rate_that_was_asked_for() -> None:
    clock = Clock()
    pace = SubmitPace(4.0, clock)
    assert [sends(pace, clock, submit())[0] for _ in range(4)] == [100.0, 100.25, 100.5, 100.75]
    clock.now = 200.0
    assert sends(pace, clock, submit()) == [200.0]


def test_one_that_is_told_to_wait_holds_up_all() -> None:
    clock = Clock()
    pace = SubmitPace(None, clock)
    told = pace.of(submit(1), sending=lambda: None)
    assert advance(told, None) == Sleep(0.0)
    assert advance(told, None) == Send(REQUEST)
    other = pace.of(submit(), sending=lambda: None)
    assert advance(other, None) == Sleep(0.0)
    assert advance(told, HttpReply(429)) == Sleep(2.0)
    # The other one was about to be sent when the first one was told to wait.
    assert advance(other, None) == Sleep(2.0)
    assert sends(pace, clock, submit()) == [102.0]
    assert advance(other, None) == Send(REQUEST)


def test_what_was_never_sent_is_known_not_to_be() -> None:
    sent: list[str] = []
    flow = SubmitPace(None, Clock()).of(submit(), sending=lambda: sent.append("now"))
    assert advance(flow, None) == Sleep(0.0)
    assert sent == []
    assert advance(flow, None) == Send(REQUEST)
    assert sent == ["now"]
    with pytest.raises(StopIteration):
        flow.send(HttpReply(200))
