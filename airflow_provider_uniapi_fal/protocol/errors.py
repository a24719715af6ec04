"""
What went wrong, as a value: what happened, whether the job may run, whether it was billed, what a retry does.

A failure travels from the trigger to the worker as JSON, so that a deferred wait ends in the very error in
which a blocking one ends. The exceptions that carry it live in ``airflow_provider_uniapi_fal.exceptions``,
because some of them are also Airflow's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from enum import Enum
from typing import Any, Literal

Billed = Literal["no", "maybe", "yes"]


class FailureKind(str, Enum):
    """The twelve ways in which a call or a job can go wrong; one exception class each."""

    INPUT = "input"
    CONTENT_REFUSED = "content_refused"
    BALANCE = "balance"
    AUTH = "auth"
    RATE_LIMITED = "rate_limited"
    QUEUE_TIMEOUT = "queue_timeout"
    TIMEOUT = "timeout"
    JOB_FAILED = "job_failed"
    JOB_CANCELLED = "job_cancelled"
    SUBMIT_OUTCOME_UNKNOWN = "submit_outcome_unknown"
    RESULT_EXPIRED = "result_expired"
    PROTOCOL = "protocol"


_OUTCOMES = {
    FailureKind.CONTENT_REFUSED: "refused",
    FailureKind.QUEUE_TIMEOUT: "timed_out",
    FailureKind.TIMEOUT: "timed_out",
    FailureKind.JOB_CANCELLED: "cancelled",
    FailureKind.SUBMIT_OUTCOME_UNKNOWN: "unknown",
}

_BILLED_WORDS: dict[Billed, str] = {
    "no": "It was not billed.",
    "maybe": "It may have been billed.",
    "yes": "It was billed.",
}


@dataclass(frozen=True)
class Failure:
    """
    One failure and its fate.

    :param kind: which of the twelve
    :param what: what happened, one sentence; never contains the key, a prompt or an input
    :param retry_does: what the next try will do, one sentence
    :param advice: what the user can do, one sentence; may be empty
    :param billed: whether the job was billed, as far as can be known
    :param may_run: whether a job may still be running, and so still cost money
    :param transient: the job ended unbilled for a reason that may pass: submitting it again is safe
    :param error_type: the server's own machine-readable word, such as ``content_policy_violation``
    :param http_status: HTTP status of the reply that said so
    :param retry_after: seconds that the server asked to wait
    :param request_id: the job, where there is one
    """

    kind: FailureKind
    what: str
    retry_does: str
    advice: str = ""
    billed: Billed = "no"
    may_run: bool = False
    transient: bool = False
    error_type: str | None = None
    http_status: int | None = None
    retry_after: float | None = None
    request_id: str | None = None

    @property
    def outcome(self) -> str:
        """The word for it in an account: refused, timed_out, cancelled, unknown or failed."""
        return _OUTCOMES.get(self.kind, "failed")

    def about(self, request_id: str) -> Failure:
        """Return the same failure with the job's id in it."""
        return self if self.request_id else replace(self, request_id=request_id)

    def while_waiting(self, request_id: str) -> Failure:
        """Return what kept a wait from looking, as a failure that leaves its job as it is."""
        return replace(self.about(request_id), billed="maybe", may_run=True)

    def __str__(self) -> str:
        """Return the message: what happened, then the job, the money, the next try and the advice."""
        job = f"Request {self.request_id}: {self.what}" if self.request_id else self.what
        runs = "The job may still be running." if self.may_run else ""
        parts = (job, runs, _BILLED_WORDS[self.billed], f"A retry {self.retry_does}", self.advice)
        return " ".join(part for part in parts if part)

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {**asdict(self), "kind": self.kind.value}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Failure:
        """Read what :meth:`to_json` wrote; fields of a later version are passed over."""
        known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
        return cls(**{**known, "kind": FailureKind(known["kind"])})


def bad_input(what: str, advice: str = "") -> Failure:
    """Return the failure for input that was refused before anything was sent."""
    return Failure(
        FailureKind.INPUT,
        what=what,
        retry_does="would be refused in the same way.",
        advice=advice or "Nothing was sent to the gateway. Correct the value.",
    )


def unknown_outcome(why: str, http_status: int | None = None) -> Failure:
    """Return the failure for a submit of which nobody can tell whether it was accepted."""
    return Failure(
        FailureKind.SUBMIT_OUTCOME_UNKNOWN,
        what=f"The outcome of the submit is unknown: {why}. It is not posted again.",
        retry_does="does not submit, so that nothing is paid twice.",
        advice="Look for the request at the gateway. If it has none, set on_unknown_submit='resubmit' and clear "
        "the task.",
        billed="maybe",
        may_run=True,
        http_status=http_status,
    )
