"""How a failed task tells its story to the tasks after it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from airflow_provider_uniapi_fal.exceptions import FalError

if TYPE_CHECKING:
    from airflow.sdk import Context

#: XCom key under which a failed submit, wait or landing leaves what went wrong.
FAILURE_KEY = "failure"


@contextmanager
def failure_in_xcom(context: Context) -> Iterator[None]:
    """
    Leave a failure in XCom before it is raised, so that an account at the end of the DAG can name it.

    ``{"outcome", "message", "kind", "what", "billed", "may_run", …}``; no prompt, no input, no key.
    """
    try:
        yield
    except FalError as error:
        value = {"outcome": error.failure.outcome, "message": str(error), **error.failure.to_json()}
        context["ti"].xcom_push(key=FAILURE_KEY, value=value)
        raise
