"""
The errors that this provider raises: one class for each way in which a call or a job can go wrong.

Each carries a :class:`~airflow_provider_uniapi_fal.protocol.errors.Failure`, whose fields say what became of
the job and of the money. Where Airflow gives a class of its own a meaning, ours derive from it, too: no retry
follows an ``AirflowFailException``, nor a sensor's ``AirflowSensorTimeout``, on which ``soft_fail`` skips it.
"""

from __future__ import annotations

from typing import ClassVar

from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout

from airflow_provider_uniapi_fal.protocol.errors import Billed, Failure, FailureKind


class FalError(Exception):
    """
    What all of them have in common.

    Not an ``AirflowException`` itself: a deferred sensor with ``soft_fail`` would be skipped on every one of
    those, a blocking one on time-outs and hopeless cases only.

    :param failure: what happened, to the job and to the money
    """

    kind: ClassVar[FailureKind]

    def __init__(self, failure: Failure) -> None:
        super().__init__(str(failure))
        self.failure = failure

    def __reduce__(self) -> tuple[type[FalError], tuple[Failure]]:
        """Keep the failure when the error is pickled."""
        return (type(self), (self.failure,))

    @property
    def error_type(self) -> str | None:
        """The server's own word, such as ``runner_disconnected``."""
        return self.failure.error_type

    @property
    def billed(self) -> Billed:
        """Whether the job was billed: ``no``, ``maybe`` or ``yes``."""
        return self.failure.billed

    @property
    def may_run(self) -> bool:
        """Whether a job may still be running, and so still cost money."""
        return self.failure.may_run

    @property
    def retry_does(self) -> str:
        """What the next try will do."""
        return self.failure.retry_does


class FalInputError(FalError, AirflowFailException):
    """Model, arguments or settings are wrong. Refused before the submit: not billed. By the model: perhaps."""

    kind = FailureKind.INPUT


class FalContentRefused(FalError, AirflowFailException):
    """The model refused the prompt or the media. It may have been billed; a retry cannot help."""

    kind = FailureKind.CONTENT_REFUSED


class FalBalanceError(FalError, AirflowFailException):
    """The account has no balance or is locked. Nothing is billed; a retry cannot help before that is mended."""

    kind = FailureKind.BALANCE


class FalAuthError(FalError, AirflowFailException):
    """
    The key is missing, malformed or refused, or the connection is of another type and its password no key.

    A running job is not affected; a retry cannot help.
    """

    kind = FailureKind.AUTH


class FalRateLimited(FalError):
    """The gateway asks for patience. Nothing was accepted, nothing is billed; a retry submits."""

    kind = FailureKind.RATE_LIMITED


class FalQueueTimeout(FalError):
    """
    The job never started in the time it was given. Whether it was removed from the queue: see ``may_run``.

    A retry submits again if it was removed, and else looks at the same job again.
    """

    kind = FailureKind.QUEUE_TIMEOUT


class FalTimeout(FalError):
    """
    The wait has ended before the job did. Whether it may still run and be billed: see ``may_run``, ``billed``.

    A retry submits again if the job was removed from the queue, fails at once if it was stopped while it ran,
    and else looks at the same job again.
    """

    kind = FailureKind.TIMEOUT


class FalSensorTimeout(FalTimeout, AirflowSensorTimeout):
    """The same from a sensor: Airflow makes no retry after it. The job may still run and be billed."""


class FalJobFailed(FalError):
    """The job ended in an error. fal does not charge its own errors (5xx); see ``billed``."""

    kind = FailureKind.JOB_FAILED


class FalJobCancelled(FalError):
    """The job was cancelled. Whether a run that had begun is billed is not documented."""

    kind = FailureKind.JOB_CANCELLED


class FalSubmitOutcomeUnknown(FalError, AirflowFailException):
    """
    Nobody can tell whether a submit was accepted: its reply was lost.

    A job may be running and may be billed. It is never posted again by itself, and no retry is made.
    """

    kind = FailureKind.SUBMIT_OUTCOME_UNKNOWN


class FalResultExpired(FalError, AirflowFailException):
    """The job or its result is not at the gateway any more. It may have been billed; a retry cannot help."""

    kind = FailureKind.RESULT_EXPIRED


class FalProtocolError(FalError):
    """The gateway could not be reached, or its answers could not be understood; ``billed`` says the rest."""

    kind = FailureKind.PROTOCOL


_CLASSES: dict[FailureKind, type[FalError]] = {
    cls.kind: cls
    for cls in (
        FalInputError,
        FalContentRefused,
        FalBalanceError,
        FalAuthError,
        FalRateLimited,
        FalQueueTimeout,
        FalTimeout,
        FalJobFailed,
        FalJobCancelled,
        FalSubmitOutcomeUnknown,
        FalResultExpired,
        FalProtocolError,
    )
}


def error_of(failure: Failure) -> FalError:
    """Return the error to raise for a failure."""
    return _CLASSES[failure.kind](failure)
