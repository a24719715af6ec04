"""What entries come to does not depend on who reads them when; and no row is paid for twice."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.ledger.record import GONE, ON_CHANGED_ARGUMENTS, ON_UNKNOWN_SUBMIT, Seen
from airflow_provider_uniapi_fal.ledger.rows import (
    Act,
    Entry,
    RowPolicy,
    RowState,
    Step,
    Try,
    decide_row,
    is_to_be_looked_for,
    join,
    state_of,
)
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.job import JobState
from tests.fakes import handle

HANDLE = handle(submitted_at=1.0)


def failure(kind: FailureKind = FailureKind.JOB_FAILED, **more: Any) -> Failure:
    return Failure(kind, what="It went wrong.", retry_does="tries.", **more)


@st.composite
def entries(draw: st.DrawFn) -> tuple[Entry, tuple[int, int, str], str]:
    step = draw(st.sampled_from(Step))
    post = draw(st.integers(1, 3))
    with_handle = step not in (Step.INTENT, Step.NOT_TAKEN) and (
        step is not Step.ENDED or draw(st.booleans())
    )
    wrong = step in (Step.NOT_TAKEN, Step.OUT_OF_SIGHT, Step.UNLANDED, Step.ENDED)
    order = (draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.sampled_from("ab")))
    entry = Entry(
        key="row",
        post=post,
        step=step,
        fingerprint=draw(st.sampled_from(["asked", "other"])),
        try_number=draw(st.integers(1, 3)),
        max_tries=draw(st.sampled_from([2, 5])),
        written_at=1.0,
        handle=replace(HANDLE, request_id=f"req-{post}", status_path=f"/{order[0]}") if with_handle else None,
        failure=failure(
            may_run=step is Step.OUT_OF_SIGHT, transient=step is Step.ENDED and draw(st.booleans())
        )
        if wrong
        else None,
        result={"spooled": True} if step is Step.SUCCEEDED and draw(st.booleans()) else None,
        landed={"files": []} if step is Step.DELIVERED else None,
    )
    return entry, order, f"segment-{order}"


def journals(least: int = 1) -> st.SearchStrategy[list[RowState]]:
    """Return what a journal says of one row, one state for each entry; no two stand in the same place."""
    distinct = st.lists(entries(), min_size=least, max_size=8, unique_by=lambda found: found[1])
    return distinct.map(lambda found: [state_of(*each) for each in found])


def all_of(states: list[RowState]) -> RowState:
    return functools.reduce(join, states[1:], states[0])


@given(journals(), st.randoms(use_true_random=False))
def test_entries_come_to_the_same_in_whichever_order_and_groups_they_are_read(
    states: list[RowState], random: Any
) -> None:
    whole = all_of(states)
    mixed = list(states)
    random.shuffle(mixed)
    cut = random.randrange(len(mixed))
    groups = [all_of(part) for part in (mixed[:cut], mixed[cut:]) if part]
    assert all_of(mixed) == all_of(groups) == join(whole, whole) == whole


@given(journals())
def test_a_state_and_an_entry_are_read_as_they_were_written(states: list[RowState]) -> None:
    whole = all_of(states)
    assert RowState.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    assert Entry.from_json(json.loads(json.dumps(whole.entry.to_json()))) == whole.entry


POLICIES = st.builds(
    RowPolicy,
    st.sampled_from(ON_UNKNOWN_SUBMIT),
    st.sampled_from(ON_CHANGED_ARGUMENTS),
    st.sampled_from(["missing", "all"]),
)
TRIES = st.builds(Try, st.integers(1, 4), st.sampled_from([2, 5]))


@given(journals(), TRIES, POLICIES)
def test_a_row_whose_job_may_live_or_was_paid_for_is_posted_only_if_the_user_said_so(
    states: list[RowState], this_try: Try, policy: RowPolicy
) -> None:
    state = all_of(states)
    decision = decide_row(state, asked="asked", this_try=this_try, policy=policy)
    if decision.act is not Act.POST:
        return
    cleared = state.entry.max_tries != this_try.max_tries
    changed = state.entry.fingerprint != "asked" and policy.on_changed_arguments == "resubmit"
    allowed = {
        Step.INTENT: policy.on_unknown_submit == "resubmit",
        Step.NOT_TAKEN: True,
        Step.SUBMITTED: changed,
        Step.OUT_OF_SIGHT: changed,
        Step.SUCCEEDED: changed,
        Step.UNLANDED: changed,
        Step.ENDED: cleared or (state.entry.failure is not None and state.entry.failure.transient),
        Step.DELIVERED: changed or (cleared and policy.on_clear == "all"),
    }
    assert allowed[state.step]


@given(journals(), POLICIES)
def test_a_try_posts_no_row_a_second_time_that_it_has_seen_end_or_get_lost(
    states: list[RowState], policy: RowPolicy
) -> None:
    state = all_of(states)
    this_try = Try(state.entry.try_number, state.entry.max_tries)
    decision = decide_row(state, asked=state.entry.fingerprint, this_try=this_try, policy=policy)
    assert decision.act is not Act.POST or state.step is Step.NOT_TAKEN


@pytest.mark.parametrize(
    ("step", "cleared", "act"),
    [
        (Step.INTENT, False, Act.NOTHING),
        (Step.NOT_TAKEN, False, Act.POST),
        (Step.SUBMITTED, False, Act.WATCH),
        (Step.SUBMITTED, True, Act.WATCH),
        (Step.OUT_OF_SIGHT, False, Act.WATCH),
        (Step.SUCCEEDED, False, Act.LAND),
        (Step.SUCCEEDED, True, Act.LAND),
        (Step.UNLANDED, False, Act.LAND),
        (Step.ENDED, False, Act.NOTHING),
        (Step.ENDED, True, Act.POST),
        (Step.DELIVERED, False, Act.NOTHING),
        (Step.DELIVERED, True, Act.NOTHING),
    ],
)
def test_the_next_try_takes_up_what_runs_lands_what_is_there_and_posts_only_what_is_missing(
    step: Step, cleared: bool, act: Act
) -> None:
    wrong = step in (Step.NOT_TAKEN, Step.OUT_OF_SIGHT, Step.UNLANDED, Step.ENDED)
    entry = Entry(
        "row",
        1,
        step,
        "asked",
        1,
        2,
        1.0,
        handle=None if step in (Step.INTENT, Step.NOT_TAKEN) else HANDLE,
        failure=failure(may_run=step is Step.OUT_OF_SIGHT) if wrong else None,
        landed={} if step is Step.DELIVERED else None,
    )
    state = state_of(entry, (1, 1, "a"), "segment")
    this_try = Try(2, 5 if cleared else 2)
    assert decide_row(state, asked="asked", this_try=this_try).act is act
    assert decide_row(None, asked="asked", this_try=this_try).act is Act.POST


@pytest.mark.parametrize(
    ("step", "may_run", "seen", "act"),
    [
        (Step.OUT_OF_SIGHT, True, GONE, Act.POST),
        (Step.OUT_OF_SIGHT, True, JobState.FAILED, Act.POST),
        (Step.OUT_OF_SIGHT, True, JobState.RUNNING, Act.WATCH),
        (Step.OUT_OF_SIGHT, True, JobState.SUCCEEDED, Act.WATCH),
        (Step.OUT_OF_SIGHT, True, None, Act.WATCH),
        # It had ended: only its result or its media are gone.
        (Step.ENDED, False, None, Act.POST),
    ],
)
def test_a_cleared_row_whose_job_was_not_found_is_posted_only_if_the_gateway_says_again_that_it_is_not_there(
    step: Step, may_run: bool, seen: Seen, act: Act
) -> None:
    gone = failure(kind=FailureKind.RESULT_EXPIRED, may_run=may_run)
    state = state_of(
        Entry("row", 1, step, "asked", 1, 2, 1.0, handle=HANDLE, failure=gone), (1, 1, "a"), "segment"
    )
    for max_tries, wanted in ((5, act), (2, Act.WATCH if may_run else Act.NOTHING)):
        this_try = Try(2, max_tries)
        assert is_to_be_looked_for(state, this_try) is (may_run and max_tries == 5)
        assert decide_row(state, asked="asked", this_try=this_try, seen=seen).act is wanted


def test_posts_are_those_that_may_have_been_accepted() -> None:
    def entry(post: int, step: Step) -> RowState:
        wrong = failure() if step in (Step.NOT_TAKEN, Step.ENDED) else None
        return state_of(
            Entry("row", post, step, "asked", post, 2, 1.0, failure=wrong), (post, 1, "a"), "segment"
        )

    states = [entry(1, Step.NOT_TAKEN), entry(2, Step.ENDED), entry(3, Step.NOT_TAKEN), entry(4, Step.INTENT)]
    assert all_of(states).posts == 2
    assert all_of(states).tries == {1, 2, 3, 4}


def test_what_a_superseded_try_did_not_send_says_nothing_of_the_same_row_at_its_successor() -> None:
    def entry(step: Step, epoch: int, writer: str, place: int) -> RowState:
        wrong = failure() if step is Step.NOT_TAKEN else None
        handled = HANDLE if step is Step.SUBMITTED else None
        return state_of(
            Entry("row", 1, step, "asked", epoch, 2, 1.0, handle=handled, failure=wrong),
            (epoch, place, writer),
            "segment",
        )

    # Neither saw the other's intent. The older one found itself superseded, and sent nothing; the newer one did.
    older = [entry(Step.INTENT, 1, "a", 7), entry(Step.NOT_TAKEN, 1, "a", 9)]
    for epoch, writer in ((2, "a"), (1, "b")):
        sent = all_of([*older, entry(Step.INTENT, epoch, writer, 1)])
        assert decide_row(sent, asked="asked", this_try=Try(3, 2)).act is Act.NOTHING
        assert (sent.step, sent.posts) == (Step.INTENT, 1)
        taken = all_of(
            [*older, entry(Step.INTENT, epoch, writer, 1), entry(Step.SUBMITTED, epoch, writer, 2)]
        )
        assert (taken.step, taken.posts) == (Step.SUBMITTED, 1)
    # And the other way round: what the newer one did not send, nobody did.
    unsent = [entry(Step.INTENT, 2, "b", 1), entry(Step.NOT_TAKEN, 2, "b", 2), entry(Step.INTENT, 1, "a", 7)]
    assert decide_row(all_of(unsent), asked="asked", this_try=Try(3, 2)).act is Act.POST
