"""
What the journal of a batch says of each row: pure, without Airflow and without I/O.

A journal is a bag of entries, written by several processes: tries, a triggerer, sometimes a try that was taken
for dead. So what it says must not depend on the order in which entries are read: :func:`fold` takes the furthest
step of the newest post of a row, and two processes that read the same entries see the same state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum
from functools import lru_cache
from typing import Any, TypeAlias

from airflow_provider_uniapi_fal.ledger.record import (
    GONE,
    Decision,
    Do,
    JobRecord,
    Phase,
    Seen,
    decide,
    found_gone,
    was_cleared,
)
from airflow_provider_uniapi_fal.protocol.errors import Failure
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult, JobState

#: Where an entry stands among all others: the opening under which it was written, the place of its segment there,
#: and the writer, which only settles ties.
Order: TypeAlias = "tuple[int, int, str]"

NOWHERE: Order = (-1, -1, "")


class Step(str, Enum):
    """How far one post of a row has come."""

    INTENT = "intent"
    NOT_TAKEN = "not_taken"
    SUBMITTED = "submitted"
    OUT_OF_SIGHT = "out_of_sight"
    SUCCEEDED = "succeeded"
    UNLANDED = "unlanded"
    ENDED = "ended"
    DELIVERED = "delivered"


#: A later step outweighs an earlier one; of two that weigh the same, the one written later counts, because a wait
#: can be given up and taken up again, and a landing fail and be made again.
_WEIGHT = {
    Step.INTENT: 0,
    Step.NOT_TAKEN: 1,
    Step.SUBMITTED: 2,
    Step.OUT_OF_SIGHT: 2,
    Step.SUCCEEDED: 3,
    Step.UNLANDED: 3,
    Step.ENDED: 4,
    Step.DELIVERED: 5,
}

_WITH_FAILURE = {Step.NOT_TAKEN, Step.OUT_OF_SIGHT, Step.UNLANDED, Step.ENDED}
_WITH_HANDLE = {Step.SUBMITTED, Step.OUT_OF_SIGHT, Step.SUCCEEDED}


@dataclass(frozen=True)
class Try:
    """Which of Airflow's tries this is, and the last allowed one."""

    number: int = 1
    max_tries: int = 0


@dataclass(frozen=True, slots=True)
class Entry:
    """
    One line of the journal.

    :param key: the row
    :param post: which submit of this row it is about, from 1
    :param step: how far that has come
    :param fingerprint: hash of what was asked for
    :param try_number: Airflow's number of the try
    :param max_tries: Airflow's number of the last allowed try when it was written; a clear raises it
    :param written_at: seconds since the epoch
    :param handle: the job, from ``SUBMITTED`` on
    :param failure: what went wrong
    :param result: the result as JSON values; of a ``SUCCEEDED`` entry without one, the result is to be fetched
    :param landed: what was landed, as JSON values, of a ``DELIVERED`` entry
    """

    key: str
    post: int
    step: Step
    fingerprint: str
    try_number: int
    max_tries: int
    written_at: float
    handle: JobHandle | None = None
    failure: Failure | None = None
    result: Mapping[str, Any] | None = None
    landed: Mapping[str, Any] | None = None

    @classmethod
    def about(cls, state: RowState, step: Step, this_try: Try, *, now: float, **more: Any) -> Entry:
        """Return what is to be written about the newest post of a row."""
        return cls(
            key=state.entry.key,
            post=state.entry.post,
            step=step,
            fingerprint=state.entry.fingerprint,
            try_number=this_try.number,
            max_tries=this_try.max_tries,
            written_at=now,
            **{"handle": state.handle, **more},
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values; what it does not have is left out."""
        data: dict[str, Any] = {
            "key": self.key,
            "post": self.post,
            "step": self.step.value,
            "fingerprint": self.fingerprint,
            "try": self.try_number,
            "max_tries": self.max_tries,
            "written_at": round(self.written_at, 3),
        }
        if self.handle is not None:
            data["handle"] = self.handle.to_json()
        if self.failure is not None:
            data["failure"] = self.failure.to_json()
        if self.result is not None:
            data["result"] = self.result
        if self.landed is not None:
            data["landed"] = self.landed
        return data

    @classmethod
    def from_json(cls, data: Any) -> Entry:
        """
        Read what :meth:`to_json` wrote.

        :raises ValueError: if it cannot be read; that must never be taken for "there is no entry"
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"an entry is a mapping, not a {type(data).__name__}")
        try:
            entry = cls(
                key=str(data["key"]),
                post=int(data["post"]),
                step=Step(data["step"]),
                fingerprint=str(data["fingerprint"]),
                try_number=int(data["try"]),
                max_tries=int(data["max_tries"]),
                written_at=float(data["written_at"]),
                handle=JobHandle.from_json(data["handle"]) if "handle" in data else None,
                failure=Failure.from_json(data["failure"]) if "failure" in data else None,
                result=data.get("result"),
                landed=data.get("landed"),
            )
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"an entry lacks or garbles {error}") from error
        lacks = (
            (entry.step in _WITH_HANDLE and entry.handle is None)
            or (entry.step in _WITH_FAILURE and entry.failure is None)
            or (entry.step is Step.DELIVERED and entry.landed is None)
        )
        if lacks or entry.post < 1:
            raise ValueError(f"an entry in step {entry.step.value!r} lacks what goes with it")
        return entry


@dataclass(frozen=True, slots=True)
class RowState:
    """
    What all entries about a row come to.

    :param entry: the one that counts, without its result
    :param order: where it stands
    :param handle: the job of the newest post, with the paths under which it was last found
    :param handle_order: where the entry stands that brought it
    :param spool: name of the segment that holds the result
    :param spool_order: where that stands
    :param not_taken: posts that provably were not accepted
    :param tries: Airflow's tries that worked on it
    """

    entry: Entry
    order: Order
    handle: JobHandle | None = None
    handle_order: Order = NOWHERE
    spool: str | None = None
    spool_order: Order = NOWHERE
    not_taken: frozenset[int] = frozenset()
    tries: frozenset[int] = frozenset()

    @property
    def step(self) -> Step:
        """How far the row has come."""
        return self.entry.step

    @property
    def posts(self) -> int:
        """Submits sent for it that may have been accepted."""
        # A superseded try may not have sent the one that its successor did.
        unsent = self.not_taken if self.step is Step.NOT_TAKEN else self.not_taken - {self.entry.post}
        return self.entry.post - len(unsent)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "entry": self.entry.to_json(),
            "order": self.order,
            "handle": self.handle.to_json() if self.handle else None,
            "handle_order": self.handle_order,
            "spool": self.spool,
            "spool_order": self.spool_order,
            "not_taken": sorted(self.not_taken),
            "tries": sorted(self.tries),
        }

    @classmethod
    def from_json(cls, data: Any) -> RowState:
        """
        Read what :meth:`to_json` wrote.

        :raises ValueError: if it cannot be read
        """
        try:
            return cls(
                entry=Entry.from_json(data["entry"]),
                order=_order(data["order"]),
                handle=JobHandle.from_json(data["handle"]) if data["handle"] else None,
                handle_order=_order(data["handle_order"]),
                spool=data["spool"],
                spool_order=_order(data["spool_order"]),
                not_taken=_set_of(*data["not_taken"]),
                tries=_set_of(*data["tries"]),
            )
        except (KeyError, TypeError) as error:
            raise ValueError(f"the state of a row lacks or garbles {error}") from error


def spooled(result: JobResult) -> dict[str, Any]:
    """
    Return a result as it lies in the journal: all that is needed to land it.

    Data URIs stay in it, because nobody else may have them any more. The model's other answers are left out: they
    are not landed, and repeat the prompt.
    """
    media = [dict(vars(file)) for file in result.media]
    return {**replace(result, data=None, media=()).to_json(), "media": media}


def _order(value: Any) -> Order:
    epoch, place, writer = value
    return int(epoch), int(place), str(writer)


def state_of(entry: Entry, order: Order, segment: str) -> RowState:
    """Return what a single entry says."""
    return RowState(
        entry=replace(entry, result=None),
        order=order,
        handle=entry.handle,
        handle_order=order if entry.handle else NOWHERE,
        spool=segment if entry.result is not None else None,
        spool_order=order if entry.result is not None else NOWHERE,
        not_taken=_set_of(entry.post) if entry.step is Step.NOT_TAKEN else _set_of(),
        tries=_set_of(entry.try_number),
    )


def join(one: RowState | None, other: RowState) -> RowState:
    """Return what two states of the same row come to; in whichever order they are joined."""
    if one is None:
        return other
    least, most = sorted((one, other), key=_weight)
    not_taken, tries = _both(one.not_taken, other.not_taken), _both(one.tries, other.tries)
    if least.entry.post < most.entry.post:
        return replace(most, not_taken=not_taken, tries=tries)
    handled = max(one, other, key=lambda state: state.handle_order)
    spooled = max(one, other, key=lambda state: state.spool_order)
    return RowState(
        most.entry,
        most.order,
        handled.handle,
        handled.handle_order,
        spooled.spool,
        spooled.spool_order,
        not_taken,
        tries,
    )


@lru_cache
def _set_of(*numbers: int) -> frozenset[int]:
    """Return a set of numbers; the thousands of rows that have the same one share it."""
    return frozenset(numbers)


def _both(one: frozenset[int], other: frozenset[int]) -> frozenset[int]:
    return one if other <= one else one | other


def _weight(state: RowState) -> tuple[int, bool, tuple[int, str], int, Order]:
    """
    Return by what a state outweighs another.

    Two tries that did not see each other's intents count the same post; of them only the one that opened the journal
    later sends it. So before there is a job, the later opening's word counts: that the other one sent nothing says
    nothing of what this one did.
    """
    epoch, _, writer = state.order
    weight = _WEIGHT[state.step]
    is_job = weight > _WEIGHT[Step.NOT_TAKEN]
    return state.entry.post, is_job, (0, "") if is_job else (epoch, writer), weight, state.order


class Act(str, Enum):
    """What a try does about a row."""

    POST = "post"
    WATCH = "watch"
    LAND = "land"
    NOTHING = "nothing"
    REFUSE = "refuse"


@dataclass(frozen=True)
class RowDecision:
    """
    What a try does about a row, and why.

    :param act: what it does
    :param why: a sentence for the log or the error
    :param changed: the row asks for something else than what was submitted for it
    :param taken_up: it goes on with what an earlier try gave up, which is to be written down
    """

    act: Act
    why: str
    changed: bool = False
    taken_up: bool = False


@dataclass(frozen=True)
class RowPolicy:
    """
    The policies that decide about rows; the same words as for a single job, but for ``on_clear``.

    :param on_clear: ``missing`` submits rows without success only, ``all`` every row
    """

    on_unknown_submit: str = "fail"
    on_changed_arguments: str = "reattach"
    on_clear: str = "missing"


DEFAULT_POLICY = RowPolicy()


#: Steps after which a row rests until another try comes.
_RESTS = {Step.OUT_OF_SIGHT, Step.UNLANDED, Step.ENDED}


def is_to_be_looked_for(state: RowState, this_try: Try) -> bool:
    """Whether a clear would post a row again whose job was not found, and may run all the same: ask for it first."""
    record = record_of(state)
    lost = state.step is Step.OUT_OF_SIGHT and found_gone(record)
    return lost and was_cleared(record, this_try.max_tries)


def decide_row(
    state: RowState | None,
    *,
    asked: str,
    this_try: Try,
    policy: RowPolicy = DEFAULT_POLICY,
    seen: Seen = None,
) -> RowDecision:
    """
    Decide what this try does about a row: the table of :func:`~.record.decide`, for a row of a batch.

    :param state: what the journal has, or None
    :param asked: fingerprint of what the row asks for
    :param seen: what the gateway says of a job that is to be looked for
    """
    if state is None:
        return RowDecision(Act.POST, "It was never submitted.")
    if state.step is Step.NOT_TAKEN:
        return RowDecision(Act.POST, "Its last submit provably was not accepted.")
    changed = state.entry.fingerprint != asked
    same_try = state.entry.try_number == this_try.number and state.entry.max_tries == this_try.max_tries
    if same_try and (state.step in _RESTS or state.step is Step.INTENT):
        return RowDecision(Act.NOTHING, "This try is done with it.", changed)
    decision = decide(
        record_of(state),
        asked=asked,
        cleared=was_cleared(record_of(state), this_try.max_tries),
        state=seen if is_to_be_looked_for(state, this_try) else _known(state),
        on_unknown_submit=policy.on_unknown_submit,
        on_changed_arguments=policy.on_changed_arguments,
        on_clear="regenerate" if policy.on_clear == "all" else "reuse",
    )
    return _acted(state, decision, changed)


def _known(state: RowState) -> Seen:
    """Return what the journal itself tells of how a row's job stands at the gateway."""
    if state.step in (Step.SUCCEEDED, Step.UNLANDED, Step.DELIVERED):
        return JobState.SUCCEEDED
    return GONE if found_gone(record_of(state)) else None


def _acted(state: RowState, decision: Decision, changed: bool) -> RowDecision:
    if decision.do is Do.SUBMIT:
        return RowDecision(Act.POST, decision.why, changed)
    if decision.do is Do.FAIL_CHANGED:
        return RowDecision(Act.REFUSE, decision.why, changed)
    if decision.do is not Do.REATTACH or state.step is Step.DELIVERED:
        return RowDecision(Act.NOTHING, decision.why, changed)
    if state.step in (Step.SUCCEEDED, Step.UNLANDED):
        return RowDecision(Act.LAND, decision.why, changed)
    return RowDecision(Act.WATCH, decision.why, changed, taken_up=state.step is not Step.SUBMITTED)


def record_of(state: RowState) -> JobRecord:
    """Return the newest post of a row as the record of one job, of which the decision table speaks."""
    phase = {
        Step.INTENT: Phase.INTENT,
        Step.OUT_OF_SIGHT: Phase.ENDED,
        Step.ENDED: Phase.ENDED,
        Step.DELIVERED: Phase.DELIVERED,
    }.get(state.step, Phase.SUBMITTED)
    return JobRecord(
        phase=phase,
        fingerprint=state.entry.fingerprint,
        max_tries=state.entry.max_tries,
        written_at=state.entry.written_at,
        handle=state.handle if phase is not Phase.INTENT else None,
        failure=state.entry.failure if phase is Phase.ENDED else None,
    )
