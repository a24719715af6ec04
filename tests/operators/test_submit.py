from __future__ import annotations

import base64
import json
import time
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, AirflowNotFoundException, AirflowTaskTimeout
from PIL import Image

from airflow_provider_uniapi_fal.exceptions import (
    FalAuthError,
    FalBalanceError,
    FalContentRefused,
    FalError,
    FalInputError,
    FalJobFailed,
    FalProtocolError,
    FalRateLimited,
    FalSubmitOutcomeUnknown,
)
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.ledger.record import JobRecord, Phase, fingerprint
from airflow_provider_uniapi_fal.ledger.task_state import KEY as LEDGER_KEY
from airflow_provider_uniapi_fal.operators import submitting
from airflow_provider_uniapi_fal.operators.fal import FalGenerateOperator, FalSubmitOperator
from airflow_provider_uniapi_fal.protocol import retrying
from airflow_provider_uniapi_fal.protocol.job import JobHandle
from airflow_provider_uniapi_fal.transport import blocking
from tests.fakes import (
    ARGUMENTS,
    KEY,
    MODEL,
    PROMPT,
    ForgetfulStore,
    StateStore,
    Task,
    calls,
    posts,
    set_connection,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from airflow_provider_uniapi_fal.emulator.running import Emulator
    from tests.fakes import Start

OTHER = {**ARGUMENTS, "prompt": "something else"}


def submit(task: Task, **changes: Any) -> dict[str, Any]:
    arguments: dict[str, Any] = {"model": MODEL, "arguments": ARGUMENTS, **changes}
    return FalSubmitOperator(task_id="submit", **arguments).execute(task.context)


def set_record(task: Task, phase: Phase, handle: JobHandle | None = None) -> None:
    asked = fingerprint(MODEL, ARGUMENTS, "fal_default")
    task.store.set(LEDGER_KEY, JobRecord(phase, asked, task.ti.max_tries, 1.0, handle).to_json())


@pytest.mark.parametrize("urls", ["fal", "gateway", "missing", "foreign"])
def test_the_handle_is_returned_and_the_addresses_are_the_gateways_whatever_it_names(
    start: Start, urls: str
) -> None:
    emulator = start(urls=urls)
    task = Task()
    handle = submit(task)
    [job] = emulator.account()["jobs"]
    assert JobHandle.from_json(handle).request_id == job["request_id"] == task.xcoms["request_id"]
    address = f"{emulator.url}/fal-ai/flux/requests/{job['request_id']}"
    assert task.xcoms["status_url"] == f"{address}/status"
    assert task.xcoms["response_url"] == address
    assert set(task.xcoms) == {"request_id", "status_url", "response_url"}


@pytest.mark.parametrize("died", ["after the try", "before the XComs"])
def test_the_next_try_has_the_same_xcoms_and_posts_nothing(start: Start, died: str) -> None:
    emulator = start()
    task = Task()
    first, xcoms = submit(task), task.xcoms
    if died == "before the XComs":
        set_record(task, Phase.SUBMITTED, JobHandle.from_json(first))
    task.next_try()
    assert submit(task) == first
    assert task.xcoms == xcoms
    assert posts(emulator) == 1


def test_the_same_request_written_differently_is_no_change(start: Start) -> None:
    emulator = start()
    task = Task()
    submit(task)
    backwards = dict(reversed(ARGUMENTS.items()))
    submit(task.next_try(), model=f"fal-ai/{MODEL}", arguments=backwards, on_changed_arguments="resubmit")
    assert posts(emulator) == 1


def test_an_intent_without_a_handle_is_never_posted_again(start: Start) -> None:
    emulator = start()
    task = Task()
    set_record(task, Phase.INTENT)
    for cleared in (False, True):
        with pytest.raises(FalSubmitOutcomeUnknown, match="may still be running") as raised:
            submit(task.next_try(cleared=cleared))
        assert isinstance(raised.value, AirflowFailException)
        assert task.xcoms["failure"]["outcome"] == "unknown"
    assert posts(emulator) == 0


def test_an_intent_without_a_handle_is_posted_once_more_if_the_user_says_so(start: Start) -> None:
    emulator = start()
    task = Task()
    set_record(task, Phase.INTENT)
    for _ in range(2):
        submit(task.next_try(), on_unknown_submit="resubmit")
    assert posts(emulator) == 1


@pytest.mark.parametrize(
    "fault",
    [
        "lost-reply",
        "lost-request",
        "empty",
        "server-error status=500 accepted=true",
        "html status=504 accepted=true",
        "server-error status=503",
    ],
)
def test_a_lost_reply_is_never_posted_again(start: Start, fault: str) -> None:
    emulator = start(faults=[fault])
    task = Task()
    with pytest.raises(FalSubmitOutcomeUnknown, match="outcome of the submit is unknown"):
        submit(task)
    assert task.xcoms["failure"]["billed"] == "maybe"
    emulator.clear_faults()
    with pytest.raises(FalSubmitOutcomeUnknown):
        submit(task.next_try())
    assert posts(emulator) == 1


def test_a_lost_reply_is_not_taken_for_an_earlier_error_that_the_caller_is_handling(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retrying, "backoff", lambda attempt, jitter: 0.0)
    emulator = start(faults=["lost-reply"])
    try:
        raise ConnectionRefusedError("an earlier trouble")
    except ConnectionRefusedError:
        with pytest.raises(FalSubmitOutcomeUnknown):
            submit(Task())
    assert posts(emulator) == 1


def test_a_lost_reply_is_posted_again_by_the_next_try_if_the_user_says_so(start: Start) -> None:
    emulator = start(faults=["lost-reply times=1"])
    task = Task()
    with pytest.raises(FalProtocolError, match="submits again, as on_unknown_submit") as raised:
        submit(task, on_unknown_submit="resubmit")
    assert not isinstance(raised.value, AirflowFailException)
    assert posts(emulator) == 1
    submit(task.next_try(), on_unknown_submit="resubmit")
    assert posts(emulator) == 2


def with_a_wrong_key(monkeypatch: pytest.MonkeyPatch, emulator: Emulator) -> None:
    set_connection(monkeypatch, emulator.url, key="sk-wrong")


def at_a_closed_port(monkeypatch: pytest.MonkeyPatch, emulator: Emulator) -> None:
    monkeypatch.setattr(retrying, "backoff", lambda attempt, jitter: 0.0)
    set_connection(monkeypatch, "http://127.0.0.1:1")


def answered(fault: str) -> Callable[[pytest.MonkeyPatch, Emulator], None]:
    return lambda monkeypatch, emulator: emulator.add_fault(fault)


@pytest.mark.parametrize(
    ("breaks", "error", "attempts"),
    [
        (with_a_wrong_key, FalAuthError, 1),
        (answered("server-error status=402"), FalBalanceError, 1),
        (answered("server-error status=403"), FalBalanceError, 1),
        (answered("server-error status=404"), FalInputError, 1),
        (answered("server-error status=422"), FalInputError, 1),
        (answered("redirect"), FalProtocolError, 1),
        (answered("rate-limit retry_after=0"), FalRateLimited, retrying.MAX_SUBMIT_ATTEMPTS),
        (at_a_closed_port, FalProtocolError, 0),
    ],
)
def test_a_submit_that_was_definitely_refused_is_made_by_the_next_try(
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    breaks: Callable[[pytest.MonkeyPatch, Emulator], None],
    error: type[FalError],
    attempts: int,
) -> None:
    emulator = start()
    task = Task()
    breaks(monkeypatch, emulator)
    with pytest.raises(error):
        submit(task)
    assert posts(emulator) == attempts
    assert task.xcoms["failure"]["kind"] == error.kind.value
    emulator.clear_faults()
    set_connection(monkeypatch, emulator.url)
    submit(task.next_try())
    assert "failure" not in task.xcoms
    assert posts(emulator) == attempts + 1
    assert emulator.account()["totals"]["posts_accepted"] == 1


@pytest.mark.parametrize("operator", [FalSubmitOperator, FalGenerateOperator])
@pytest.mark.parametrize(
    ("status", "error", "billed"),
    [
        (401, FalAuthError, "no"),
        (402, FalBalanceError, "no"),
        (403, FalBalanceError, "no"),
        (404, FalInputError, "no"),
        (422, FalInputError, "maybe"),
    ],
)
def test_a_submit_that_was_refused_fails_without_a_retry_and_is_made_by_a_clear(
    start: Start, operator: type[FalSubmitOperator], status: int, error: type[FalError], billed: str
) -> None:
    emulator = start(faults=[f"server-error status={status}"])
    task = Task()

    def execute() -> Any:
        made = operator(task_id="submit", model=MODEL, arguments=ARGUMENTS)
        return made.execute(task.context)

    with pytest.raises(error) as raised:
        execute()
    # Airflow makes no retry after it.
    assert isinstance(raised.value, AirflowFailException)
    assert (raised.value.billed, raised.value.may_run) == (billed, False)
    assert posts(emulator) == 1
    emulator.clear_faults()
    task.next_try(cleared=True)
    assert execute()
    assert posts(emulator) == 2
    assert emulator.account()["totals"]["posts_accepted"] == 1


def test_a_rate_limit_that_passes_costs_one_job(start: Start) -> None:
    emulator = start(faults=["rate-limit retry_after=0 times=2"])
    submit(Task())
    assert emulator.account()["totals"]["posts_accepted"] == 1


def test_a_submit_answered_with_a_failure_is_made_again_by_a_clear_only(start: Start) -> None:
    emulator = start(failure="status-failure")
    task = Task()
    with pytest.raises(FalJobFailed, match="clear the task"):
        submit(task)
    with pytest.raises(FalJobFailed, match="clear the task"):
        submit(task.next_try())
    assert posts(emulator) == 1
    emulator.add_fault("job failure=none")
    submit(task.next_try(cleared=True))
    assert posts(emulator) == 2


def test_a_clear_re_attaches_to_a_live_job(start: Start) -> None:
    emulator = start(run_seconds=60.0)
    task = Task()
    first = submit(task)
    assert submit(task.next_try(cleared=True)) == first
    assert posts(emulator) == 1


def test_a_clear_pays_nothing_while_the_gateway_does_not_say_how_the_job_stands(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(retrying, "backoff", lambda attempt, jitter: 0.0)
    emulator = start(faults=["html on=status"])
    task = Task()
    first = submit(task)
    assert submit(task.next_try(cleared=True)) == first
    assert posts(emulator) == 1
    assert "is not known" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("answer", "kept", "made"),
    [
        ("server-error status=404", 0.0, 1),
        ("server-error status=404", 360.0, 0),
        ("server-error status=401", 0.0, 0),
        ("html", 0.0, 0),
        ("lost-request", 0.0, 0),
    ],
)
def test_a_clear_submits_again_only_if_the_gateway_says_that_it_does_not_know_a_job_that_it_may_have_forgotten(
    start: Start, monkeypatch: pytest.MonkeyPatch, answer: str, kept: float, made: int
) -> None:
    monkeypatch.setattr(retrying, "backoff", lambda attempt, jitter: 0.0)
    monkeypatch.setattr(submitting, "KEPT_SECONDS", kept)
    emulator = start(run_seconds=60.0)
    task = Task()
    submit(task)
    emulator.add_fault(f"{answer} on=status")
    submit(task.next_try(cleared=True))
    assert posts(emulator) == 1 + made


def test_a_clear_after_success_makes_a_new_job_and_a_retry_after_that_does_not(start: Start) -> None:
    emulator = start()
    task = Task()
    first = submit(task)
    second = submit(task.next_try(cleared=True))
    assert second["request_id"] != first["request_id"]
    assert submit(task.next_try()) == second
    assert posts(emulator) == 2


def test_a_clear_after_success_can_reuse_the_job(start: Start) -> None:
    emulator = start()
    task = Task()
    first = submit(task)
    assert submit(task.next_try(cleared=True), on_clear="reuse") == first
    assert posts(emulator) == 1


def test_a_clear_delivers_a_success_that_never_was_delivered(start: Start) -> None:
    emulator = start()
    task = Task()
    first = submit(task)
    set_record(task, Phase.SUBMITTED, JobHandle.from_json(first))
    assert submit(task.next_try(cleared=True)) == first
    assert posts(emulator) == 1


def test_a_clear_after_a_failed_job_makes_a_new_one_whatever_on_clear_says(start: Start) -> None:
    emulator = start(faults=["job failure=completed-error times=1"])
    task = Task()
    submit(task)
    submit(task.next_try(cleared=True), on_clear="reuse")
    assert posts(emulator) == 2


@pytest.mark.parametrize(
    "changes", [{"arguments": OTHER}, {"model": "flux/schnell"}, {"fal_conn_id": "fal_other"}]
)
def test_a_try_that_asks_for_something_else_re_attaches_with_a_warning(
    start: Start, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    emulator = start(run_seconds=60.0)
    task = Task()
    first = submit(task)
    capsys.readouterr()
    assert submit(task.next_try(), **changes) == first
    assert posts(emulator) == 1
    [warning] = [line for line in capsys.readouterr().out.splitlines() if "on_changed_arguments" in line]
    assert "[warning" in warning
    assert PROMPT not in warning


def test_a_try_that_asks_for_something_else_can_fail_or_pay_for_both(start: Start) -> None:
    emulator = start(run_seconds=60.0)
    task = Task()
    first = submit(task)
    with pytest.raises(FalInputError, match="arguments changed since request"):
        submit(task.next_try(), arguments=OTHER, on_changed_arguments="fail")
    assert posts(emulator) == 1
    refused = task.xcoms["failure"]
    assert (refused["billed"], refused["may_run"], refused["request_id"]) == (
        "maybe",
        True,
        first["request_id"],
    )
    second = submit(task.next_try(), arguments=OTHER, on_changed_arguments="resubmit")
    assert second["request_id"] != first["request_id"]
    assert submit(task.next_try(), arguments=OTHER, on_changed_arguments="resubmit") == second
    assert posts(emulator) == 2


def test_of_a_job_that_has_succeeded_such_a_failure_does_not_say_that_it_may_run(start: Start) -> None:
    start()
    task = Task()
    submit(task)
    with pytest.raises(FalInputError, match="arguments changed since request") as raised:
        submit(task.next_try(cleared=True), arguments=OTHER, on_changed_arguments="fail", on_clear="reuse")
    assert (raised.value.billed, raised.value.may_run) == ("maybe", False)


def two_gateways(start: Start, monkeypatch: pytest.MonkeyPatch, **first: Any) -> tuple[Emulator, Emulator]:
    """Start two gateways, of which the second knows nothing of the jobs of the first: fal_default and fal_other."""
    emulator, other = start(**first), start()
    set_connection(monkeypatch, emulator.url)
    return emulator, other


@pytest.mark.parametrize("cleared", [False, True])
def test_a_job_of_another_connection_is_asked_for_at_the_gateway_that_it_was_submitted_to(
    start: Start, monkeypatch: pytest.MonkeyPatch, cleared: bool
) -> None:
    # That a gateway does not know a job would be believed at once.
    monkeypatch.setattr(submitting, "KEPT_SECONDS", 0.0)
    emulator, other = two_gateways(start, monkeypatch, run_seconds=60.0)
    task = Task()
    first, xcoms = submit(task), task.xcoms
    assert submit(task.next_try(cleared=cleared), fal_conn_id="fal_other") == first
    assert task.xcoms == xcoms
    assert (posts(emulator), posts(other)) == (1, 0)


@pytest.mark.parametrize("cleared", [False, True])
def test_a_job_whose_connection_is_gone_is_made_again_only_if_the_user_says_so(
    start: Start, monkeypatch: pytest.MonkeyPatch, cleared: bool
) -> None:
    emulator = start()
    task = Task()
    submit(task, fal_conn_id="fal_other")
    monkeypatch.delenv("AIRFLOW_CONN_FAL_OTHER")
    with pytest.raises(AirflowNotFoundException, match="fal_other"):
        submit(task.next_try(cleared=cleared))
    assert posts(emulator) == 1
    submit(task.next_try(cleared=cleared), on_changed_arguments="resubmit")
    assert posts(emulator) == 2


@pytest.mark.parametrize("on", [True, False])
def test_a_setting_by_which_airflow_forgets_the_job_of_a_submit_is_warned_of_before_anything_is_paid(
    start: Start, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], on: bool
) -> None:
    monkeypatch.setenv("AIRFLOW__STATE_STORE__CLEAR_ON_SUCCESS", str(on))

    class Watched(StateStore):
        def set(self, key: str, value: Any, **retention: Any) -> None:
            # Once, and before the intent: after it the post may be out.
            assert capsys.readouterr().out.count("clear_on_success") == (on and value["phase"] == "intent")
            super().set(key, value)

    emulator = start()
    task = Task(store=Watched())
    submit(task)
    submit(task.next_try())
    assert "clear_on_success" not in capsys.readouterr().out
    assert posts(emulator) == 1


@pytest.mark.parametrize(("options", "warns"), [({}, False), ({"wait": False}, True)])
def test_of_that_setting_a_task_that_waits_for_its_job_does_not_warn(
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, Any],
    warns: bool,
) -> None:
    monkeypatch.setenv("AIRFLOW__STATE_STORE__CLEAR_ON_SUCCESS", "True")
    start()
    FalGenerateOperator(
        task_id="generate", model=MODEL, arguments=ARGUMENTS, deferrable=False, **options
    ).execute(Task().context)
    assert ("clear_on_success" in capsys.readouterr().out) is warns


def test_no_post_leaves_without_its_intent_in_the_store(start: Start) -> None:
    emulator = start()
    task = Task(store=ForgetfulStore())
    with pytest.raises(FalProtocolError, match="did not keep the intent"):
        submit(task)
    assert posts(emulator) == 0
    assert task.xcoms["failure"]["billed"] == "no"


@pytest.mark.parametrize("kept", [True, False])
def test_a_submit_whose_intent_is_not_taken_is_made_by_the_next_try_although_the_store_may_have_it(
    start: Start, kept: bool
) -> None:
    class Away(StateStore):
        """Raises for the first intent; it may have taken it all the same."""

        times = 1

        def set(self, key: str, value: Any, **retention: Any) -> None:
            away = value["phase"] == "intent" and self.times > 0
            if kept or not away:
                super().set(key, value)
            if away:
                self.times -= 1
                raise OSError("read timeout")

    emulator = start()
    task = Task(store=Away())
    with pytest.raises(OSError, match="read timeout"):
        submit(task)
    assert posts(emulator) == 0
    submit(task.next_try())
    assert posts(emulator) == 1


def breaking_off(operator: FalSubmitOperator, by: str) -> SimpleNamespace:
    """Return a stand-in for time in a process that is ended from outside as soon as it rests for a minute."""

    def rest(seconds: float) -> None:
        if seconds < 60:
            return
        if by == "execution_timeout":
            raise AirflowTaskTimeout
        # So does Airflow in its handler of SIGTERM; what the handler raises is raised where the process rests.
        operator.on_kill()
        raise AssertionError("it went on resting, and would have been killed")

    return SimpleNamespace(sleep=rest, monotonic=time.monotonic)


@pytest.mark.parametrize("operator", [FalSubmitOperator, FalGenerateOperator])
@pytest.mark.parametrize("by", ["execution_timeout", "on_kill"])
@pytest.mark.parametrize("reached", [True, False])
def test_a_submit_that_is_broken_off_in_a_pause_is_made_by_the_next_try(
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    operator: type[FalSubmitOperator],
    by: str,
    reached: bool,
) -> None:
    emulator = start(faults=["rate-limit retry_after=60"])
    task = Task()
    broken_off = operator(task_id="submit", model=MODEL, arguments=ARGUMENTS)
    with monkeypatch.context() as patch:
        patch.setattr(blocking, "time", breaking_off(broken_off, by))
        if not reached:
            patch.setattr(retrying, "backoff", lambda attempt, jitter: 60)
            set_connection(patch, "http://127.0.0.1:1")
        with pytest.raises((AirflowTaskTimeout, FalProtocolError)) as raised:
            broken_off.execute(task.context)
    if by == "on_kill":
        assert "A retry submits" in str(raised.value)
    # Airflow calls it after a time-out as well.
    broken_off.on_kill()
    emulator.clear_faults()
    submit(task.next_try())
    assert emulator.account()["totals"]["posts_accepted"] == 1


@pytest.mark.parametrize("refused", [0, 2])
def test_a_submit_that_is_broken_off_while_its_post_is_out_is_unknown_however_often_it_was_refused_before(
    start: Start, monkeypatch: pytest.MonkeyPatch, refused: int
) -> None:
    emulator = start(faults=[f"rate-limit retry_after=0 times={refused}"] if refused else [])
    task = Task()
    operator = FalSubmitOperator(task_id="submit", model=MODEL, arguments=ARGUMENTS)
    really_send = blocking.BlockingTransport._send

    def send(*args: Any) -> Any:
        sent: Any = really_send(*args)
        if sent.ok:
            operator.on_kill()
            raise AirflowTaskTimeout
        return sent

    with monkeypatch.context() as patch:
        patch.setattr(blocking.BlockingTransport, "_send", send)
        with pytest.raises(AirflowTaskTimeout):
            operator.execute(task.context)
    for cleared in (False, True):
        with pytest.raises(FalSubmitOutcomeUnknown):
            submit(task.next_try(cleared=cleared))
    assert posts(emulator) == refused + 1


@pytest.mark.parametrize("how", ["refused", "broken off", "the intent is not taken"])
def test_a_try_of_which_nothing_came_leaves_the_job_before_it_in_the_ledger(
    start: Start, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    emulator = start(run_seconds=60.0)
    task = Task()
    first = submit(task)
    task.next_try()
    changed = FalSubmitOperator(
        task_id="submit", model=MODEL, arguments=OTHER, on_changed_arguments="resubmit"
    )
    with monkeypatch.context() as patch:
        if how == "refused":
            emulator.add_fault("rate-limit retry_after=0")
        elif how == "broken off":
            emulator.add_fault("rate-limit retry_after=60")
            patch.setattr(blocking, "time", breaking_off(changed, "execution_timeout"))
        else:
            really_set = task.store.set

            def away(key: str, value: Any, **retention: Any) -> None:
                really_set(key, value, **retention)
                if value["phase"] == "intent":
                    raise OSError("read timeout")

            patch.setattr(task.store, "set", away)
        with pytest.raises((FalRateLimited, AirflowTaskTimeout, OSError)):
            changed.execute(task.context)
    emulator.clear_faults()
    # The arguments are again what they were.
    assert submit(task.next_try(), on_changed_arguments="resubmit") == first
    assert emulator.account()["totals"]["posts_accepted"] == 1


def test_a_handle_is_handed_on_although_the_ledger_does_not_take_that_it_was(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    class Away(StateStore):
        def set(self, key: str, value: Any, **retention: Any) -> None:
            if value["phase"] == "delivered":
                raise OSError("the store is away")
            super().set(key, value)

    emulator = start()
    task = Task(store=Away())
    first = submit(task)
    assert "the store is away" in capsys.readouterr().out
    assert submit(task.next_try(cleared=True)) == first
    assert posts(emulator) == 1


def test_a_job_that_the_ledger_does_not_take_is_named_and_not_posted_again(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    class Full(StateStore):
        def set(self, key: str, value: Any, **retention: Any) -> None:
            if value["phase"] != "intent":
                raise OSError("no space left")
            super().set(key, value)

    emulator = start()
    task = Task(store=Full())
    with pytest.raises(OSError, match="no space left"):
        submit(task)
    [job] = emulator.account()["jobs"]
    assert job["request_id"] in capsys.readouterr().out
    with pytest.raises(FalSubmitOutcomeUnknown):
        submit(task.next_try())
    assert posts(emulator) == 1


def test_a_record_that_cannot_be_read_stops_the_submit(start: Start) -> None:
    emulator = start()
    task = Task()
    task.store.set(LEDGER_KEY, {"phase": "of a later version"})
    with pytest.raises(FalSubmitOutcomeUnknown, match="cannot be read"):
        submit(task)
    assert posts(emulator) == 0


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model": None}, "model"),
        ({"model": ""}, "model"),
        ({"model": "flux/../secrets"}, "model"),
        ({"model": "https://queue.fal.run/flux"}, "model"),
        ({"model": "flux/dev?x=1"}, "model"),
        ({"arguments": None}, "arguments"),
        ({"arguments": [ARGUMENTS]}, "arguments"),
        ({"arguments": "a cat"}, "arguments"),
        ({"arguments": {"image_urls": "https://example.com/a.png"}}, "arguments.image_urls"),
        ({"arguments": {"loras": [{"scale": float("nan")}]}}, "arguments.loras[0].scale"),
        ({"arguments": {"when": object()}}, "arguments.when"),
        ({"priority": "high"}, "priority"),
        ({"runner_hint": "line\nbreak"}, "runner_hint"),
    ],
)
def test_bad_input_is_refused_before_any_request_by_the_name_of_its_field(
    start: Start, changes: dict[str, Any], field: str
) -> None:
    emulator = start()
    task = Task()
    with pytest.raises(FalInputError) as raised:
        submit(task, **changes)
    assert f" {field}: " in f" {raised.value}"
    assert "Nothing was sent" in str(raised.value)
    assert task.xcoms["failure"]["message"] == str(raised.value)
    assert emulator.requests() == []
    assert task.store.texts == {}


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"on_unknown_submit": "guess"}, "on_unknown_submit"),
        ({"on_changed_arguments": "ignore"}, "on_changed_arguments"),
        ({"on_clear": None}, "on_clear"),
        ({"prio": "low"}, "prio"),
        ({"start_timeout": 0}, "start_timeout: "),
        ({"start_timeout": "9"}, "start_timeout: "),
        ({"start_timeout": -1.0}, "start_timeout: "),
        ({"no_retry": "yes"}, "no_retry: "),
        ({"store_io": 1}, "store_io: "),
        ({"object_lifetime": -1}, "object_lifetime: "),
        ({"max_queue_length": 1.5}, "max_queue_length: "),
        ({"max_queue_length": 0}, "max_queue_length: "),
    ],
)
@pytest.mark.parametrize("operator", [FalSubmitOperator, FalGenerateOperator])
def test_a_setting_that_makes_no_sense_is_refused_by_its_name_when_the_dag_is_parsed(
    operator: type[FalSubmitOperator | FalGenerateOperator], changes: dict[str, Any], name: str
) -> None:
    with pytest.raises((ValueError, TypeError), match=name):
        operator(task_id="job", model=MODEL, arguments=ARGUMENTS, **changes)


def test_a_missing_model_is_refused_when_the_dag_is_parsed() -> None:
    with pytest.raises(TypeError, match="model"):
        FalSubmitOperator(task_id="submit", arguments=ARGUMENTS)  # type: ignore[call-arg]


def test_templates_are_rendered_at_any_depth() -> None:
    operator = FalSubmitOperator(
        task_id="submit",
        model="{{ model }}",
        arguments={"prompt": "{{ prompt }}", "loras": [{"path": "{{ lora }}", "scale": 0.5}]},
        fal_conn_id="{{ conn }}",
        priority="{{ priority }}",
        runner_hint="{{ hint }}",
    )
    operator.render_template_fields(
        {"model": MODEL, "prompt": "p", "lora": "l", "conn": "c", "priority": "low", "hint": "h"}  # type: ignore[typeddict-unknown-key]
    )
    assert operator.model == MODEL
    assert operator.arguments == {"prompt": "p", "loras": [{"path": "l", "scale": 0.5}]}
    assert (operator.fal_conn_id, operator.priority, operator.runner_hint) == ("c", "low", "h")


def test_options_reach_the_wire_as_fal_names_them(start: Start) -> None:
    emulator = start()
    submit(
        Task(),
        start_timeout=30,
        priority="low",
        runner_hint="night",
        no_retry=True,
        store_io=False,
        object_lifetime=3600,
        max_queue_length=500,
    )
    [seen] = calls(emulator, "submit")
    assert seen["fal_headers"] == {
        "X-Fal-Request-Start-Timeout": "30",
        "X-Fal-Queue-Priority": "low",
        "X-Fal-Runner-Hint": "night",
        "X-Fal-No-Retry": "1",
        "X-Fal-Store-IO": "0",
        "X-Fal-Object-Lifecycle-Preference": '{"expiration_duration_seconds": 3600}',
    }
    assert seen["query"] == "fal_max_queue_length=500"


def test_no_option_is_sent_unasked(start: Start) -> None:
    emulator = start()
    submit(Task(), no_retry=False, store_io=True)
    [seen] = calls(emulator, "submit")
    assert (seen["fal_headers"], seen["query"]) == ({}, "")


def test_a_picture_in_storage_travels_as_a_data_uri(start: Start, tmp_path: Path) -> None:
    picture = tmp_path / "start.jpg"
    Image.new("RGB", (64, 48), "teal").save(picture)
    emulator = start()
    uri = f"data:image/jpeg;base64,{base64.b64encode(picture.read_bytes()).decode()}"
    emulator.add_fault(fault="job", match=uri, failure="refused")
    task = Task()
    handle = submit(task, arguments={"prompt": PROMPT, "image_url": picture.as_uri()})
    with pytest.raises(FalContentRefused):  # the rule matched the very bytes of the file
        FalHook().result(JobHandle.from_json(handle))
    assert submit(task.next_try(), arguments={"prompt": PROMPT, "image_url": picture.as_uri()}) == handle


def test_an_input_that_must_not_be_sent_stops_the_submit(start: Start, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("the password is swordfish")
    emulator = start()
    task = Task()
    with pytest.raises(FalInputError, match=r"arguments\.image_url"):
        submit(task, arguments={**ARGUMENTS, "image_url": (tmp_path / "notes.txt").as_uri()})
    assert posts(emulator) == 0
    submit(task.next_try())
    assert posts(emulator) == 1


def test_neither_key_nor_prompt_is_in_log_xcom_ledger_or_error(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    start(faults=["lost-reply times=1"])
    lost, task = Task(), Task()
    with pytest.raises(FalSubmitOutcomeUnknown) as raised:
        submit(lost)
    returned = submit(task)
    output = capsys.readouterr()
    everything = [output.out, output.err, str(raised.value), returned]
    everything += [lost.xcoms, task.xcoms, lost.store.texts, task.store.texts]
    for secret in (KEY, PROMPT):
        assert secret not in json.dumps(everything)
