"""The delay before a retry, as the server asked for it."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import RetryDecision, RetryPolicy

from airflow_provider_uniapi_fal.exceptions import FalError

if TYPE_CHECKING:
    from airflow.sdk import Context


class FalRetryPolicy(RetryPolicy):
    """
    Wait before a retry as long as the gateway asked by Retry-After.

    Whether there is a retry is not its business: that lies in the classes of the errors, of which Airflow does
    not retry the hopeless ones, and in the ledger, which decides what a retry does. So a task without this
    policy is as safe; it only comes back too early after a 429.

    Give it to a task openly: ``FalSubmitOperator(..., retries=3, retry_policy=FalRetryPolicy())``.

    :param longest: no delay is longer than this; default one hour
    """

    def __init__(self, *, longest: timedelta = timedelta(hours=1)) -> None:
        if longest <= timedelta(0):
            raise ValueError("longest must be more than 0")
        self.longest = longest

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        """Return the delay that the server asked for, or leave the decision to the task's own settings."""
        asked = exception.failure.retry_after if isinstance(exception, FalError) else None
        if asked is None:
            return RetryDecision.default()
        delay = min(timedelta(seconds=asked), self.longest)
        return RetryDecision.retry(delay, f"The gateway asked to wait for {asked:g} seconds.")

    def serialize(self) -> dict[str, Any]:
        """Return it as JSON values."""
        return {"longest": self.longest.total_seconds()}

    @classmethod
    def deserialize(cls, data: dict[str, Any]) -> FalRetryPolicy:
        """Read what :meth:`serialize` wrote."""
        return cls(longest=timedelta(seconds=data["longest"]))
