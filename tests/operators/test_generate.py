"""One task that submits, waits and delivers: blocking and deferrable are the same promise."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, TaskDeferred

from airflow_provider_uniapi_fal.exceptions import (
    FalAuthError,
    FalBalanceError,
    FalContentRefused,
    FalError,
    FalInputError,
    FalJobFailed,
    FalProtocolError,
    FalQueueTimeout,
    FalRateLimited,
    FalTimeout,
)
from airflow_provider_uniapi_fal.hooks import task_states
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.ledger.record import JobRecord, Phase
from airflow_provider_uniapi_fal.ledger.task_state import KEY as LEDGER_KEY
from airflow_provider_uniapi_fal.ledger.task_state import TaskLedger
from airflow_provider_uniapi_fal.operators import generating as operators
from airflow_provider_uniapi_fal.operators import submitting
from airflow_provider_uniapi_fal.operators.fal import FalGenerateOperator
from airflow_provider_uniapi_fal.protocol import cadence, watching
from airflow_provider_uniapi_fal.protocol.job import JobHandle
from airflow_provider_uniapi_fal.protocol.watching import Watch
from airflow_provider_uniapi_fal.triggers import fal as triggers
from tests.fakes import (
    ARGUMENTS,
    KEY,
    MODEL,
    PROMPT,
    StateStore,
    Task,
    as_json,
    calls,
    fired,
    posts,
    set_connection,
    wait_until,
)

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.running import Emulator
    from airflow_provider_uniapi_fal.protocol.errors import Failure
    from tests.fakes import Start

Generate = Callable[..., Any]

MODES: dict[str, dict[str, Any]] = {
    "blocking": {"deferrable": False},
    "deferrable": {"deferrable": True, "defer_after": 0.0},
}
#: Long enough that the job is still running when a deferrable task defers.
SHORT = {"run_seconds": 0.15}
LONG = {"run_seconds": 60.0}
OTHER = {**ARGUMENTS, "prompt": "something else"}


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """No scheduler races with these tests, and the emulator obeys a cancel at once."""
    monkeypatch.setattr(operators, "RACE_SECONDS", 0.0)
    monkeypatch.setattr(watching, "CANCEL_GRACE", 0.05)


@pytest.fixture(params=MODES)
def generate(request: pytest.FixtureRequest) -> Generate:
    """Return a function that runs one try in one of the modes."""
    return lambda task, **options: run(MODES[request.param], task, **options)


def operator(**options: Any) -> FalGenerateOperator:
    settings: dict[str, Any] = {"model": MODEL, "arguments": ARGUMENTS, "poke_interval": 0.05, "timeout": 20}
    return FalGenerateOperator(task_id="generate", **{**settings, **options})


def run(mode: dict[str, Any], task: Task, **options: Any) -> Any:
    """Run a try; each leg of it has an operator of its own, as each has a process of its own."""
    try:
        return operator(**mode, **options).execute(task.context)
    except TaskDeferred as deferred:
        deferral = deferred
    event = fired(deferral)
    return operator(**mode, **options).resume_execution(deferral.method_name, {"event": event}, task.context)


def until_delivered(generate: Generate, task: Task, **options: Any) -> Any:
    """Run a try to its end, however often it defers."""
    try:
        return generate(task, **options)
    except TaskDeferred as deferred:
        event = fired(deferred)
        return operator(**options).resume_execution(deferred.method_name, {"event": event}, task.context)


def fails(generate: Generate, task: Task, error: type[FalError] = FalError, **options: Any) -> Failure:
    with pytest.raises(error) as raised:
        generate(task, **options)
    assert task.xcoms["failure"]["message"] == str(raised.value)
    return raised.value.failure


def phase(task: Task) -> Phase:
    return JobRecord.from_json(task.store.get(LEDGER_KEY)).phase


def jobs(emulator: Emulator) -> list[dict[str, Any]]:
    return list(emulator.account()["jobs"])


# --- success ------------------------------------------------------------------------------------------------


def test_the_result_is_returned_and_the_job_is_named_in_xcom(start: Start, generate: Generate) -> None:
    emulator = start(**SHORT)
    task = Task()
    result = generate(task)
    [job] = jobs(emulator)
    assert result["handle"]["request_id"] == task.xcoms["request_id"] == job["request_id"]
    assert [file["where"] for file in result["media"]] == ["images[0]"]
    assert result["seconds_running"] == pytest.approx(0.15, abs=0.05)
    address = f"{emulator.url}/fal-ai/flux/requests/{job['request_id']}"
    assert task.xcoms == {
        "request_id": job["request_id"],
        "status_url": f"{address}/status",
        "response_url": address,
    }
    assert phase(task) is Phase.DELIVERED
    assert calls(emulator, "cancel") == []


@pytest.mark.parametrize("cleared", [False, True])
def test_a_success_that_was_not_delivered_is_delivered_without_a_post(
    start: Start, generate: Generate, cleared: bool
) -> None:
    emulator = start(**SHORT)
    task = Task()
    first, xcoms = generate(task), task.xcoms
    written = task.store.get(LEDGER_KEY)
    task.store.set(LEDGER_KEY, {**written, "phase": "submitted"})
    again = generate(task.next_try(cleared=cleared))
    assert (again["handle"], again["media"], task.xcoms) == (first["handle"], first["media"], xcoms)
    assert posts(emulator) == 1
    assert phase(task) is Phase.DELIVERED


@pytest.mark.parametrize("cleared", [False, True])
def test_the_next_try_re_attaches_to_a_live_job(start: Start, generate: Generate, cleared: bool) -> None:
    emulator = start(run_seconds=0.5)
    task = Task()
    with pytest.raises(TaskDeferred):
        operator(defer_after=0.0).execute(task.context)
    assert phase(task) is Phase.SUBMITTED
    xcoms = task.xcoms
    assert generate(task.next_try(cleared=cleared))["media"]
    assert task.xcoms == xcoms
    assert posts(emulator) == 1


def submitted_by_a_first_try(start: Start) -> tuple[Emulator, Task, JobHandle]:
    """Begin a task whose first job runs until it is cancelled; every later job is short."""
    emulator = start(obeys_cancel=True, faults=["job times=1 run_seconds=60"], **SHORT)
    task = Task()
    with pytest.raises(TaskDeferred):
        operator(defer_after=0.0).execute(task.context)
    return emulator, task, JobHandle.from_json(task.store.get(LEDGER_KEY)["handle"])


def cancel_once_it_is_looked_at(emulator: Emulator, handle: JobHandle) -> threading.Thread:
    """Cancel a job as the trigger that a clear has killed would, but later than the next try begins to wait."""
    looks = len(calls(emulator, "status"))

    def cancel() -> None:
        # A clear asks first how the job stands; the second look is that of the wait.
        wait_until(lambda: len(calls(emulator, "status")) >= looks + 2)
        FalHook().cancel(handle)

    thread = threading.Thread(target=cancel)
    thread.start()
    return thread


def test_a_job_that_the_clear_itself_has_cancelled_is_made_again_in_the_same_try(
    start: Start, generate: Generate
) -> None:
    emulator, task, first = submitted_by_a_first_try(start)
    cancelling = cancel_once_it_is_looked_at(emulator, first)
    result = until_delivered(generate, task.next_try(cleared=True))
    cancelling.join()
    assert posts(emulator) == 2
    assert task.xcoms["request_id"] == result["handle"]["request_id"] != first.request_id
    assert "failure" not in task.xcoms
    assert phase(task) is Phase.DELIVERED


def test_so_it_is_by_the_next_try_if_this_one_finds_no_place_for_it(start: Start, generate: Generate) -> None:
    emulator, task, first = submitted_by_a_first_try(start)
    emulator.add_fault("rate-limit retry_after=0")
    cancelling = cancel_once_it_is_looked_at(emulator, first)
    fails(generate, task.next_try(cleared=True), FalRateLimited)
    cancelling.join()
    emulator.clear_faults()
    assert generate(task.next_try())["media"]
    assert emulator.account()["totals"]["posts_accepted"] == 2


def test_a_job_that_somebody_cancels_before_a_retry_is_not_made_again(
    start: Start, generate: Generate
) -> None:
    emulator, task, first = submitted_by_a_first_try(start)
    cancelling = cancel_once_it_is_looked_at(emulator, first)
    assert fails(generate, task.next_try()).kind.value == "job_cancelled"
    cancelling.join()
    assert fails(generate, task.next_try()).kind.value == "job_cancelled"
    assert posts(emulator) == 1


def test_what_somebody_cancels_in_a_retry_after_a_clear_is_not_made_again(
    start: Start, generate: Generate
) -> None:
    emulator, task, first = submitted_by_a_first_try(start)
    with pytest.raises(TaskDeferred):
        operator(defer_after=0.0).execute(task.next_try(cleared=True).context)
    FalHook().cancel(first)
    assert fails(generate, task.next_try()).kind.value == "job_cancelled"
    assert fails(generate, task.next_try()).kind.value == "job_cancelled"
    assert posts(emulator) == 1


@pytest.mark.parametrize("reason", ["cancels nothing", "long after"])
def test_what_somebody_cancels_after_a_clear_that_cannot_have_done_it_is_not_made_again(
    start: Start, generate: Generate, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    if reason == "long after":
        monkeypatch.setattr(operators, "CLEAR_SECONDS", -1.0)
    emulator, task, first = submitted_by_a_first_try(start)
    cancelling = cancel_once_it_is_looked_at(emulator, first)
    failed = fails(generate, task.next_try(cleared=True), cancel_on_kill=reason == "long after")
    cancelling.join()
    assert failed.kind.value == "job_cancelled"
    assert fails(generate, task.next_try()).kind.value == "job_cancelled"
    assert posts(emulator) == 1


def test_what_a_time_out_cancels_after_a_clear_is_not_taken_for_the_clears_own(
    start: Start, generate: Generate
) -> None:
    emulator, task, _ = submitted_by_a_first_try(start)
    emulator.add_fault(fault="body", on="status", status="IN_PROGRESS")
    assert fails(generate, task.next_try(cleared=True), timeout=0.3).may_run
    emulator.clear_faults()
    assert fails(generate, task.next_try()).kind.value == "job_cancelled"
    assert posts(emulator) == 1


def test_a_clear_counts_once_and_a_retry_after_it_does_not_submit_again(
    start: Start, generate: Generate
) -> None:
    emulator = start(run_seconds=0.5, failure="completed-error", error_type="bad_request")
    task = Task()
    for cleared in (None, True):
        with pytest.raises(TaskDeferred):
            operator(defer_after=0.0).execute(
                (task if cleared is None else task.next_try(cleared=True)).context
            )
    wait_until(lambda: emulator.account()["jobs"][0]["state"] == "finished")
    with pytest.raises(FalInputError):
        generate(task.next_try(cleared=False))
    assert posts(emulator) == 1


def test_a_clear_after_the_delivery_makes_a_new_one_unless_told_to_reuse(
    start: Start, generate: Generate
) -> None:
    emulator = start(**SHORT)
    task = Task()
    first = generate(task)["handle"]
    assert generate(task.next_try(cleared=True), on_clear="reuse")["handle"] == first
    assert posts(emulator) == 1
    assert generate(task.next_try(cleared=True))["handle"]["request_id"] != first["request_id"]
    assert posts(emulator) == 2


def test_a_result_too_long_for_the_trigger_is_the_same_result(
    start: Start, generate: Generate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "MAX_EVENT_BYTES", 100)
    start(**SHORT)
    task = Task()
    result = generate(task)
    assert [file["where"] for file in result["media"]] == ["images[0]"]
    assert result["seconds_running"] == pytest.approx(0.15, abs=0.05)
    assert phase(task) is Phase.DELIVERED


def test_data_uris_are_left_out_of_xcom(start: Start, generate: Generate) -> None:
    start(data_uris=True, **SHORT)
    result = generate(Task())
    assert "base64" not in json.dumps(result)
    assert result["media"][0]["url"] is None


# --- a job that ends badly ----------------------------------------------------------------------------------


def test_after_an_unbilled_failure_that_may_pass_the_next_try_submits_again(
    start: Start, generate: Generate
) -> None:
    emulator = start(faults=["job failure=completed-error error_type=runner_disconnected times=1"], **SHORT)
    task = Task()
    failed = fails(generate, task, FalJobFailed)
    assert (failed.billed, failed.may_run, failed.transient) == ("no", False, True)
    assert "A retry submits again." in str(failed)
    assert generate(task.next_try())["media"]
    assert "failure" not in task.xcoms
    assert posts(emulator) == 2


@pytest.mark.parametrize(
    ("failure", "error"), [("result-422", FalInputError), ("refused", FalContentRefused)]
)
def test_after_a_failure_for_good_a_retry_fails_alike_without_a_post_and_a_clear_submits(
    start: Start, generate: Generate, failure: str, error: type[FalError]
) -> None:
    emulator = start(faults=[f"job failure={failure} times=1"], **SHORT)
    task = Task()
    failed = fails(generate, task, error)
    assert "A retry fails at once, with this error; a clear submits again." in str(failed)
    asked = len(emulator.requests())
    assert fails(generate, task.next_try(), error) == failed
    assert len(emulator.requests()) == asked
    assert generate(task.next_try(cleared=True))["media"]
    assert posts(emulator) == 2


@pytest.mark.parametrize("fault", ["html", "server-error"])
@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_refusal_that_passes_and_a_page_of_html_end_no_wait(
    start: Start, generate: Generate, fault: str, status: int
) -> None:
    # Of pages more than of anything that is counted.
    times = 20 if fault == "html" else 5
    emulator = start(
        run_seconds=0.3,
        faults=[f"{fault} on={on} status={status} times={times}" for on in ("status", "result")],
    )
    assert generate(Task(), poke_interval=0.01)["media"]
    assert posts(emulator) == 1


def test_a_worker_that_defers_at_once_leaves_a_young_job_to_the_stream(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As if the way from the submit to the wait had taken longer than a job rests before its first look.
    monkeypatch.setattr(cadence, "SHORTEST", 0.0)
    emulator = start(stream="offered", run_seconds=1.0)
    task = Task()
    with pytest.raises(TaskDeferred) as deferral:
        operator(defer_after=0.0, watch="stream", poke_interval=None).execute(task.context)
    assert fired(deferral.value)["result"]
    assert len(calls(emulator, "stream")) == len(calls(emulator, "result")) == posts(emulator) == 1
    assert calls(emulator, "status") == []


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("server-error status=401", FalAuthError),
        ("server-error status=403", FalBalanceError),
        ("redirect", FalProtocolError),
    ],
)
def test_a_wait_that_is_refused_never_ends_its_job_in_the_ledger(
    start: Start, generate: Generate, fault: str, error: type[FalError]
) -> None:
    emulator = start(**LONG, faults=[f"{fault} on=status"])
    task = Task()
    for cleared in (False, False, True):
        failed = fails(generate, task.next_try(cleared=cleared), error)
        assert (failed.billed, failed.may_run) == ("maybe", True)
        # Airflow makes no retry after the first two.
        made = not issubclass(error, AirflowFailException)
        again = "of a wait looks again." if made else "is not made; a clear looks at the same job again."
        assert f"A retry {again}" in str(failed)
        assert phase(task) is Phase.SUBMITTED
    emulator.clear_faults()
    for cleared in (False, True):
        with pytest.raises(TaskDeferred):
            operator(defer_after=0.0).execute(task.next_try(cleared=cleared).context)
    assert posts(emulator) == 1


class LosingStore(StateStore):
    """A store that says that it has written the records of a phase, and has not."""

    def __init__(self, lost: Phase) -> None:
        super().__init__()
        self._lost = lost.value

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        if value["phase"] != self._lost:
            super().set(key, value)


@pytest.mark.parametrize("lost", [Phase.SUBMITTED, Phase.DELIVERED])
def test_a_record_that_is_silently_lost_costs_neither_the_result_nor_a_second_post(
    start: Start, generate: Generate, lost: Phase
) -> None:
    emulator = start(**SHORT)
    task = Task(store=LosingStore(lost))
    first = generate(task)
    # What was lost before the delivery is made good by it.
    assert phase(task) is (Phase.DELIVERED if lost is Phase.SUBMITTED else Phase.SUBMITTED)
    assert generate(task.next_try())["handle"] == first["handle"]
    assert posts(emulator) == 1


def test_a_result_is_delivered_although_the_ledger_does_not_take_that_it_was(
    start: Start, generate: Generate, capsys: pytest.CaptureFixture[str]
) -> None:
    class Away(StateStore):
        def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
            if value["phase"] == "delivered":
                raise OSError("the store is away")
            super().set(key, value)

    emulator = start(**SHORT)
    task = Task(store=Away())
    first = generate(task)
    assert first["media"]
    assert "the store is away" in capsys.readouterr().out
    assert generate(task.next_try(cleared=True))["handle"] == first["handle"]
    assert posts(emulator) == 1


@pytest.mark.parametrize("lost", [Phase.SUBMITTED, Phase.ENDED])
@pytest.mark.parametrize("cleared", [False, True])
def test_a_record_that_is_silently_lost_leads_to_no_post_while_its_job_may_run(
    start: Start, generate: Generate, lost: Phase, cleared: bool
) -> None:
    emulator = start(**LONG)
    task = Task(store=LosingStore(lost))
    for _ in range(2):
        failure = fails(generate, task, timeout=0.3, cancel_on_timeout=False)
        assert failure.may_run
        task.next_try(cleared=cleared)
    assert posts(emulator) == 1


@pytest.mark.parametrize("lost", [Phase.SUBMITTED, Phase.ENDED])
def test_a_record_that_is_silently_lost_leads_to_no_post_where_the_job_failed_for_good(
    start: Start, generate: Generate, lost: Phase
) -> None:
    emulator = start(failure="result-422", **SHORT)
    task = Task(store=LosingStore(lost))
    fails(generate, task)
    fails(generate, task.next_try())
    assert posts(emulator) == 1


@pytest.mark.parametrize("cleared", [False, True])
def test_a_connection_that_breaks_while_the_job_runs_does_not_end_the_job(
    start: Start, monkeypatch: pytest.MonkeyPatch, cleared: bool
) -> None:
    emulator = start(run_seconds=1.0)
    task = Task()
    with pytest.raises(TaskDeferred) as deferral:
        operator(defer_after=0.0).execute(task.context)
    set_connection(monkeypatch, emulator.url, connect_timeout="soon")
    resumed = operator()
    event = fired(deferral.value)
    with pytest.raises(FalInputError, match="connect_timeout") as raised:
        resumed.resume_execution("execute_complete", {"event": event}, task.context)
    assert (raised.value.billed, raised.value.may_run) == ("maybe", True)
    set_connection(monkeypatch, emulator.url)
    assert run(MODES["blocking"], task.next_try(cleared=cleared))["media"]
    assert posts(emulator) == 1


def test_so_it_is_if_a_worker_reads_the_connection_again_because_the_key_is_refused(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(stuck=True, faults=["server-error status=401 on=status"])
    hook = FalHook()
    submitted: Any = hook.submit(MODEL, ARGUMENTS)
    set_connection(monkeypatch, emulator.url, connect_timeout="soon")
    end: Any = hook.one_round(Watch(submitted.handle))
    assert "connect_timeout" in end.what
    assert (end.billed, end.may_run, end.request_id) == ("maybe", True, submitted.handle.request_id)


def test_a_job_that_the_gateway_has_forgotten_is_made_again_by_a_clear_only(
    start: Start, generate: Generate
) -> None:
    emulator = start(faults=["server-error on=status status=404"], **SHORT)
    task = Task()
    for _ in range(2):
        failed = fails(generate, task.next_try())
        assert failed.kind.value == "result_expired"
    assert posts(emulator) == 1
    with pytest.raises(FalError):
        generate(task.next_try(cleared=True))
    assert posts(emulator) == 2


@pytest.mark.parametrize("lost", ["status", "result"])
@pytest.mark.parametrize("run_seconds", [0.1, 2.0])
def test_a_job_that_was_not_found_for_a_while_is_taken_up_by_a_clear_and_not_paid_for_again(
    start: Start, generate: Generate, lost: str, run_seconds: float
) -> None:
    emulator = start(run_seconds=run_seconds, faults=[f"server-error on={lost} status=404"])
    task = Task()
    failed = fails(generate, task)
    assert failed.kind.value == "result_expired"
    assert "a clear looks again" in str(failed)
    emulator.clear_faults()
    assert until_delivered(generate, task.next_try(cleared=True))["media"]
    assert posts(emulator) == 1


def test_a_retry_after_such_a_clear_waits_for_the_same_job(start: Start) -> None:
    emulator = start(faults=["server-error on=result status=404"], **SHORT)
    task = Task()
    fails(lambda task: run(MODES["blocking"], task), task)
    emulator.clear_faults()
    # The worker that met the clear dies before the result has come.
    operator().submitted(task.next_try(cleared=True).context, FalHook(), TaskLedger(task.store))
    assert run(MODES["blocking"], task.next_try())["media"]
    assert posts(emulator) == 1


def test_a_result_that_stays_away_after_a_clear_is_made_again(start: Start, generate: Generate) -> None:
    emulator = start(faults=["server-error on=result status=404"], **SHORT)
    task = Task()
    fails(generate, task)
    fails(generate, task.next_try(cleared=True))
    assert posts(emulator) == 2


@pytest.mark.parametrize(("on_clear", "more"), [("regenerate", 1), ("reuse", 0)])
def test_a_clear_of_a_delivered_job_that_is_not_known_any_more_pays_only_if_it_is_to(
    start: Start, generate: Generate, monkeypatch: pytest.MonkeyPatch, on_clear: str, more: int
) -> None:
    monkeypatch.setattr(submitting, "KEPT_SECONDS", 0.0)
    emulator = start(**SHORT)
    task = Task()
    generate(task)
    emulator.add_fault("server-error on=status status=404")
    assert fails(generate, task.next_try(cleared=True), on_clear=on_clear).kind.value == "result_expired"
    assert posts(emulator) == 1 + more


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ({"failure": "completed-error", **SHORT}, {}),
        ({"failure": "result-500", **SHORT}, {}),
        ({"failure": "result-422", **SHORT}, {}),
        ({"failure": "refused", **SHORT}, {}),
        ({"failure": "no-media", **SHORT}, {}),
        ({"failure": "completed-error", "error_type": "client_cancelled", **SHORT}, {}),
        ({"stuck": True}, {"queue_timeout": 0.3}),
        ({"stuck": True, "faults": ["server-error status=401 on=status"]}, {}),
        ({"failure": "status-failure"}, {}),
    ],
)
def test_blocking_and_deferrable_raise_equal_errors(
    start: Start, settings: dict[str, Any], options: dict[str, Any]
) -> None:
    start(**settings)
    seen = []
    for mode in MODES.values():
        with pytest.raises(FalError) as raised:
            run(mode, Task(), **options)
        failure = raised.value.failure
        what = re.sub(r"\d\.\d seconds", "a while", failure.what)
        seen.append((type(raised.value), replace(failure, request_id="", what=what)))
    assert seen[0] == seen[1]
    assert PROMPT not in str(seen)


# --- time-outs ----------------------------------------------------------------------------------------------

REMOVED = "It was removed from the queue and will not run."
STOPPED = "It was stopped."
IGNORED = "The gateway was asked to cancel it, but it may still run."


@pytest.mark.parametrize(
    ("settings", "options", "error", "fate", "money", "more_posts"),
    [
        ({"stuck": True}, {"queue_timeout": 0.2}, FalQueueTimeout, REMOVED, ("no", False), (1, 1)),
        ({"stuck": True}, {"timeout": 0.2}, FalTimeout, REMOVED, ("no", False), (1, 1)),
        ({**LONG, "obeys_cancel": True}, {"timeout": 0.2}, FalTimeout, STOPPED, ("maybe", False), (0, 1)),
        ({**LONG, "cancel": "removed"}, {"timeout": 0.2}, FalTimeout, STOPPED, ("maybe", False), (0, 1)),
        (LONG, {"timeout": 0.2}, FalTimeout, IGNORED, ("maybe", True), (0, 0)),
        (
            {"stuck": True, "cancel": "ignored"},
            {"queue_timeout": 0.2},
            FalQueueTimeout,
            IGNORED,
            ("maybe", True),
            (0, 0),
        ),
        (
            {"stuck": True, "cancel": "not-allowed"},
            {"queue_timeout": 0.2},
            FalQueueTimeout,
            "The gateway passes no cancellations on: it may still run.",
            ("maybe", True),
            (0, 0),
        ),
        (
            {**LONG, "cancel": "not-found"},
            {"timeout": 0.2},
            FalTimeout,
            "The gateway does not know the job that it was asked to cancel.",
            ("maybe", True),
            (0, 0),
        ),
        (
            {"stuck": True},
            {"queue_timeout": 0.2, "cancel_on_timeout": False},
            FalQueueTimeout,
            "It was not cancelled.",
            ("maybe", True),
            (0, 0),
        ),
    ],
    ids=[
        "queue, removed",
        "removed",
        "stopped",
        "running, said to be removed",
        "signalled",
        "queue, ignored",
        "queue, refused",
        "unknown",
        "not asked",
    ],
)
def test_a_time_out_says_what_became_of_the_job_and_the_next_try_acts_on_it(
    start: Start,
    generate: Generate,
    settings: dict[str, Any],
    options: dict[str, Any],
    error: type[FalError],
    fate: str,
    money: tuple[str, bool],
    more_posts: tuple[int, int],
) -> None:
    emulator = start(**settings)
    task = Task()
    failed = fails(generate, task, error, **options)
    assert failed.what.endswith(fate)
    assert f"({next(iter(options))})" in failed.what
    assert (failed.billed, failed.may_run) == money
    assert task.xcoms["failure"]["outcome"] == "timed_out"
    assert len(calls(emulator, "cancel")) == (0 if options.get("cancel_on_timeout") is False else 1)
    again = {(1, 1): "submits again", (0, 1): "fails at once", (0, 0): "looks at the same job again"}
    assert f"A retry {again[more_posts]}" in str(failed)
    assert phase(task) is Phase.ENDED
    told = posts(emulator)
    for cleared, more in zip((False, True), more_posts, strict=True):
        fails(generate, task.next_try(cleared=cleared), error, **options)
        told += more
        assert posts(emulator) == told


@pytest.mark.parametrize("options", [{"queue_timeout": 0.2}, {"timeout": 0.2}])
def test_a_time_out_is_retried_as_any_failure_of_an_operator_is(
    start: Start, generate: Generate, options: dict[str, Any]
) -> None:
    start(stuck=True)
    with pytest.raises(FalError) as raised:
        generate(Task(), **options)
    # Airflow makes no retry after these.
    assert not isinstance(raised.value, (AirflowSensorTimeout, AirflowFailException))


def test_a_job_completed_just_before_its_cancel_is_delivered(start: Start, generate: Generate) -> None:
    emulator = start(stuck=True, cancel="already-completed")
    task = Task()
    assert generate(task, queue_timeout=0.2)["media"]
    assert phase(task) is Phase.DELIVERED
    assert (posts(emulator), len(calls(emulator, "cancel"))) == (1, 1)


def test_the_clock_of_the_queue_stops_when_the_job_runs(start: Start, generate: Generate) -> None:
    emulator = start(run_seconds=0.6)
    assert generate(Task(), queue_timeout=0.3)["media"]
    assert calls(emulator, "cancel") == []


@pytest.mark.parametrize("on_changed_arguments", ["reattach", "fail", "resubmit"])
def test_other_arguments_after_a_time_out_follow_the_policy(
    start: Start, generate: Generate, on_changed_arguments: str
) -> None:
    emulator = start(stuck=True, cancel="ignored")
    task = Task()
    fails(generate, task, FalQueueTimeout, queue_timeout=0.2)
    changed: dict[str, Any] = {
        "arguments": OTHER,
        "on_changed_arguments": on_changed_arguments,
        "queue_timeout": 0.2,
    }
    failed = fails(generate, task.next_try(), **changed)
    assert ("arguments changed since request" in failed.what) is (on_changed_arguments == "fail")
    assert posts(emulator) == (2 if on_changed_arguments == "resubmit" else 1)


@pytest.mark.parametrize("cleared", [False, True])
def test_a_job_of_another_connection_is_waited_for_at_the_gateway_that_it_was_submitted_to(
    start: Start, generate: Generate, monkeypatch: pytest.MonkeyPatch, cleared: bool
) -> None:
    emulator, other = start(run_seconds=0.5), start()
    set_connection(monkeypatch, emulator.url)
    task = Task()
    with pytest.raises(TaskDeferred):
        operator(defer_after=0.0).execute(task.context)
    request_id = task.xcoms["request_id"]
    result = generate(task.next_try(cleared=cleared), fal_conn_id="fal_other")
    assert result["handle"]["request_id"] == request_id
    assert task.xcoms["status_url"].startswith(emulator.url)
    assert (posts(emulator), posts(other)) == (1, 0)


# --- settings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["timeout", "queue_timeout", "poke_interval", "defer_after"])
@pytest.mark.parametrize("value", [-1, float("nan"), float("inf"), True, "5", timedelta(seconds=-1)])
def test_a_time_that_makes_no_sense_is_refused_by_name_when_the_dag_is_parsed(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        operator(**{name: value})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("timeout", "timeout must be more than 0 seconds, not -1"),
        ("defer_after", "defer_after must be 0 seconds or more, not -1"),
    ],
)
def test_a_time_that_makes_no_sense_is_refused_in_a_sentence(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=f"^{said}$"):
        operator(**{name: -1})


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"timeout": 0}, "timeout"),
        ({"timeout": None}, "timeout"),
        ({"queue_timeout": 0}, "queue_timeout"),
        ({"poke_interval": timedelta(0)}, "poke_interval"),
        ({"defer_after": None}, "defer_after"),
        ({"watch": "webhook"}, "watch must be one of auto, poll, stream"),
        ({"queue_timeout": 21.0}, "queue_timeout must not be more than timeout"),
        ({"queue_timeout": timedelta(hours=1), "timeout": timedelta(minutes=59)}, "queue_timeout"),
        ({"on_unknown_submit": "guess"}, "on_unknown_submit"),
        ({"on_changed_arguments": "ignore"}, "on_changed_arguments"),
        ({"on_clear": "missing"}, "on_clear"),
        ({"cancel_on_time_out": True}, "cancel_on_time_out"),
    ],
)
def test_a_setting_that_cannot_work_is_refused_by_name_when_the_dag_is_parsed(
    options: dict[str, Any], name: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        operator(**options)


@pytest.mark.parametrize(("configured", "defers"), [("True", True), ("False", False)])
def test_none_asks_airflows_configuration(
    monkeypatch: pytest.MonkeyPatch, configured: str, defers: bool
) -> None:
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", configured)
    assert operator(deferrable=None).deferrable is defers
    assert operator().deferrable is True


def test_the_trigger_is_told_all_that_the_wait_needs(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "RACE_SECONDS", 7.0)
    start(stuck=True)
    began = time.time()
    with pytest.raises(TaskDeferred) as deferral:
        operator(
            timeout=100, queue_timeout=50, end_from_trigger=True, cancel_on_kill=False, defer_after=0
        ).execute(Task().context)
    trigger: Any = deferral.value.trigger
    assert began + 100 <= trigger.deadline <= time.time() + 100
    assert began + 50 <= trigger.queue_deadline <= time.time() + 50
    assert began + 7 <= trigger.hold_until <= time.time() + 7
    assert (trigger.cancel_on_timeout, trigger.cancel_on_kill, trigger.end_from_trigger) == (
        True,
        False,
        True,
    )
    # Airflow's own time-out says less and cancels nothing: it comes later than the trigger's.
    assert deferral.value.timeout > timedelta(seconds=160)


# --- kills --------------------------------------------------------------------------------------------------


def killed(monkeypatch: pytest.MonkeyPatch, states: Callable[[Any], set[str]], **options: Any) -> None:
    """Kill a task that has begun to wait, while Airflow says these states of it."""
    monkeypatch.setattr(task_states, "states_of", states)
    running = operator(defer_after=0.0, **options)
    with pytest.raises(TaskDeferred):
        running.execute(Task().context)
    running.on_kill()


@pytest.mark.parametrize(
    ("states", "cancels"),
    [
        ({"running"}, 0),
        ({"deferred"}, 0),
        (set(), 0),
        ({"failed"}, 1),
        ({"success"}, 1),
        ({"skipped"}, 1),
        ({"restarting"}, 1),
        # It was frozen, and wakes while its retry is about to take up the job.
        ({"up_for_retry"}, 0),
        ({"scheduled"}, 0),
        ({"queued"}, 0),
        ({"none"}, 0),
    ],
)
def test_a_kill_cancels_the_job_only_if_a_user_has_killed_the_task(
    start: Start, monkeypatch: pytest.MonkeyPatch, states: set[str], cancels: int
) -> None:
    emulator = start(**LONG)
    killed(monkeypatch, lambda ti: states)
    assert len(calls(emulator, "cancel")) == cancels


def test_a_kill_cancels_nothing_if_told_so_or_nothing_runs(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(**LONG)
    killed(monkeypatch, lambda ti: {"failed"}, cancel_on_kill=False)
    operator().on_kill()
    assert calls(emulator, "cancel") == []


@pytest.mark.parametrize("failure", ["none", "refused"])
def test_a_kill_after_the_end_of_the_wait_cancels_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch, failure: str
) -> None:
    emulator = start(failure=failure)
    monkeypatch.setattr(task_states, "states_of", lambda ti: {"failed"})
    ended = operator(deferrable=False)
    if failure == "none":
        ended.execute(Task().context)
    else:
        with pytest.raises(FalContentRefused):
            ended.execute(Task().context)
    ended.on_kill()
    assert calls(emulator, "cancel") == []


def test_a_kill_does_not_wait_for_an_airflow_that_hangs_nor_cancels_later(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert operators.KILL_SECONDS <= 3
    monkeypatch.setattr(operators, "KILL_SECONDS", 0.2)
    answers, asked = threading.Event(), []

    def states(ti: Any) -> set[str]:
        asked.append(threading.current_thread())
        answers.wait(10)
        return {"failed"}

    emulator = start(**LONG)
    began = time.monotonic()
    killed(monkeypatch, states)
    assert time.monotonic() - began < 3
    answers.set()
    [thread] = asked
    thread.join(10)
    assert not thread.is_alive()
    assert calls(emulator, "cancel") == []


# --- events -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [None, "success", {}, {"status": "success"}])
def test_an_event_of_another_kind_fails_loudly_and_the_job_is_not_given_up(start: Start, event: Any) -> None:
    emulator = start(**SHORT)
    task = Task()
    with pytest.raises(TaskDeferred):
        operator(defer_after=0.0).execute(task.context)
    with pytest.raises(FalProtocolError, match="event cannot be understood"):
        operator().resume_execution("execute_complete", {"event": event}, task.context)
    assert task.xcoms["failure"]["may_run"]
    assert phase(task) is Phase.SUBMITTED
    assert run(MODES["blocking"], task.next_try())["media"]
    assert posts(emulator) == 1


BACKSTOP = {"error": "Trigger timeout"}
CRASH = {"error": "Trigger failure", "traceback": ["Traceback …\n", "ValueError: a crash of its own\n"]}


@pytest.mark.parametrize(
    ("told", "error", "says"),
    [(BACKSTOP, FalTimeout, "no triggerer has ended it"), (CRASH, FalProtocolError, "its trigger failed")],
)
@pytest.mark.parametrize("cleared", [False, True])
def test_a_wait_that_ends_without_an_event_names_the_fate_and_is_taken_up(
    start: Start,
    capsys: pytest.CaptureFixture[str],
    told: dict[str, Any],
    error: type[FalError],
    says: str,
    cleared: bool,
) -> None:
    emulator = start(run_seconds=1.0)
    task = Task()
    with pytest.raises(TaskDeferred):
        operator(defer_after=0.0).execute(task.context)
    failed = fails(lambda task: operator().resume_execution("__fail__", told, task.context), task, error)
    assert says in failed.what
    assert failed.request_id == task.xcoms["request_id"]
    assert (failed.billed, failed.may_run) == ("maybe", True)
    for words in ("may still be running", "may have been billed", "A retry looks at the same job again"):
        assert words in str(failed)
    assert not issubclass(error, AirflowFailException)
    assert ("a crash of its own" in capsys.readouterr().out) is (told is CRASH)
    assert calls(emulator, "cancel") == []
    assert run(MODES["blocking"], task.next_try(cleared=cleared))["media"]
    assert posts(emulator) == 1


def test_neither_key_nor_prompt_is_in_log_xcom_ledger_or_error(
    start: Start, generate: Generate, capsys: pytest.CaptureFixture[str]
) -> None:
    start(failure="result-422", **SHORT)
    task = Task()
    failed = fails(generate, task)
    output = capsys.readouterr()
    everything = [output.out, output.err, str(failed), as_json(task.xcoms), task.store.texts]
    for secret in (KEY, PROMPT):
        assert secret not in json.dumps(everything)


def test_a_handle_in_the_ledger_is_the_one_that_was_returned(start: Start, generate: Generate) -> None:
    start(**SHORT)
    task = Task()
    result = generate(task)
    record = JobRecord.from_json(task.store.get(LEDGER_KEY))
    assert record.handle == JobHandle.from_json(result["handle"])
