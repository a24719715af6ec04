"""When to send again."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.protocol import retrying
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, unknown_outcome
from airflow_provider_uniapi_fal.protocol.messages import HttpReply, NotSent
from tests.protocol.values import NOW, reply

TODAY = datetime.fromtimestamp(NOW, timezone.utc)


def in_(**delta: float) -> str:
    return format_datetime(TODAY + timedelta(**delta), usegmt=True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        (" 7 ", 7.0),
        ("0", 0.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("100000", retrying.LONGEST_RETRY_AFTER),
        ("1e999", None),
        ("nan", None),
        ("inf", None),
        ("-inf", None),
        ("", None),
        ("soon", None),
        ("12 seconds", None),
        (in_(seconds=42), 42.0),
        (in_(seconds=42).replace("GMT", "-0000"), 42.0),
        (in_(hours=-1), 0.0),
        (in_(days=400), retrying.LONGEST_RETRY_AFTER),
        ("Mon, 99 Foo 2023 99:99:99 GMT", None),
        ("Fri, 31 Dec 9999 23:59:59 -2359", retrying.LONGEST_RETRY_AFTER),
        ("Wed, 21 Oct 99999999999999999999 07:28:00 GMT", None),
        ("Mon, 01 Jan 0001 00:00:00 +2359", 0.0),
    ],
)
def test_retry_after_is_read_in_both_forms_and_nonsense_is_none(value: str, seconds: float | None) -> None:
    assert retrying.retry_after(reply({}, 429, retry_after=value), NOW) == seconds


def test_no_retry_after_asks_nothing() -> None:
    assert retrying.retry_after(reply({}, 429), NOW) is None


@given(st.text(max_size=60) | st.from_regex(r"\w{3}, \d{1,4} \w{3} \d{1,30} [\d:]{0,12} [+-]?\w{0,6}"))
@example("Sun, 06 Nov 1994 08:49:37 +99999999999")
@example("Sunday, 06-Nov-94 08:49:37 GMT")
@example("Sun Nov  6 08:49:37 1994")
@example("١٢")
def test_no_retry_after_breaks_the_reading(value: str) -> None:
    seconds = retrying.retry_after(HttpReply(429, {"retry-after": value}), NOW)
    assert seconds is None or 0 <= seconds <= retrying.LONGEST_RETRY_AFTER


def test_a_look_is_put_off_for_no_longer_than_a_result_may_be_kept() -> None:
    def rest(**headers: str) -> float | None:
        return retrying.look_again_after(reply({}, 429, **headers), NOW)

    assert [rest(), rest(retry_after="7"), rest(retry_after="3600")] == [None, 7.0, retrying.LONGEST_REST]


@given(st.integers(1, 10_000), st.floats(0, 1))
def test_backoff_grows_to_a_bound(attempt: int, jitter: float) -> None:
    pause = retrying.backoff(attempt, jitter)
    assert 1 <= pause <= 45
    assert retrying.backoff(attempt + 1, jitter) >= pause


def refusal(kind: FailureKind, retry_after: float | None = None) -> Failure:
    return Failure(kind, what="No.", retry_does="submits.", retry_after=retry_after)


anything = st.one_of(
    st.builds(NotSent, st.just("refused"), permanent=st.booleans()),
    st.builds(
        refusal,
        st.one_of(st.sampled_from(FailureKind), st.just(FailureKind.RATE_LIMITED)),
        st.none() | st.floats(0, 500),
    ),
)


@given(anything, st.integers(1, 8), st.floats(0, 200), st.floats(0, 1))
def test_a_submit_is_repeated_only_if_it_was_not_sent_or_patience_was_asked_for(
    outcome: NotSent | Failure, attempt: int, waited: float, jitter: float
) -> None:
    delay = retrying.submit_again_after(outcome, attempt=attempt, waited=waited, jitter=jitter)
    if delay is not None:
        unsent = isinstance(outcome, NotSent) and not outcome.permanent
        assert unsent or (isinstance(outcome, Failure) and outcome.kind is FailureKind.RATE_LIMITED)
        assert attempt < retrying.MAX_SUBMIT_ATTEMPTS
        assert 0 <= delay <= retrying.MAX_SUBMIT_WAIT - waited


@pytest.mark.parametrize(
    ("outcome", "delay"),
    [
        (NotSent("refused"), 1.0),
        (NotSent("no such file of certificates", permanent=True), None),
        (refusal(FailureKind.RATE_LIMITED), 1.0),
        (refusal(FailureKind.RATE_LIMITED, 9.0), 9.0),
        (refusal(FailureKind.RATE_LIMITED, 600.0), None),
        (refusal(FailureKind.BALANCE, 1.0), None),
        (unknown_outcome("the gateway answered with HTTP 503"), None),
    ],
)
def test_a_refused_submit_waits_as_long_as_it_was_asked_to(
    outcome: NotSent | Failure, delay: float | None
) -> None:
    assert retrying.submit_again_after(outcome, attempt=1, waited=0.0, jitter=0.0) == delay
