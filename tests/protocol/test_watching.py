"""One wait, round by round, with scripted replies and a clock of its own."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.protocol import watching
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.job import JobResult, JobState
from airflow_provider_uniapi_fal.protocol.messages import HttpReply, ReplyLost, Sent
from airflow_provider_uniapi_fal.protocol.retrying import MAX_READ_ATTEMPTS as READS
from airflow_provider_uniapi_fal.protocol.watching import FetchElsewhere, WaitMore, Watch, lasting
from tests.protocol.values import DIALECT, HANDLE, NOW, Conversation, failure, handle, reply

DONE = reply({"status": "COMPLETED", "metrics": {"inference_time": 2.0}})
PICTURE = reply({"images": [{"url": "https://x/a.png"}]})
GONE = reply({"status": "NOT_FOUND"}, 404)
OVERSIZED = HttpReply(200, {}, b"", oversized=True)


def queued(position: int | None = None) -> HttpReply:
    return reply({"status": "IN_QUEUE", **({} if position is None else {"queue_position": position})}, 202)


def running(*lines: Any) -> HttpReply:
    return reply({"status": "IN_PROGRESS", "logs": list(lines) or None}, 202)


def line(message: str, second: float | None = None) -> dict[str, Any]:
    return {"message": message, **({} if second is None else {"timestamp": f"2026-01-01T00:00:{second}"})}


@dataclass
class Wait:
    """A wait whose rounds are driven with replies; between rounds it lets the time pass that it was told."""

    watch: Watch = field(default_factory=lambda: Watch(HANDLE))
    now: float = NOW
    said: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    queries: list[dict[str, str]] = field(default_factory=list)

    def round(self, *answers: Sent, process: bool = False) -> watching.RoundEnd:
        """Make one round; with ``process`` first move to another process, the way a rescheduled sensor does."""
        if process:
            kept = json.loads(json.dumps(self.watch.progress(), allow_nan=False))
            assert kept == self.watch.progress(), "Airflow's stores take JSON values only: no tuples"
            names = ("deadline", "queue_deadline", "cancel_on_timeout", "poke_interval", "logs")
            settings: Any = {name: getattr(self.watch, name) for name in names}
            self.watch = Watch(self.watch.handle, **settings)
            self.watch.resume(kept)
        talk = Conversation(answers, now=self.now)
        end = talk.run(watching.one_round(self.watch, DIALECT, clock=talk.clock, jitter=lambda: 0.5))
        assert len(talk.sent) == len(answers), "fewer requests than answers"
        self.said += self.watch.take_news()
        self.paths += talk.paths
        self.queries += [dict(request.query) for request in talk.sent]
        if isinstance(end, WaitMore):
            self.now += end.seconds
        return end

    def waits(self, *answers: Sent, process: bool = False) -> float:
        end = self.round(*answers, process=process)
        assert isinstance(end, WaitMore), str(end)
        return end.seconds

    def count(self, text: str) -> int:
        return sum(text in said for said in self.said)


@pytest.mark.parametrize("process", [False, True], ids=["one process", "a process for each round"])
def test_a_job_is_followed_from_the_queue_to_its_result(process: bool) -> None:
    wait = Wait()
    wait.waits(queued(2), process=process)
    wait.waits(queued(2), process=process)
    wait.waits(queued(0), process=process)
    wait.waits(running(line("Loading", 1)), process=process)
    wait.waits(running(line("Loading", 1), line("Denoising", 2)), process=process)
    found = wait.round(DONE, PICTURE, process=process)
    assert isinstance(found, JobResult)
    assert wait.count("at position 2") == 1
    assert wait.count("at position 0") == 1
    assert wait.count("is running") == 1
    assert wait.count("| Loading") == 1
    assert wait.count("| Denoising") == 1
    assert wait.count("is completed") == 1
    assert wait.said[-1].startswith("Request r-1 is completed")
    assert wait.queries[0] == {"logs": "1"}


def test_the_result_is_fetched_in_the_round_that_sees_the_end() -> None:
    wait = Wait()
    assert isinstance(wait.round(DONE, PICTURE), JobResult)
    assert wait.paths == [HANDLE.status_path, HANDLE.response_path]


def test_a_completed_job_is_not_asked_for_its_status_again() -> None:
    wait = Wait()
    wait.waits(DONE, reply(b"<html>", 502))
    assert isinstance(wait.round(PICTURE, process=True), JobResult)
    assert wait.paths[-1] == HANDLE.response_path


def test_a_job_that_goes_back_into_the_queue_is_followed_on() -> None:
    wait = Wait()
    wait.waits(running())
    wait.waits(queued(5))
    wait.waits(running())
    assert wait.count("in the queue again at position 5") == 1
    assert wait.count("is running") == 2
    assert isinstance(wait.round(DONE, PICTURE), JobResult)


def test_times_add_up_from_submit_to_completion() -> None:
    wait = Wait()
    wait.now = NOW + 10
    wait.waits(running())
    wait.now = NOW + 13
    found = wait.round(DONE, PICTURE)
    assert isinstance(found, JobResult)
    assert (found.seconds_queued, found.seconds_running) == (10.0, 2.0)


@pytest.mark.parametrize(
    ("completed", "queued_for", "ran_for"),
    [({"metrics": {"inference_time": 5.0}}, 15.0, 5.0), ({"metrics": None}, 20.0, None)],
)
def test_a_job_that_was_never_seen_running_still_has_times(
    completed: dict[str, Any], queued_for: float, ran_for: float | None
) -> None:
    wait = Wait(now=NOW + 20)
    found = wait.round(reply({"status": "COMPLETED", **completed}), PICTURE)
    assert isinstance(found, JobResult)
    assert (found.seconds_queued, found.seconds_running) == (queued_for, ran_for)


def test_a_clock_that_is_behind_the_submitters_gives_no_negative_times() -> None:
    wait = Wait(now=NOW - 30)
    wait.waits(running())
    found = wait.round(DONE, PICTURE)
    assert isinstance(found, JobResult)
    assert found.seconds_queued == 0.0


# --- log lines ----------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 8), min_size=1, max_size=6), st.integers(1, 10), st.booleans())
def test_each_line_is_said_once_whether_the_server_sends_all_or_the_last_few(
    growth: list[int], window: int, process: bool
) -> None:
    wait = Wait()
    total = 0
    for more in growth:
        total += min(more, window)
        shown = [line(f"line {number}.", number) for number in range(total)]
        wait.waits(running(*shown[-window:]), process=process)
    assert [said.partition(" | ")[2] for said in wait.said if " | " in said] == [
        f"line {n}." for n in range(total)
    ]


def test_a_line_without_a_time_may_come_twice_and_is_said_twice() -> None:
    wait = Wait()
    wait.waits(running("tick", "tick"))
    wait.waits(running("tick", "tick", "tick"))
    assert wait.count("| tick") == 3


def test_no_line_of_a_very_long_log_is_said_again() -> None:
    wait = Wait()
    lines = [line(f"line {number}.", number) for number in range(watching.MAX_LINES_KEPT + 500)]
    wait.waits(running(*lines))
    said = len(wait.said)
    wait.waits(running(*lines, line("the last", 9999)))
    assert [text for text in wait.said[said:] if " | " in text] == ["Request r-1 | the last"]
    assert len(wait.watch.seen_lines) <= watching.MAX_LINES_KEPT


def test_a_line_cannot_forge_other_lines_and_is_bounded() -> None:
    wait = Wait()
    wait.waits(running(line("one\nERROR two\x1b[31m" + "x" * 9999, 1), line("  ", 2)))
    (said,) = [said for said in wait.said if " | " in said]
    assert said.isprintable()
    assert len(said) < watching.MAX_LINE_CHARS + 50


def test_a_wait_without_news_says_now_and_then_that_it_goes_on() -> None:
    wait = Wait(Watch(HANDLE, poke_interval=10.0))
    for _ in range(13):
        wait.waits(queued(1))
    assert wait.count("at position 1") == 3
    assert wait.count("queued for 2 minutes") == 1


def test_a_log_too_long_to_read_is_given_up_and_the_wait_goes_on() -> None:
    wait = Wait()
    wait.waits(OVERSIZED)
    wait.waits(running())
    assert wait.queries == [{"logs": "1"}, {}]
    assert wait.count("too long") == 1


# --- time ---------------------------------------------------------------------------------------------------


def test_a_fixed_interval_is_kept() -> None:
    wait = Wait(Watch(HANDLE, poke_interval=7.0))
    assert [wait.waits(queued(n)) for n in range(3)] == [7.0, 7.0, 7.0]


def test_without_one_looks_become_rarer_with_age() -> None:
    wait = Wait()
    steps = [wait.waits(queued()) for _ in range(60)]
    assert steps == sorted(steps)
    assert (steps[0], steps[-1]) == (1.5, 15.0)


@pytest.mark.parametrize(
    "answer", [reply({}, 429, retry_after="40"), reply(b"<html>", 503, retry_after="40")]
)
def test_the_servers_retry_after_is_kept(answer: HttpReply) -> None:
    assert Wait().waits(answer) == 40.0
    assert Wait(Watch(HANDLE, poke_interval=5.0)).waits(answer) == 40.0


def test_a_retry_after_on_the_result_is_kept() -> None:
    assert Wait().waits(DONE, reply({}, 429, retry_after="40")) == 40.0


def test_a_wait_never_sleeps_past_its_deadline_and_then_times_out() -> None:
    wait = Wait(Watch(HANDLE, deadline=NOW + 12, poke_interval=10.0))
    assert wait.waits(queued(4)) == 10.0
    assert wait.waits(queued(4)) == 2.0
    found = failure(wait.round(queued(4)))
    assert (found.kind, found.may_run, found.billed) == (FailureKind.TIMEOUT, True, "maybe")
    assert "12 seconds after the submit" in found.what
    assert "at position 4" in found.what


def test_a_result_that_is_there_at_the_deadline_is_taken() -> None:
    wait = Wait(Watch(HANDLE, deadline=NOW - 100))
    assert isinstance(wait.round(DONE, PICTURE), JobResult)


@pytest.mark.parametrize(
    ("answer", "says"), [(running(), "it is running"), (queued(), "still in the queue"), (GONE, "not known")]
)
def test_a_time_out_says_where_the_job_stood(answer: HttpReply, says: str) -> None:
    assert says in failure(Wait(Watch(HANDLE, deadline=NOW)).round(answer)).what


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(-5, "0.0 seconds"), (0.25, "0.2 seconds"), (75, "1 minute 15 seconds"), (3600, "1 hour")],
)
def test_durations_are_in_words(seconds: float, words: str) -> None:
    assert lasting(seconds) == words


def test_the_clock_of_the_queue_ends_a_wait_first_and_stops_when_the_job_runs() -> None:
    queueing = Wait(Watch(HANDLE, deadline=NOW + 30, queue_deadline=NOW + 12, poke_interval=10.0))
    assert [queueing.waits(queued(4)), queueing.waits(queued(4))] == [10.0, 2.0]
    found = failure(queueing.round(queued(4)))
    assert found.kind is FailureKind.QUEUE_TIMEOUT
    assert "(queue_timeout) 12 seconds after the submit" in found.what
    started = Wait(Watch(HANDLE, deadline=NOW + 25, queue_deadline=NOW + 12, poke_interval=10.0))
    waits = [started.waits(running(), process=True), started.waits(queued(4), process=True)]
    assert [*waits, started.waits(queued(4), process=True)] == [10.0, 10.0, 5.0]
    assert failure(started.round(queued(4), process=True)).kind is FailureKind.TIMEOUT


def test_both_clocks_at_once_are_told_as_the_one_of_the_queue() -> None:
    wait = Wait(Watch(HANDLE, deadline=NOW, queue_deadline=NOW))
    assert failure(wait.round(queued())).kind is FailureKind.QUEUE_TIMEOUT


def test_a_job_that_is_completed_has_left_the_queue() -> None:
    wait = Wait(Watch(HANDLE, queue_deadline=NOW - 1))
    wait.waits(DONE, reply(b"<html>", 502))
    assert isinstance(wait.round(PICTURE), JobResult)


REMOVED = reply({"status": "OK"})
REQUESTED = reply({"status": "CANCELLATION_REQUESTED"}, 202)
COMPLETED = reply({"status": "ALREADY_COMPLETED"}, 400)
REFUSED = reply({"detail": "Method Not Allowed"}, 405)
UNKNOWN = reply({"status": "NOT_FOUND"}, 404)
STOPPED = reply({"status": "COMPLETED", "error": "x", "error_type": "client_cancelled"})


@pytest.mark.parametrize("kind", [FailureKind.QUEUE_TIMEOUT, FailureKind.TIMEOUT])
@pytest.mark.parametrize(
    ("answers", "says", "billed", "may_run", "grace"),
    [
        ([REMOVED], "removed from the queue and will not run", "no", False, False),
        ([REQUESTED, STOPPED], "It was stopped", "maybe", False, True),
        ([reply({"status": "CANCELLED"}), STOPPED], "It was stopped", "maybe", False, True),
        ([REQUESTED, running()], "asked to cancel it, but it may still run", "maybe", True, True),
        ([REQUESTED, reply({}, 401)], "asked to cancel it, but it may still run", "maybe", True, True),
        ([REQUESTED, ReplyLost("reset")], "asked to cancel it, but it may still run", "maybe", True, True),
        ([ReplyLost("reset"), STOPPED], "It was stopped", "maybe", False, True),
        ([reply({}, 401), running()], "asked to cancel it, but it may still run", "maybe", True, True),
        ([REFUSED], "passes no cancellations on", "maybe", True, False),
        ([UNKNOWN], "does not know the job", "maybe", True, False),
    ],
)
def test_a_time_out_tells_the_fate_of_a_job_that_was_to_be_cancelled(
    kind: FailureKind, answers: list[Sent], says: str, billed: str, may_run: bool, grace: bool
) -> None:
    clocks: dict[str, Any] = {"queue_deadline" if kind is FailureKind.QUEUE_TIMEOUT else "deadline": NOW}
    watch = Watch(HANDLE, cancel_on_timeout=True, **clocks)
    talk = Conversation([queued(4), *answers])
    found = failure(talk.run(watching.one_round(watch, DIALECT, clock=talk.clock, jitter=lambda: 0.5)))
    assert len(talk.sent) == 1 + len(answers)
    assert (talk.sent[1].method, talk.sent[1].path) == ("PUT", HANDLE.cancel_path)
    assert talk.slept == ([watching.CANCEL_GRACE] if grace else [])
    assert (found.kind, found.billed, found.may_run) == (kind, billed, may_run)
    assert says in found.what
    # Only what can be submitted again without paying twice is called transient.
    assert found.transient is (answers[0] is REMOVED)
    again = (
        "looks at the same job again" if may_run else "may submit" if billed == "no" else "finds it cancelled"
    )
    assert found.retry_does.startswith(again)
    [told] = [line for line in watch.take_news() if "asked to cancel it" in line]
    assert "r-1" in told


@pytest.mark.parametrize("process", [False, True])
@pytest.mark.parametrize("again", [running(), queued()])
@pytest.mark.parametrize(
    ("answer", "says", "may_run"),
    [
        (STOPPED, "It was stopped", False),
        (running(), "it may still run", True),
        (GONE, "it may still run", True),
    ],
)
def test_a_job_that_was_seen_running_is_never_believed_to_have_been_taken_from_the_queue(
    process: bool, again: HttpReply, answer: HttpReply, says: str, may_run: bool
) -> None:
    wait = Wait(Watch(HANDLE, deadline=NOW + 60, cancel_on_timeout=True))
    wait.waits(running(), process=process)
    wait.now += 60
    found = failure(wait.round(again, REMOVED, answer, process=process))
    assert says in found.what
    assert (found.billed, found.may_run, found.transient) == ("maybe", may_run, False)


@pytest.mark.parametrize(
    "answers",
    [
        [COMPLETED, PICTURE],
        [COMPLETED, ReplyLost("reset"), PICTURE],
        [COMPLETED, GONE, PICTURE],
        [REQUESTED, DONE, PICTURE],
    ],
)
def test_a_job_that_was_completed_at_its_time_out_is_paid_for_and_its_result_is_taken(
    answers: list[Sent],
) -> None:
    wait = Wait(Watch(HANDLE, queue_deadline=NOW, cancel_on_timeout=True))
    assert isinstance(wait.round(queued(), *answers), JobResult)


def test_what_such_a_result_says_is_told_as_it_is() -> None:
    late: dict[str, Any] = {"deadline": NOW, "cancel_on_timeout": True}
    refusal = reply({"detail": [{"msg": "m", "type": "content_policy_violation"}]}, 422)
    refused = failure(Wait(Watch(HANDLE, **late)).round(running(), COMPLETED, refusal))
    assert refused.kind is FailureKind.CONTENT_REFUSED
    assert isinstance(Wait(Watch(HANDLE, **late)).round(running(), COMPLETED, OVERSIZED), FetchElsewhere)
    lost = failure(Wait(Watch(HANDLE, **late)).round(running(), COMPLETED, *[reply(b"<html>", 502)] * READS))
    assert (lost.kind, lost.may_run, lost.transient) == (FailureKind.TIMEOUT, True, False)
    assert "its result could not be had" in lost.what


@pytest.mark.parametrize("clock", ["deadline", "queue_deadline"])
def test_nothing_is_cancelled_unasked(clock: str) -> None:
    wait = Wait(Watch(HANDLE, **{clock: NOW}))  # type: ignore[arg-type]
    found = failure(wait.round(queued()))
    assert wait.paths == [HANDLE.status_path]
    assert found.what.endswith("It was not cancelled.")
    assert "looks at the same job again" in found.retry_does


# --- answers without meaning --------------------------------------------------------------------------------


@pytest.mark.parametrize("process", [False, True])
@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (reply({"status": "WARMING_UP"}), FailureKind.PROTOCOL),
        (reply({"detail": "hm"}), FailureKind.PROTOCOL),
        (reply({"detail": "hm"}, 400), FailureKind.PROTOCOL),
        (reply(b"", 302), FailureKind.PROTOCOL),
        (GONE, FailureKind.RESULT_EXPIRED),
    ],
)
def test_answers_without_meaning_end_the_wait_after_a_bounded_number_of_rounds(
    answer: HttpReply, kind: FailureKind, process: bool
) -> None:
    wait = Wait()
    for _ in range(watching.MAX_UNCLEAR - 1):
        wait.waits(answer, process=process)
    found = failure(wait.round(answer, process=process))
    assert (found.kind, found.may_run, found.transient) == (kind, True, False)


def test_a_clear_answer_between_them_begins_the_count_again() -> None:
    wait = Wait()
    for _ in range(3):
        for _ in range(watching.MAX_UNCLEAR - 1):
            wait.waits(reply({"status": "WARMING_UP"}))
        wait.waits(queued())


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"<html>", 502),
        reply({"detail": "x"}, 500),
        reply({}, 429),
        ReplyLost("reset"),
        reply(b""),
    ],
)
def test_passing_faults_never_end_the_wait(answer: Sent) -> None:
    wait = Wait()
    for _ in range(5 * watching.MAX_UNCLEAR):
        wait.waits(answer)
    assert isinstance(wait.round(DONE, PICTURE), JobResult)


@pytest.mark.parametrize("code", [200, 401, 402, 403, 404, 429, 500, 502])
def test_a_page_instead_of_an_answer_never_ends_the_wait_whatever_its_code(code: int) -> None:
    wait, page = Wait(), reply(b"<html>", code)
    for _ in range(5 * watching.MAX_UNCLEAR):
        wait.waits(page)
    wait.waits(DONE, page)
    for _ in range(5 * watching.MAX_UNCLEAR):
        wait.waits(page)
    assert isinstance(wait.round(PICTURE), JobResult)


@pytest.mark.parametrize("process", [False, True])
def test_a_job_is_looked_for_where_else_it_may_be_and_stays_with_the_place_found(process: bool) -> None:
    job = handle(model="bytedance/seedream/v4", status_path="/own/requests/r-1/status")
    wait = Wait(Watch(job))
    wait.waits(GONE, process=process)
    wait.waits(GONE, process=process)
    wait.waits(queued(), process=process)
    assert isinstance(wait.round(DONE, PICTURE, process=process), JobResult)
    assert wait.paths == [
        "/own/requests/r-1/status",
        "/bytedance/requests/r-1/status",
        "/bytedance/seedream/requests/r-1/status",
        "/bytedance/seedream/requests/r-1/status",
        "/bytedance/seedream/requests/r-1",
    ]


@pytest.mark.parametrize(("code", "kind"), [(401, FailureKind.AUTH), (403, FailureKind.BALANCE)])
@pytest.mark.parametrize("process", [False, True])
@pytest.mark.parametrize("where", [[], [DONE]])
def test_a_refused_key_or_account_ends_the_wait_after_a_few_looks(
    where: list[Sent], code: int, kind: FailureKind, process: bool
) -> None:
    wait, refusal = Wait(), reply({"detail": "x"}, code)
    wait.waits(*where, refusal, process=process)
    for _ in range(watching.MAX_UNCLEAR - 2):
        wait.waits(refusal, process=process)
    found = failure(wait.round(refusal, process=process))
    assert (found.kind, found.may_run) == (kind, not where)


@pytest.mark.parametrize("code", [401, 402, 403])
def test_a_refusal_that_passes_ends_no_wait(code: int) -> None:
    wait = Wait()
    for _ in range(3):
        for _ in range(watching.MAX_UNCLEAR - 1):
            wait.waits(reply({"detail": "x"}, code))
        wait.waits(queued())
    assert isinstance(wait.round(DONE, PICTURE), JobResult)


@pytest.mark.parametrize(
    ("answer", "asks"),
    [
        (reply({"detail": "x"}, 401), True),
        (reply(b"<html>", 401), True),
        (reply({"detail": "x"}, 403), False),
        (reply(b"<html>", 502), False),
        (queued(), False),
    ],
)
def test_only_a_refused_key_is_reason_to_read_the_connection_again(answer: HttpReply, asks: bool) -> None:
    assert watching.key_was_refused(Wait().round(answer)) is asks
    assert watching.key_was_refused(Wait().round(DONE, answer if answer.status != 200 else PICTURE)) is asks


# --- ends ---------------------------------------------------------------------------------------------------

FAILED = reply({"status": "COMPLETED", "error": "boom", "error_type": "runner_disconnected"})


@pytest.mark.parametrize(
    ("status", "result", "kind", "says"),
    [
        (
            DONE,
            reply({"detail": [{"msg": "m", "type": "content_policy_violation"}]}, 422),
            "content_refused",
            "m",
        ),
        (DONE, reply({"error": {"message": "m"}}), "job_failed", "m"),
        (DONE, reply({"images": []}), "job_failed", "no media"),
        (FAILED, reply({"detail": [{"msg": "more", "type": "image_too_small"}]}, 422), "input", "more"),
        (FAILED, PICTURE, "job_failed", "boom"),
        (FAILED, GONE, "job_failed", "boom"),
        (FAILED, reply(b"<html>", 502), "job_failed", "boom"),
        (FAILED, reply({"detail": "x"}, 401), "job_failed", "boom"),
        (FAILED, OVERSIZED, "job_failed", "boom"),
        (FAILED, ReplyLost("reset"), "job_failed", "boom"),
        (reply({"status": "FAILURE", "error": "boom"}), GONE, "job_failed", "boom"),
        (
            reply({"status": "COMPLETED", "error": "x", "error_type": "client_cancelled"}),
            reply({"detail": "x", "error_type": "client_cancelled"}, 499),
            "job_cancelled",
            "cancelled",
        ),
    ],
)
def test_a_failed_job_ends_the_wait_in_the_same_round(
    status: HttpReply, result: Sent, kind: str, says: str
) -> None:
    found = failure(Wait().round(status, result))
    assert found.kind.value == kind
    assert says in found.what
    assert found.request_id == "r-1"
    assert not found.may_run


def test_a_result_too_long_for_this_reader_is_left_to_another_with_the_place_found() -> None:
    wait = Wait()
    wait.waits(GONE)
    found = wait.round(DONE, OVERSIZED)
    assert isinstance(found, FetchElsewhere)
    assert found.handle.response_path == "/flux/dev/requests/r-1"


def test_progress_of_a_later_version_is_passed_over_and_never_replaces_the_job() -> None:
    watch = Watch(HANDLE)
    watch.resume({"state": "running", "unclear": 3, "handle": {"request_id": "other"}, "new_field": 1})
    assert (watch.state, watch.unclear, watch.handle) == (JobState.RUNNING, 3, HANDLE)
    assert not hasattr(watch, "new_field")


any_answer = st.sampled_from(
    [queued(1), running(line("a", 1)), DONE, PICTURE, GONE, FAILED, OVERSIZED, ReplyLost("reset")]
    + [
        reply(body, code)
        for body in ({}, b"", {"status": "X"}, {"error": "x"})
        for code in (200, 202, 401, 422, 502)
    ]
)


@given(st.lists(any_answer, min_size=30, max_size=30), st.booleans())
def test_whatever_is_answered_a_wait_with_a_deadline_ends(answers: list[Sent], process: bool) -> None:
    wait = Wait(Watch(HANDLE, deadline=NOW + 20, poke_interval=2.0))
    script = iter(answers)
    for _ in range(11):
        pair = [next(script), next(script)]
        talk = Conversation(pair, now=wait.now)
        end = talk.run(watching.one_round(wait.watch, DIALECT, clock=talk.clock, jitter=lambda: 0.0))
        if not isinstance(end, WaitMore):
            assert isinstance(end, (JobResult, Failure, FetchElsewhere))
            return
        assert {request.method for request in talk.sent} == {"GET"}
        wait.now += end.seconds
    raise AssertionError("the wait outlived its deadline")


def test_a_job_that_was_submitted_by_a_clock_that_is_ahead_is_looked_at_as_a_new_one() -> None:
    watch = Watch(handle(submitted_at=NOW + 3600))
    assert watching.seconds_to_first_look(watch, now=NOW, jitter=0.5) <= 1.5
