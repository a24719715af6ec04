"""
The record of one job, and the decision what a try does about it: pure, without Airflow and without I/O.

A submit has no idempotency key, so the record is written around it: an intent before the post, the handle
after it. Whatever kills a task in between leaves a record that says so.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any, Final, Literal, TypeAlias

from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.job import SCHEMA_VERSION, JobHandle, JobState

ON_UNKNOWN_SUBMIT = ("fail", "resubmit")
ON_CHANGED_ARGUMENTS = ("reattach", "fail", "resubmit")
ON_CLEAR = ("regenerate", "reuse")

#: The gateway was asked for a job, and its answer was that it does not know it, or has its result no more.
GONE: Final = "gone"

#: What was seen of a recorded job at the gateway; None if it was not asked, or gave no answer.
Seen: TypeAlias = "JobState | Literal['gone'] | None"


class Phase(str, Enum):
    """How far a job has come, as far as its record knows."""

    INTENT = "intent"
    SUBMITTED = "submitted"
    ENDED = "ended"
    DELIVERED = "delivered"


@dataclass(frozen=True)
class Clear:
    """
    A clear that met its task's job alive; whoever waited for the job before may be cancelling it.

    :param try_number: Airflow's number of the try that met it
    :param met_at: seconds since the epoch
    """

    try_number: int
    met_at: float


@dataclass(frozen=True)
class JobRecord:
    """
    What the ledger keeps of one job.

    :param phase: how far it has come
    :param fingerprint: hash of what was asked for
    :param max_tries: Airflow's number of the last allowed try when it was written; a clear raises it
    :param written_at: seconds since the epoch
    :param handle: the job, from ``SUBMITTED`` on; an ``ENDED`` one has none if the submit itself failed
    :param failure: how it went wrong, when ``ENDED``
    :param clear: the clear that met it alive, and on an ``ENDED`` one that has cancelled it
    """

    phase: Phase
    fingerprint: str
    max_tries: int
    written_at: float
    handle: JobHandle | None = None
    failure: Failure | None = None
    clear: Clear | None = None

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {
            "schema_version": SCHEMA_VERSION,
            "phase": self.phase.value,
            "fingerprint": self.fingerprint,
            "max_tries": self.max_tries,
            "written_at": self.written_at,
            "handle": self.handle.to_json() if self.handle else None,
            "failure": self.failure.to_json() if self.failure else None,
            "clear": asdict(self.clear) if self.clear else None,
        }

    @classmethod
    def from_json(cls, data: Any) -> JobRecord:
        """
        Read what :meth:`to_json` wrote.

        :raises ValueError: if it cannot be read; that must never be taken for "there is no record"
        """
        if not isinstance(data, Mapping):
            raise ValueError(f"the record is a {type(data).__name__}, not a mapping")
        try:
            phase = Phase(data["phase"])
            handle = None if data["handle"] is None else JobHandle.from_json(data["handle"])
            failure = None if data["failure"] is None else Failure.from_json(data["failure"])
            # Records of an earlier version have none: what was cleared then is taken for a retry, which pays nothing.
            clear = data.get("clear")
            record = cls(
                phase=phase,
                fingerprint=str(data["fingerprint"]),
                max_tries=int(data["max_tries"]),
                written_at=float(data["written_at"]),
                handle=handle,
                failure=failure,
                clear=None if clear is None else Clear(int(clear["try_number"]), float(clear["met_at"])),
            )
        except (KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"the record lacks or garbles {error}") from error
        if phase is not Phase.ENDED and (handle is None) != (phase is Phase.INTENT):
            raise ValueError(f"a handle does not go with the phase {phase.value!r}")
        if (failure is not None) != (phase is Phase.ENDED):
            raise ValueError(f"a failure does not go with the phase {phase.value!r}")
        return record


_ENDINGS = {
    FailureKind.CONTENT_REFUSED,
    FailureKind.INPUT,
    FailureKind.JOB_CANCELLED,
    FailureKind.JOB_FAILED,
    FailureKind.QUEUE_TIMEOUT,
    FailureKind.RESULT_EXPIRED,
    FailureKind.TIMEOUT,
}


def ends_the_job(failure: Failure) -> bool:
    """
    Whether a failure of a wait is the end of its job, and so to be written down.

    A refused key, an empty account or answers that cannot be understood are not: the job may run on, or its
    result may lie there paid for, and the next try must look at it again.
    """
    return failure.request_id is not None and failure.kind in _ENDINGS


def cancelled_by_a_clear(record: JobRecord, try_number: int, *, within: float = math.inf) -> bool:
    """
    Whether a job ended by the cancellation that the user's own clear had caused, in the very try that met the clear.

    A clear lets whoever waits for the job cancel it, while the next try may begin and find the job alive. Which of
    the two comes first is luck; in both cases the user has asked for another job. A cancellation that comes later, or
    in a later try, is somebody else's.

    :param within: seconds after the clear by which its cancellation must have been seen
    """
    return (
        record.clear is not None
        and record.clear.try_number == try_number
        and record.written_at - record.clear.met_at <= within
        and record.failure is not None
        and record.failure.kind is FailureKind.JOB_CANCELLED
    )


class Do(str, Enum):
    """What a try does."""

    SUBMIT = "submit"
    REATTACH = "reattach"
    FAIL_UNKNOWN = "fail_unknown"
    FAIL_AGAIN = "fail_again"
    FAIL_CHANGED = "fail_changed"


@dataclass(frozen=True)
class Decision:
    """
    What a try does, and why.

    :param do: the step
    :param why: a sentence for the log, or for the error
    :param handle: the job to re-attach to
    """

    do: Do
    why: str
    handle: JobHandle | None = None


def fingerprint(model: str, arguments: Mapping[str, Any], fal_conn_id: str, *, dialect: str = "fal") -> str:
    """
    Return a hash of what is asked for: dialect, model, arguments and connection, but neither host nor try.

    A gateway that moves, or a second try, is the same request.
    """
    text = json.dumps(
        [dialect, model, arguments, fal_conn_id], sort_keys=True, ensure_ascii=False, default=str
    )
    return hashlib.sha256(text.encode()).hexdigest()


def was_cleared(record: JobRecord, max_tries: int) -> bool:
    """
    Whether a user cleared the task since the record was written.

    Airflow raises ``max_tries`` when a task is cleared and leaves it when it is retried. When several running
    tasks are cleared at once, not all are raised (3.3.2): such a clear is taken for a retry, which re-attaches
    and pays nothing.
    """
    return record.max_tries != max_tries


def found_gone(record: JobRecord | None) -> bool:
    """Whether the last wait for a recorded job ended because the gateway did not know it, or had no result of it."""
    return (
        record is not None
        and record.handle is not None
        and record.failure is not None
        and record.failure.kind is FailureKind.RESULT_EXPIRED
    )


def _is_over(record: JobRecord, cleared: bool) -> bool:
    """
    Whether a job whose wait failed needs no other look.

    One that was not found may be found again, for a gateway can lose a path for a while; so a clear looks again
    before it pays.
    """
    if record.failure is None:
        return False
    if record.handle is None:
        return True
    return not (record.failure.may_run or (cleared and found_gone(record)))


def decide(
    record: JobRecord | None,
    *,
    asked: str,
    cleared: bool,
    state: Seen,
    try_number: int = 0,
    on_unknown_submit: str = "fail",
    on_changed_arguments: str = "reattach",
    on_clear: str = "regenerate",
) -> Decision:
    """
    Decide what this try of a submitting task does.

    The job decides, not a guess at why the task was started again.

    :param record: what the ledger has, or None
    :param asked: fingerprint of what this try asks for
    :param cleared: a user cleared the task since the record was written
    :param state: what the gateway says of the recorded job. No answer counts as live; that it does not know the job
        is an answer
    :param try_number: Airflow's number of this try
    """
    if record is None:
        return Decision(Do.SUBMIT, "There is no record of a submit.")
    if record.failure is not None and _is_over(record, cleared):
        if cleared:
            return Decision(Do.SUBMIT, "Cleared; the last job ended without a result.")
        if cancelled_by_a_clear(record, try_number):
            return Decision(Do.SUBMIT, "Cleared, and the last job was cancelled by that.")
        if record.failure.transient:
            return Decision(Do.SUBMIT, "The last job ended unbilled, for a reason that may have passed.")
        return Decision(Do.FAIL_AGAIN, "the last job ended for a reason that no retry can mend")
    if record.phase is Phase.INTENT or record.handle is None:
        if on_unknown_submit == "resubmit":
            why = "A previous try may have submitted; on_unknown_submit='resubmit' says to submit again."
            return Decision(Do.SUBMIT, why)
        return Decision(
            Do.FAIL_UNKNOWN, "a previous try was about to submit and left no trace of what came of it"
        )
    request_id = record.handle.request_id
    if cleared and state == GONE and not (record.phase is Phase.DELIVERED and on_clear == "reuse"):
        return Decision(Do.SUBMIT, f"Cleared; the gateway does not have request {request_id}.")
    if cleared and state in (JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED):
        if state is not JobState.SUCCEEDED:
            return Decision(Do.SUBMIT, f"Cleared; request {request_id} ended without a result.")
        if record.phase is Phase.DELIVERED and on_clear == "regenerate":
            why = (
                f"Cleared; request {request_id} was delivered, and on_clear='regenerate' asks for a new one."
            )
            return Decision(Do.SUBMIT, why)
    if record.fingerprint != asked:
        if on_changed_arguments == "resubmit":
            why = f"The arguments changed since request {request_id}; on_changed_arguments='resubmit'."
            return Decision(Do.SUBMIT, why)
        if on_changed_arguments == "fail":
            return Decision(
                Do.FAIL_CHANGED, f"the arguments changed since request {request_id} was submitted"
            )
        why = (
            f"Re-attaching to request {request_id} although model, arguments or connection changed since it was "
            "submitted; on_changed_arguments decides this."
        )
        return Decision(Do.REATTACH, why, record.handle)
    return Decision(
        Do.REATTACH, f"Re-attaching to request {request_id}; nothing is submitted.", record.handle
    )
