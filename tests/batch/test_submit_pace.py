"""The pace of many submits, with a clock that the test moves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_uniapi_fal.batch.submit_pace import ASK_EVERY, SubmitPace, SubmitsOver
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


def paced(pace: SubmitPace, flow: Flow[Any]) -> Flow[Any]:
    return pace.of(flow, sent=lambda now: None, over=lambda: False)


def sends(pace: SubmitPace, clock: Clock, flow: Flow[Any]) -> list[float]:
    """Run a flow alone; return when it sends."""
    pacing = paced(pace, flow)
    sent, effect = [], advance(pacing, None)
    while not isinstance(effect, Done):
        if isinstance(effect, Sleep):
            clock.now += effect.seconds
            effect = advance(pacing, None)
        else:
            sent.append(clock.now)
            effect = advance(pacing, HttpReply(200))
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
    told = paced(pace, submit(1))
    assert advance(told, None) == Sleep(0.0)
    assert advance(told, None) == Send(REQUEST)
    other = paced(pace, submit())
    assert advance(other, None) == Sleep(0.0)
    assert advance(told, HttpReply(429)) == Sleep(ASK_EVERY)
    # The other one was about to be sent when the first one was told to wait.
    assert advance(other, None) == Sleep(ASK_EVERY)
    assert sends(pace, clock, submit()) == [102.0]
    assert advance(other, None) == Send(REQUEST)


def test_what_was_never_sent_is_known_not_to_be() -> None:
    sent: list[bool] = []
    flow = SubmitPace(None, Clock()).of(submit(), sent=sent.append, over=lambda: False)
    assert advance(flow, None) == Sleep(0.0)
    assert sent == []
    assert advance(flow, None) == Send(REQUEST)
    assert sent == [True]
    with pytest.raises(StopIteration):
        flow.send(HttpReply(200))


def test_one_that_rests_after_it_was_told_to_wait_is_known_not_to_be_accepted() -> None:
    clock, sent = Clock(), list[bool]()
    flow = SubmitPace(None, clock).of(submit(1), sent=sent.append, over=lambda: False)
    advance(flow, None)
    assert advance(flow, None) == Send(REQUEST)
    assert isinstance(advance(flow, HttpReply(429)), Sleep)
    assert sent == [True, False]
    clock.now += 2.0
    assert advance(flow, None) == Send(REQUEST)
    assert sent == [True, False, True]


def test_a_pause_of_any_length_ends_at_once_when_submits_are_over() -> None:
    over: list[bool] = []
    pace = SubmitPace(0.001, Clock())
    told = pace.of(submit(1), sent=lambda now: None, over=lambda: bool(over))
    second = pace.of(submit(), sent=lambda now: None, over=lambda: bool(over))
    advance(told, None)
    assert advance(told, None) == Send(REQUEST)
    for effect in (advance(told, HttpReply(429)), advance(second, None)):
        assert effect == Sleep(ASK_EVERY)
    over.append(True)
    for flow in (told, second):
        with pytest.raises(SubmitsOver):
            advance(flow, None)
