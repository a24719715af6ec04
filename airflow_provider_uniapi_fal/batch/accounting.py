"""What became of a batch: outcomes, the manifest, the line in the log, and whether it is enough."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

from airflow_provider_uniapi_fal import metrics
from airflow_provider_uniapi_fal.landing.files import LandedFile
from airflow_provider_uniapi_fal.landing.manifest import OUTCOMES, ManifestRow, RowError
from airflow_provider_uniapi_fal.ledger.rows import NOWHERE, Entry, RowState, Step
from airflow_provider_uniapi_fal.protocol.dialects import dialect_named
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, unknown_outcome

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.batch.requests import Row

#: Failures after which Airflow makes no retry, as the errors of a single job.
_NO_RETRY = {
    FailureKind.INPUT,
    FailureKind.CONTENT_REFUSED,
    FailureKind.BALANCE,
    FailureKind.AUTH,
    FailureKind.SUBMIT_OUTCOME_UNKNOWN,
    FailureKind.RESULT_EXPIRED,
}

_TIME_OUTS = {FailureKind.QUEUE_TIMEOUT, FailureKind.TIMEOUT}

#: Failures of a job that a retry finds as they are, unless the job may still run or they may pass.
_FOR_GOOD = {FailureKind.JOB_FAILED, FailureKind.JOB_CANCELLED, *_TIME_OUTS}

_RETRY_DOES = "takes up what runs, lands what is there and submits only what never was or ended unbilled."
_CLEAR_DOES = (
    "Once cleared, the task looks at the jobs that may run, lands the results that are there and submits the other "
    "rows without success again, but for unknown ones."
)


def outcome_of(state: RowState | None) -> str:
    """Return the one word for what became of a row; ``running`` for what is not over."""
    if state is None or state.step is Step.NOT_TAKEN:
        return "missing"
    if state.step is Step.INTENT:
        return "unknown"
    if state.step in (Step.SUBMITTED, Step.SUCCEEDED):
        return "running"
    if state.step is Step.DELIVERED:
        return "flagged" if (state.entry.landed or {}).get("flagged") else "succeeded"
    return "failed" if state.entry.failure is None else state.entry.failure.outcome


def failure_of(state: RowState | None) -> Failure | None:
    """Return what went wrong with a row."""
    if state is None:
        return None
    if state.step is Step.INTENT and state.entry.failure is None:
        return unknown_outcome("the try that was about to submit it left no trace of what came of it")
    return state.entry.failure


def manifest_row(row: Row, state: RowState | None, *, with_arguments: bool) -> ManifestRow:
    """Return the line of the manifest for a row."""
    made = ManifestRow(
        key=row.key,
        index=row.index,
        model=row.model,
        dialect=row.dialect,
        fal_conn_id=row.fal_conn_id,
        outcome=outcome_of(state),
        arguments_sha256=row.arguments_sha256,
        arguments=row.arguments if with_arguments else None,
        metadata=row.metadata,
    )
    if state is None:
        return made
    landed = state.entry.landed or {}
    failure = failure_of(state)
    return replace(
        made,
        fal_conn_id=state.handle.fal_conn_id if state.handle else row.fal_conn_id,
        request_id=state.handle.request_id if state.handle else None,
        seed=landed.get("seed"),
        error=None if failure is None else RowError.of(failure),
        submitted_at=state.handle.submitted_at if state.handle else None,
        seconds_queued=landed.get("seconds_queued"),
        seconds_running=landed.get("seconds_running"),
        billable_units=landed.get("billable_units"),
        flagged=bool(landed.get("flagged")),
        posts=state.posts,
        tries=len(state.tries),
        files=tuple(LandedFile.from_json(file) for file in landed.get("files") or ()),
    )


def count_row(state: RowState) -> None:
    """Count for the metrics how a row ended; one that has not ended is not counted."""
    landed = state.entry.landed or {}
    if state.entry.failure is not None:
        if state.step is Step.UNLANDED:
            metrics.landing_failed(state.entry.failure)
        elif state.step is not Step.NOT_TAKEN:
            metrics.failed(state.entry.failure)
    elif state.step is Step.DELIVERED and state.handle is not None:
        metrics.ended_well(
            state.handle,
            flagged=bool(landed.get("flagged")),
            seconds_queued=landed.get("seconds_queued"),
            seconds_running=landed.get("seconds_running"),
            billable_units=landed.get("billable_units"),
        )


def carried_over(row: Row, earlier: ManifestRow, *, with_arguments: bool) -> ManifestRow:
    """
    Return the line for a row that an earlier manifest has already: its files, and no post of this batch.

    Its hash is that of the arguments that made the files, and so are the arguments, where they are known and wanted.
    """
    known = earlier.arguments
    if known is None and not differs(row, earlier):
        known = row.arguments
    return replace(
        earlier,
        key=row.key,
        index=row.index,
        arguments=known if with_arguments else None,
        metadata=row.metadata,
        posts=0,
        tries=0,
    )


def differs(row: Row, earlier: ManifestRow) -> bool:
    """Whether a row asks for something else than what an earlier manifest has of it; False if that is not known."""
    asked, made = (dialect_named(each.dialect).model_id(each.model) for each in (row, earlier))
    known = earlier.arguments_sha256
    return asked != made or (known is not None and known != row.arguments_sha256)


def shortfall(
    rows: Sequence[ManifestRow],
    failures: Sequence[Failure],
    *,
    min_success_ratio: float,
    on_flagged: str,
    on_unknown_submit: str,
    stopped: Failure | None,
) -> Failure | None:
    """
    Return the failure of a batch that has too few successes, or None if it has enough.

    Its kind decides whether Airflow makes a retry: it does if that may help at least one row.

    :param failures: those of the rows that have one
    :param stopped: why some were not submitted
    """
    good = {"succeeded", "flagged"} if on_flagged == "keep" else {"succeeded"}
    counts = Counter(row.outcome for row in rows)
    successes = sum(counts[outcome] for outcome in good)
    # As the user has written it: as binary numbers, 0.55 times 100 is more than 55.
    needed = Fraction(min_success_ratio).limit_denominator(1_000_000) * len(rows)
    if successes >= needed:
        return None
    kinds = Counter(failure.kind for failure in failures)
    hopeless = _NO_RETRY - (
        {FailureKind.SUBMIT_OUTCOME_UNKNOWN} if on_unknown_submit == "resubmit" else set()
    )
    may_help = Counter(
        # Time-outs alone keep their class, which Airflow retries, too.
        failure.kind if failure.kind in _TIME_OUTS and not failure.transient else FailureKind.JOB_FAILED
        for failure in failures
        if failure.transient
        or (failure.kind not in hopeless and (failure.may_run or failure.kind not in _FOR_GOOD))
    )
    # What a failed row has held up (its kind is that of a failed job) goes out if the retry can mend that row.
    held_up = stopped is not None and stopped.kind in {*_NO_RETRY, *_FOR_GOOD}
    never_sent = counts["missing"] > 0 and not held_up
    kind: FailureKind
    if stopped is not None and stopped.kind in (FailureKind.AUTH, FailureKind.BALANCE):
        kind = stopped.kind
    elif FailureKind.JOB_FAILED in may_help or never_sent or not kinds:
        kind = FailureKind.JOB_FAILED
    else:
        kind = (may_help or kinds).most_common(1)[0][0]
    if kind in _NO_RETRY:
        retry_does = f"is not made by Airflow: it could not help. {_CLEAR_DOES}"
    elif may_help or never_sent:
        retry_does = _RETRY_DOES
    else:
        retry_does = f"submits nothing: it could not help. {_CLEAR_DOES}"
    unbilled = all(_is_unbilled(row) for row in rows)
    waits = [f.retry_after for f in (*failures, stopped) if f is not None and f.retry_after is not None]
    flagged = counts["flagged"] > 0 and on_flagged == "fail"
    told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
    why = "" if stopped is None else f" {stopped.what}"
    if failures and stopped is None:
        [(reason, times)] = Counter(failure.what for failure in failures).most_common(1)
        why = f" What went wrong with {times} of them: {reason}"
    return Failure(
        kind,
        what=f"Of {len(rows)} rows, {successes} are a success, and min_success_ratio={min_success_ratio:g} asks "
        f"for more: {told}.{why}",
        retry_does=retry_does,
        advice=("Flagged rows are made again by a clear with on_clear='all' only. " if flagged else "")
        + "The manifest says of each row what became of it and of the money.",
        billed="no" if unbilled else "maybe",
        may_run=any(failure.may_run for failure in failures),
        retry_after=max(waits, default=None) if retry_does is _RETRY_DOES else None,
    )


def _is_unbilled(row: ManifestRow) -> bool:
    """Whether no post of a row can have been billed; the error of a missing one is of a post that was not taken."""
    told = row.posts == 1 and row.outcome != "missing" and row.error is not None
    return row.posts == 0 or (told and row.error is not None and row.error.billed == "no")


class Tally:
    """
    How far a batch is, for the log.

    :param rows: how many there are
    :param states: what is known of them
    :param now: monotonic seconds
    """

    def __init__(self, rows: int, states: Iterable[RowState], *, now: float) -> None:
        self._rows = rows
        self._steps: dict[str, str] = {state.entry.key: outcome_of(state) for state in states}
        self._began = now
        self._over_before = self._over()

    def take(self, entries: Iterable[Entry]) -> None:
        """Count what was written down."""
        for entry in entries:
            under_way = entry.step is Step.INTENT and entry.failure is None
            self._steps[entry.key] = "running" if under_way else outcome_of(RowState(entry, NOWHERE))

    def _over(self) -> int:
        return sum(outcome not in ("running", "missing") for outcome in self._steps.values())

    def line(self, now: float) -> str:
        """Return the line: counts by outcome, the rate, and about how long the rest takes at that rate."""
        counts = Counter(self._steps.values())
        over = self._over()
        told = ", ".join(f"{counts[outcome]} {outcome}" for outcome in OUTCOMES if counts[outcome])
        rest = self._rows - over
        text = (
            f"{over} of {self._rows} rows are over ({told or 'none'}), {counts['running']} are running, "
            f"{rest - counts['running']} are still to be submitted."
        )
        done, spent = over - self._over_before, now - self._began
        if done > 0 and spent > 0 and rest > 0:
            text += f" {done / spent:.1f} a second; about {rest * spent / done:.0f} s to go."
        return text
