"""Whether a task defers, and what it says if its wait ends without an event of its trigger."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, conf
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason

from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind

if TYPE_CHECKING:
    from airflow.sdk import Context


def is_deferrable(given: bool | None) -> bool:
    """Return whether a task waits in the triggerer; None asks Airflow's ``[operators] default_deferrable``."""
    if given is None:
        return conf.getboolean("operators", "default_deferrable", fallback=False)
    return given


class DeferringOperator(BaseOperator):
    """
    Base of what waits in a triggerer.

    Airflow resumes a task whose deferral has timed out, or whose trigger has crashed, only for it to fail: with an
    error that says nothing of the job and of the money. Here it becomes one of this provider's.
    """

    def resume_execution(self, next_method: str, next_kwargs: dict[str, Any] | None, context: Context) -> Any:
        """Go on after an event, or tell what became of a wait that has ended without one."""
        if next_method != TRIGGER_FAIL_REPR:
            return super().resume_execution(next_method, next_kwargs, context)
        told = next_kwargs or {}
        if told.get("traceback"):
            self.log.error(
                "The trigger failed:\n%s", "\n".join(str(line).rstrip() for line in told["traceback"])
            )
        timed_out = told.get("error") == TriggerFailureReason.TRIGGER_TIMEOUT
        return self.without_an_event(context, _TIMED_OUT if timed_out else _CRASHED)

    @abstractmethod
    def without_an_event(self, context: Context, failure: Failure) -> Any:
        """Raise the error of a wait that has ended without an event, with what the task knows of its job."""


def foreign_event(event: object, *, retry_does: str) -> Failure:
    """Return the failure of a task that was resumed with an event which is none of its trigger's."""
    shape = (
        f"a mapping with {sorted(map(str, event))}" if isinstance(event, Mapping) else type(event).__name__
    )
    return Failure(
        FailureKind.PROTOCOL,
        what=f"The trigger's event cannot be understood: it is {shape}.",
        retry_does=retry_does,
        advice="Scheduler, triggerer and workers must run the same version of this provider.",
        billed="maybe",
        may_run=True,
    )


_TIMED_OUT = Failure(
    FailureKind.TIMEOUT,
    what="The wait has timed out (Airflow's own time-out of a deferral, after the end of the wait's time): no "
    "triggerer has ended it. Nothing was cancelled.",
    retry_does="looks at the same job again, if it is still there.",
    advice="See whether a triggerer runs and has room.",
    billed="maybe",
    may_run=True,
)

_CRASHED = Failure(
    FailureKind.PROTOCOL,
    what="The wait has ended because its trigger failed. Nothing was cancelled.",
    retry_does="looks at the same job again, if it is still there.",
    advice="The log tells what the trigger met; the triggerer must run the same version of this provider.",
    billed="maybe",
    may_run=True,
)
