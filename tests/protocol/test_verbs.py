"""The conversations behind the hook's verbs, driven without a socket."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.protocol import retrying, verbs
from airflow_provider_uniapi_fal.protocol.dialects.base import (
    CancelOutcome,
    LookAgain,
    StatusReading,
    Submitted,
)
from airflow_provider_uniapi_fal.protocol.dialects.fal import FalDialect
from airflow_provider_uniapi_fal.protocol.errors import FailureKind
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult, JobState, JobStatus
from airflow_provider_uniapi_fal.protocol.messages import (
    Flow,
    HttpReply,
    HttpRequest,
    NotSent,
    ReplyLost,
    Sent,
)
from tests.protocol.values import DIALECT, HANDLE, Conversation, account, converse, failure, handle, reply

REQUEST = HttpRequest("POST", "fal", "/flux/dev", json={"prompt": "p"})
ACCEPTED = reply({"status": "IN_QUEUE", "request_id": "r-1"})
BUSY = reply({"detail": "x"}, 429, retry_after="2")
DOWN = reply(b"<html>", 502)
GONE = reply({"status": "NOT_FOUND"}, 404)
DONE = reply({"images": [{"url": "https://x/a.png"}]})


def submitting(talk: Conversation) -> Flow[Any]:
    return verbs.submit(
        DIALECT,
        REQUEST,
        model="flux/dev",
        fal_conn_id="c",
        account=account(),
        clock=talk.clock,
        jitter=lambda: 0.0,
    )


def test_an_accepted_submit_is_posted_once() -> None:
    found, talk = converse(submitting, ACCEPTED)
    assert isinstance(found, Submitted)
    assert talk.sent == [REQUEST]
    assert talk.slept == []
    assert found.handle.submitted_at == talk.now


def test_a_429_is_waited_out_as_asked_and_posted_again() -> None:
    found, talk = converse(submitting, BUSY, BUSY, ACCEPTED)
    assert isinstance(found, Submitted)
    assert talk.slept == [2.0, 2.0]


def test_a_submit_that_is_never_taken_gives_up_after_a_few_posts() -> None:
    found, _ = converse(submitting, *[BUSY] * retrying.MAX_SUBMIT_ATTEMPTS)
    assert failure(found).kind is FailureKind.RATE_LIMITED
    assert failure(found).retry_after == 2.0
    assert not failure(found).may_run


def test_a_wait_longer_than_a_submit_may_take_is_left_to_airflow() -> None:
    found, _ = converse(submitting, reply({}, 429, retry_after="3600"))
    assert failure(found).retry_after == 3600.0


def test_a_gateway_that_cannot_be_reached_says_that_nothing_was_sent() -> None:
    found, _ = converse(submitting, *[NotSent("refused")] * retrying.MAX_SUBMIT_ATTEMPTS)
    assert failure(found).kind is FailureKind.PROTOCOL
    assert "nothing was sent" in failure(found).what
    assert (failure(found).billed, failure(found).may_run) == ("no", False)


@pytest.mark.parametrize("before", [[], [BUSY], [NotSent("refused"), BUSY]])
def test_a_lost_reply_is_never_posted_again(before: list[Sent]) -> None:
    found, talk = converse(submitting, *before, ReplyLost("reset"))
    assert failure(found).kind is FailureKind.SUBMIT_OUTCOME_UNKNOWN
    assert (failure(found).billed, failure(found).may_run) == ("maybe", True)
    assert len(talk.sent) == len(before) + 1


sent_once = st.one_of(
    st.just(NotSent("refused")),
    st.just(ReplyLost("reset")),
    st.builds(
        lambda code, body, wait: HttpReply(code, {"retry-after": str(wait)}, body),
        st.integers(200, 599) | st.just(429),
        st.sampled_from([b"", b"{}", b"<html>", ACCEPTED.body, b'{"error": "x"}']),
        st.integers(0, 60),
    ),
)


@given(st.lists(sent_once, min_size=retrying.MAX_SUBMIT_ATTEMPTS, max_size=retrying.MAX_SUBMIT_ATTEMPTS))
def test_nothing_is_posted_after_the_first_answer_that_may_have_been_an_acceptance(
    answers: list[Sent],
) -> None:
    talk = Conversation(answers)
    talk.run(submitting(talk))
    for sent in answers[: len(talk.sent) - 1]:
        assert isinstance(sent, NotSent) or (isinstance(sent, HttpReply) and sent.status == 429)
    assert sum(talk.slept) <= retrying.MAX_SUBMIT_WAIT


def asking(talk: Conversation) -> Flow[Any]:
    return verbs.status(DIALECT, HANDLE, logs=False, clock=talk.clock, jitter=lambda: 0.0)


def fetching(talk: Conversation) -> Flow[Any]:
    return verbs.result(DIALECT, HANDLE, clock=talk.clock, jitter=lambda: 0.0)


def test_a_read_outlasts_a_passing_fault() -> None:
    found, talk = converse(asking, DOWN, NotSent("x"), reply({"status": "IN_QUEUE"}, 202))
    assert isinstance(found, JobStatus)
    assert talk.slept == [1.0, 2.0]


def test_a_read_gives_up_after_a_few_attempts() -> None:
    found, _ = converse(fetching, *[ReplyLost("reset")] * retrying.MAX_READ_ATTEMPTS)
    assert isinstance(found, LookAgain)
    told = verbs.unclear(HANDLE, found)
    assert (told.kind, told.may_run, told.request_id) == (FailureKind.PROTOCOL, True, "r-1")
    assert "the connection's host" in told.advice


def test_a_read_waits_as_asked_but_no_worker_sleeps_for_long() -> None:
    _, talk = converse(asking, reply({}, 429, retry_after="4"), reply({}, 429, retry_after="999"), ACCEPTED)
    assert talk.slept == [4.0, retrying.LONGEST_READ_PAUSE]


def test_a_job_is_looked_for_in_all_its_places_at_once() -> None:
    found, talk = converse(asking, GONE, reply({"status": "IN_PROGRESS"}))
    assert isinstance(found, JobStatus)
    assert talk.paths == ["/flux/requests/r-1/status", "/flux/dev/requests/r-1/status"]
    assert talk.slept == []


def test_a_job_that_is_in_none_of_its_places_is_expired_and_not_resubmitted() -> None:
    found, talk = converse(fetching, GONE, GONE)
    assert isinstance(found, LookAgain)
    assert verbs.unclear(HANDLE, found).kind is FailureKind.RESULT_EXPIRED
    assert {request.method for request in talk.sent} == {"GET"}


def test_a_result_that_is_not_ready_is_not_waited_for() -> None:
    found, _ = converse(fetching, reply({"status": "IN_PROGRESS"}, 202))
    assert isinstance(found, LookAgain)


def test_a_result_is_fetched() -> None:
    found, _ = converse(fetching, DONE)
    assert isinstance(found, JobResult)


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (reply({"status": "OK"}), CancelOutcome.REMOVED),
        (ReplyLost("reset"), CancelOutcome.UNCLEAR),
        (NotSent("refused"), CancelOutcome.UNCLEAR),
    ],
)
def test_a_cancel_is_asked_once(answer: Sent, outcome: CancelOutcome) -> None:
    found, talk = converse(lambda _: verbs.cancel(DIALECT, HANDLE), answer)
    assert found is outcome
    assert [request.method for request in talk.sent] == ["PUT"]


def test_a_job_without_a_cancel_path_is_not_asked_about() -> None:
    found, _ = converse(lambda _: verbs.cancel(DIALECT, handle(cancel_path=None)))
    assert found is CancelOutcome.UNSUPPORTED


MODELS = reply({"object": "list", "data": []})


@pytest.mark.parametrize(
    ("answers", "ok", "says"),
    [
        ([reply({"success": True, "data": {"balance": -1}})], True, "accepted the key"),
        ([reply({"success": True, "data": {"balance": 12.5}})], True, "12.5"),
        ([reply({"success": True, "data": {"balance": 0}})], False, "no balance"),
        ([reply({"data": None}), MODELS], True, "accepted the key"),
        ([reply({"data": {"used": 3}}), reply({"data": {}})], False, "no such gateway"),
        ([reply({}), reply({"data": [{"name": "x"}]})], False, "no such gateway"),
        ([reply({}), reply({"data": [{"id": "flux"}]})], True, "accepted the key"),
        ([reply({"error": {"message": "Incorrect API key sk-1"}})], False, "most likely of the key"),
        ([reply({"error": "nope", "data": {"balance": 5}})], False, "most likely of the key"),
        ([reply({"success": False, "message": "token invalid"})], False, "most likely of the key"),
        ([reply({"success": False, "message": "余额不足"})], False, "no balance"),
        ([reply({"code": 401, "message": "x", "data": None})], False, "most likely of the key"),
        ([reply({"code": 403, "message": "x", "data": None})], False, "no balance"),
        ([reply({"code": "invalid_token", "data": {"balance": 5}})], False, "most likely of the key"),
        ([reply({"status": "FAILURE", "data": {"balance": 5}})], False, "most likely of the key"),
        ([reply({"code": 0, "data": {"balance": 5}})], True, "balance of 5"),
        ([reply({"code": "success", "data": {"balance": 5}})], True, "balance of 5"),
        ([reply({"data": {"balance": True}}), MODELS], True, "Nothing was spent"),
        ([reply({"detail": "x"}, 401)], False, "refused the key"),
        ([reply({}, 402)], False, "balance"),
        ([reply({}, 403)], False, "balance"),
        ([reply(b"", 404), MODELS], True, "accepted the key"),
        ([reply(b"", 404), reply(b"", 404)], False, "no such gateway"),
        ([reply(b"<html>"), reply(b"<html>")], False, "no such gateway"),
        ([reply(b"", 301), reply(b"", 301)], False, "no such gateway"),
        ([reply(b"", 503)], False, "503"),
        ([NotSent("ConnectionRefusedError")], False, "cannot be reached"),
        ([ReplyLost("reset")], False, "cannot be reached"),
        ([NotSent("gaierror: Name or service not known")], False, "No host of this name"),
        ([NotSent("ConnectionRefusedError: Connection refused")], False, "nothing listens"),
        ([NotSent("OSError: Network is unreachable")], False, "no way to it"),
        ([NotSent("SSLCertVerificationError: 1")], False, "not trusted"),
        ([ReplyLost("ReadTimeout")], False, "No answer came in time"),
        ([NotSent("no CA certificates can be read from /nope")], False, "Look at ca_bundle"),
        ([NotSent("something new")], False, "Look at host, network and proxy"),
    ],
)
def test_the_probe_tells_key_address_balance_and_network_apart(
    answers: list[Sent], ok: bool, says: str
) -> None:
    (found, text), talk = converse(lambda _: verbs.probe(), *answers)
    assert found is ok
    assert says in text
    assert "sk-" not in text
    assert {(request.method, request.family) for request in talk.sent} == {("GET", "openai")}


def test_a_status_is_read_whole() -> None:
    found, _ = converse(asking, reply({"status": "COMPLETED", "metrics": {"inference_time": 2.5}}))
    assert found == JobStatus(JobState.SUCCEEDED, "COMPLETED", inference_time=2.5)


class Counting(FalDialect):
    """Counts what it reads."""

    def __init__(self) -> None:
        self.read = 0

    def read_status(self, handle: JobHandle, reply: HttpReply, now: float) -> StatusReading:
        self.read += 1
        return super().read_status(handle, reply, now)


def looks(dialect: FalDialect, answers: list[HttpReply], last: verbs.LastLook | None) -> list[StatusReading]:
    def asking(talk: Conversation) -> Flow[StatusReading]:
        return verbs.look(dialect, HANDLE, logs=False, clock=talk.clock, last=last)

    return [converse(asking, answer)[0] for answer in answers]


RUNS = reply({"status": "IN_PROGRESS"}, 202)
STATUSES = [
    RUNS,
    reply({"status": "IN_PROGRESS"}, 500),
    reply({"status": "IN_QUEUE", "queue_position": 3}, 202),
    reply({"status": "IN_QUEUE", "queue_position": 2}, 202),
    reply({"status": "BORED"}),
    reply({"status": "COMPLETED"}),
    HttpReply(202, {}, b"", oversized=True),
    reply(b""),
    DOWN,
    BUSY,
    GONE,
]


@given(st.lists(st.sampled_from(STATUSES), max_size=8))
def test_what_the_last_look_brought_changes_no_reading(answers: list[HttpReply]) -> None:
    assert looks(DIALECT, answers, verbs.LastLook()) == looks(DIALECT, answers, None)


def test_a_reply_that_says_the_same_again_is_read_once() -> None:
    dialect = Counting()
    looks(dialect, [RUNS, RUNS, DOWN, RUNS], verbs.LastLook())
    assert dialect.read == 2


def test_a_long_reply_is_not_kept() -> None:
    """Ten thousand waits keep as many replies."""
    dialect = Counting()
    long = reply({"status": "IN_PROGRESS", "logs": [{"message": "step " * verbs.LONGEST_KEPT}]}, 202)
    looks(dialect, [long, long], verbs.LastLook())
    assert dialect.read == 2
