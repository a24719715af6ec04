from __future__ import annotations

import contextlib
import itertools
import json
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.ledger.record import (
    GONE,
    ON_CHANGED_ARGUMENTS,
    ON_CLEAR,
    ON_UNKNOWN_SUBMIT,
    Clear,
    Decision,
    Do,
    JobRecord,
    Phase,
    cancelled_by_a_clear,
    decide,
    ends_the_job,
    fingerprint,
    was_cleared,
)
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.job import JobState
from tests.fakes import handle

if TYPE_CHECKING:
    import random

HANDLE = handle(submitted_at=1.0)
REFUSAL = Failure(FailureKind.JOB_FAILED, what="No.", retry_does="fails.")
ENDED = (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED, GONE)
SEEN = (None, *JobState, GONE)


def record(phase: Phase, **changes: Any) -> JobRecord:
    with_handle = phase in (Phase.SUBMITTED, Phase.DELIVERED)
    values: dict[str, Any] = {
        "phase": phase,
        "fingerprint": "asked",
        "max_tries": 2,
        "written_at": 1.0,
        "handle": HANDLE if with_handle else None,
        "failure": REFUSAL if phase is Phase.ENDED else None,
    }
    return JobRecord(**{**values, **changes})


def every_cell() -> Any:
    return itertools.product(
        (None, *Phase),
        (False, True),
        SEEN,
        ("asked", "other"),
        ON_UNKNOWN_SUBMIT,
        ON_CHANGED_ARGUMENTS,
        ON_CLEAR,
    )


CELLS = list(every_cell())


def decided(cell: Any) -> Decision:
    phase, cleared, state, asked, on_unknown_submit, on_changed_arguments, on_clear = cell
    return decide(
        None if phase is None else record(phase),
        asked=asked,
        cleared=cleared,
        state=state,
        on_unknown_submit=on_unknown_submit,
        on_changed_arguments=on_changed_arguments,
        on_clear=on_clear,
    )


def where(cell: Any) -> str:
    return f"in the cell {cell}"


def test_nothing_is_submitted_while_a_job_may_live_unless_a_policy_word_says_so() -> None:
    for cell in CELLS:
        phase, cleared, state, asked, on_unknown_submit, on_changed_arguments, _ = cell
        may_live = {
            None: False,
            Phase.ENDED: False,
            Phase.INTENT: True,
        }.get(phase, not (cleared and state in ENDED))
        allowed = {
            Phase.INTENT: on_unknown_submit == "resubmit",
            Phase.SUBMITTED: asked == "other" and on_changed_arguments == "resubmit",
            Phase.DELIVERED: asked == "other" and on_changed_arguments == "resubmit",
        }.get(phase, False)
        if may_live and not allowed:
            assert decided(cell).do is not Do.SUBMIT, where(cell)


def test_a_retry_submits_only_without_a_record_or_by_a_policy_word() -> None:
    for cell in CELLS:
        phase, cleared, _, asked, on_unknown_submit, on_changed_arguments, _ = cell
        if not cleared and decided(cell).do is Do.SUBMIT:
            by_word = on_unknown_submit == "resubmit" if phase is Phase.INTENT else False
            if phase in (Phase.SUBMITTED, Phase.DELIVERED):
                by_word = asked == "other" and on_changed_arguments == "resubmit"
            assert phase is None or by_word, where(cell)


def test_a_paid_success_is_never_thrown_away_before_it_was_delivered() -> None:
    for cell in CELLS:
        phase, _, state, asked, *_ = cell
        if phase is Phase.SUBMITTED and state is JobState.SUCCEEDED and asked == "asked":
            assert decided(cell).do is Do.REATTACH, where(cell)


def test_a_job_that_was_not_found_is_given_up_by_a_clear_only_if_the_gateway_says_again_that_it_is_not_there() -> (
    None
):
    for may_run, state in itertools.product((False, True), SEEN):
        failure = ended(kind=FailureKind.RESULT_EXPIRED, may_run=may_run)
        got = decide(
            record(Phase.ENDED, handle=HANDLE, failure=failure), asked="asked", cleared=True, state=state
        )
        over = state in (GONE, JobState.FAILED, JobState.CANCELLED)
        assert got.do is (Do.SUBMIT if over else Do.REATTACH), state


def test_each_row_of_the_design_decides_as_it_says() -> None:
    for cell in CELLS:
        phase, cleared, state, asked, on_unknown_submit, on_changed_arguments, on_clear = cell
        changed = asked == "other"
        got = decided(cell).do
        if phase is None:
            wanted = Do.SUBMIT
        elif phase is Phase.INTENT:
            wanted = {"fail": Do.FAIL_UNKNOWN, "resubmit": Do.SUBMIT}[on_unknown_submit]
        elif phase is Phase.ENDED:
            wanted = Do.SUBMIT if cleared else Do.FAIL_AGAIN
        elif cleared and (
            state in (JobState.FAILED, JobState.CANCELLED)
            or (state, phase, on_clear) == (JobState.SUCCEEDED, Phase.DELIVERED, "regenerate")
            or (state == GONE and (phase, on_clear) != (Phase.DELIVERED, "reuse"))
        ):
            wanted = Do.SUBMIT
        elif changed:
            wanted = {"reattach": Do.REATTACH, "fail": Do.FAIL_CHANGED, "resubmit": Do.SUBMIT}[
                on_changed_arguments
            ]
        else:
            wanted = Do.REATTACH
        assert got is wanted, where(cell)


def ended(**changes: Any) -> Failure:
    values: dict[str, Any] = {"kind": FailureKind.JOB_FAILED, "what": "No.", "retry_does": "fails."}
    return Failure(**{**values, "request_id": "req-1", **changes})


def test_an_ended_job_is_made_again_only_if_it_cannot_run_and_was_not_billed_or_after_a_clear() -> None:
    cells = itertools.product(
        FailureKind,
        (None, HANDLE),
        *[(False, True)] * 3,
        SEEN,
        ("asked", "other"),
        ON_CHANGED_ARGUMENTS,
        ON_CLEAR,
    )
    for cell in cells:
        kind, job, may_run, transient, cleared, state, asked, on_changed_arguments, on_clear = cell
        failure = ended(kind=kind, may_run=may_run, transient=transient)
        got = decide(
            record(Phase.ENDED, handle=job, failure=failure),
            asked=asked,
            cleared=cleared,
            state=state,
            on_changed_arguments=on_changed_arguments,
            on_clear=on_clear,
        )
        looked_for = cleared and kind is FailureKind.RESULT_EXPIRED
        if job is None or not (may_run or looked_for):
            wanted = Do.SUBMIT if cleared or transient else Do.FAIL_AGAIN
        elif cleared and state in (JobState.FAILED, JobState.CANCELLED, GONE):
            wanted = Do.SUBMIT
        elif asked == "other":
            wanted = {"reattach": Do.REATTACH, "fail": Do.FAIL_CHANGED, "resubmit": Do.SUBMIT}[
                on_changed_arguments
            ]
        else:
            wanted = Do.REATTACH
        assert got.do is wanted, where(cell)
        assert got.handle == (HANDLE if wanted is Do.REATTACH else None), where(cell)


@pytest.mark.parametrize("kind", FailureKind)
@pytest.mark.parametrize("met_by", [None, 3, 2])
def test_a_try_submits_after_a_cancellation_only_if_it_has_itself_met_the_job_alive_after_a_clear(
    kind: FailureKind, met_by: int | None
) -> None:
    written = record(
        Phase.ENDED,
        handle=HANDLE,
        failure=ended(kind=kind, billed="maybe"),
        clear=None if met_by is None else Clear(met_by, 1.0),
    )
    got = decide(
        JobRecord.from_json(written.to_json()), asked="asked", cleared=False, state=None, try_number=3
    )
    by_the_clear = met_by == 3 and kind is FailureKind.JOB_CANCELLED
    assert got.do is (Do.SUBMIT if by_the_clear else Do.FAIL_AGAIN)


@pytest.mark.parametrize(("seconds", "by_the_clear"), [(0.0, True), (60.0, True), (60.1, False)])
def test_a_cancellation_is_the_clears_own_for_a_short_time_only(seconds: float, by_the_clear: bool) -> None:
    written = record(
        Phase.ENDED,
        written_at=1.0 + seconds,
        failure=ended(kind=FailureKind.JOB_CANCELLED),
        clear=Clear(3, 1.0),
    )
    assert cancelled_by_a_clear(written, 3, within=60.0) is by_the_clear


@pytest.mark.parametrize("before", [{}, {"cleared_alive": False}, {"cleared_alive": True}])
def test_a_record_of_an_earlier_version_is_read_as_not_cleared(before: dict[str, Any]) -> None:
    written = record(Phase.SUBMITTED).to_json()
    del written["clear"]
    assert JobRecord.from_json({**written, **before}) == record(Phase.SUBMITTED)


ENDINGS = {
    "content_refused",
    "input",
    "job_cancelled",
    "job_failed",
    "queue_timeout",
    "result_expired",
    "timeout",
}


@pytest.mark.parametrize("kind", FailureKind)
def test_only_what_is_known_of_the_job_itself_ends_it(kind: FailureKind) -> None:
    assert ends_the_job(ended(kind=kind)) is (kind.value in ENDINGS)
    assert not ends_the_job(ended(kind=kind, request_id=None))


def test_what_re_attaches_names_the_job_and_nothing_else_does() -> None:
    for cell in CELLS:
        decision = decided(cell)
        assert decision.handle == (HANDLE if decision.do is Do.REATTACH else None), where(cell)
        assert decision.why, where(cell)
        if decision.do is Do.REATTACH:
            assert HANDLE.request_id in decision.why, where(cell)


def test_a_clear_is_told_by_the_number_of_the_last_try() -> None:
    assert not was_cleared(record(Phase.SUBMITTED, max_tries=2), 2)
    assert was_cleared(record(Phase.SUBMITTED, max_tries=2), 5)


TEXTS = st.text(max_size=20)
SECONDS = st.floats(0, 4e9, allow_nan=False)
PATHS = st.from_regex(r"(/[A-Za-z0-9_~-]{1,9}){1,4}", fullmatch=True)
HANDLES = st.builds(
    handle,
    model=TEXTS,
    request_id=st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True),
    status_path=PATHS,
    response_path=PATHS,
    cancel_path=st.none() | PATHS,
    fal_conn_id=TEXTS,
    submitted_at=SECONDS,
)
FAILURES = st.builds(
    Failure,
    kind=st.sampled_from(FailureKind),
    what=TEXTS,
    retry_does=TEXTS,
    advice=TEXTS,
    billed=st.sampled_from(["no", "maybe", "yes"]),
    may_run=st.booleans(),
    transient=st.booleans(),
    error_type=st.none() | TEXTS,
    http_status=st.none() | st.integers(100, 599),
    retry_after=st.none() | SECONDS,
    request_id=st.none() | TEXTS,
)


@st.composite
def records(draw: st.DrawFn) -> JobRecord:
    phase = draw(st.sampled_from(Phase))
    with_handle = phase in (Phase.SUBMITTED, Phase.DELIVERED)
    if phase is Phase.ENDED:
        with_handle = draw(st.booleans())
    return JobRecord(
        phase,
        draw(TEXTS),
        draw(st.integers(0, 1000)),
        draw(SECONDS),
        draw(HANDLES) if with_handle else None,
        draw(FAILURES) if phase is Phase.ENDED else None,
        draw(st.none() | st.builds(Clear, st.integers(0, 1000), SECONDS)),
    )


@given(records())
def test_a_record_comes_back_from_json_as_it_went(written: JobRecord) -> None:
    assert JobRecord.from_json(json.loads(json.dumps(written.to_json()))) == written


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@example(record(Phase.INTENT), "max_tries", float("inf"), False)
@given(records(), st.sampled_from(sorted(record(Phase.INTENT).to_json())), JSON, st.booleans())
def test_a_damaged_record_is_read_as_a_record_or_raises_a_value_error(
    written: JobRecord, name: str, value: Any, left_out: bool
) -> None:
    data = written.to_json()
    if left_out:
        del data[name]
    else:
        data[name] = value
    with contextlib.suppress(ValueError):
        assert isinstance(JobRecord.from_json(data), JobRecord)


@pytest.mark.parametrize(
    ("phase", "changes"),
    [
        (Phase.SUBMITTED, {"handle": None}),
        (Phase.DELIVERED, {"handle": None}),
        (Phase.INTENT, {"handle": HANDLE}),
        (Phase.ENDED, {"failure": None}),
        (Phase.SUBMITTED, {"failure": REFUSAL}),
    ],
)
def test_a_record_that_contradicts_itself_is_refused(phase: Phase, changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="does not go with"):
        JobRecord.from_json(record(phase, **changes).to_json())


@given(st.dictionaries(st.text(max_size=5), JSON, max_size=6), st.randoms())
def test_the_order_of_keys_makes_no_other_request(arguments: dict[str, Any], shuffle: random.Random) -> None:
    items = list(arguments.items())
    shuffle.shuffle(items)
    nested = {"inner": arguments}
    assert fingerprint("m", nested, "c") == fingerprint("m", {"inner": dict(items)}, "c")


def test_model_arguments_and_connection_each_make_another_request() -> None:
    asked = [("m", {"a": 1}, "c"), ("n", {"a": 1}, "c"), ("m", {"a": 2}, "c"), ("m", {"a": 1}, "d")]
    assert len({fingerprint(*each) for each in asked}) == 4


def test_the_same_words_in_another_dialect_are_another_request() -> None:
    assert fingerprint("m", {"prompt": "p"}, "c") != fingerprint("m", {"prompt": "p"}, "c", dialect="luma")
