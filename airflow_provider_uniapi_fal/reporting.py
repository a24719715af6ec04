"""How a task tells its story, in its log and to the tasks after it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from airflow.sdk import Asset

from airflow_provider_uniapi_fal import metrics
from airflow_provider_uniapi_fal.exceptions import FalError

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_uniapi_fal.protocol.errors import Failure
    from airflow_provider_uniapi_fal.protocol.job import JobResult

#: XCom key under which a task that submits one job leaves its id, as soon as it has one.
REQUEST_ID_KEY = "request_id"

#: XCom key under which a task that writes a manifest says where, before it is written.
MANIFEST_KEY = "manifest_path"

#: XCom key under which a failed submit, wait or landing leaves what went wrong.
FAILURE_KEY = "failure"


def summary(result: JobResult) -> str:
    """Say in one line what a job brought."""
    flagged = sum(file.flagged for file in result.media)
    note = f" {flagged} of them flagged as unsafe." if flagged else ""
    return (
        f"Request {result.handle.request_id} has succeeded: {len(result.media)} media files, queued for "
        f"{result.seconds_queued} s, running for {result.seconds_running} s.{note}"
    )


@contextmanager
def failure_in_xcom(context: Context, counts: Callable[[Failure], None] = metrics.failed) -> Iterator[None]:
    """
    Leave a failure in XCom before it is raised, so that an account at the end of the DAG can name it; count it.

    ``{"outcome", "message", "kind", "what", "billed", "may_run", …}``; no prompt, no input, no key.
    """
    try:
        yield
    except FalError as error:
        counts(error.failure)
        value = {"outcome": error.failure.outcome, "message": str(error), **error.failure.to_json()}
        context["ti"].xcom_push(key=FAILURE_KEY, value=value)
        raise


def tell_assets(context: Context, outlets: Iterable[Any], extra: Mapping[str, Any]) -> None:
    """
    Give the events of a task's outlet assets what is worth knowing of them.

    Airflow emits them when the task has succeeded. Outlets of other kinds, such as aliases, are left alone.
    """
    for outlet in outlets:
        if isinstance(outlet, Asset):
            context["outlet_events"][outlet].extra.update(extra)
