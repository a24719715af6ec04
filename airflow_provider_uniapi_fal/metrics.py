"""
What is counted and timed, through Airflow's own metrics (StatsD, DogStatsD or OpenTelemetry, as Airflow is set up).

Names alone tell outcomes apart, because plain StatsD knows no tags; where tags are known, ``model`` and
``fal_conn_id`` come with each. ``docs/metrics.md`` has the same names.
"""

from __future__ import annotations

import logging
import math
import re
from typing import TYPE_CHECKING, Any

from airflow.sdk.observability import stats

from airflow_provider_uniapi_fal.protocol.errors import FailureKind

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow_provider_uniapi_fal.protocol.errors import Failure
    from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult

log = logging.getLogger(__name__)

PREFIX = "uniapi_fal"

#: A submit that the gateway accepted: a paid job.
SUBMITTED = f"{PREFIX}.submitted"

#: How a job, a submit or a wait ended, by outcome; each try that learns of it counts.
OUTCOMES = {
    word: f"{PREFIX}.outcomes.{word}"
    for word in ("succeeded", "flagged", "refused", "failed", "timed_out", "cancelled", "unknown")
}

#: Why one did not succeed, by the kind of its failure.
FAILURES = {kind: f"{PREFIX}.failures.{kind.value}" for kind in FailureKind}

#: A landing that failed; its job is done and paid.
LANDING_FAILED = f"{PREFIX}.landing_failed"

#: Seconds from a submit to the first sight of its job running, and of running.
QUEUED = f"{PREFIX}.seconds_queued"
RUNNING = f"{PREFIX}.seconds_running"

#: What the server says was charged, where it says so.
BILLABLE_UNITS = f"{PREFIX}.billable_units"

#: A batch that failed, for its table or for too few successes; its rows are counted by themselves.
BATCH_FAILED = f"{PREFIX}.batch_failed"

NAMES = (
    SUBMITTED,
    *OUTCOMES.values(),
    *FAILURES.values(),
    LANDING_FAILED,
    BATCH_FAILED,
    QUEUED,
    RUNNING,
    BILLABLE_UNITS,
)

_NO_TAG = re.compile(r"[^A-Za-z0-9_.-]")


def submitted(handle: JobHandle) -> None:
    """Count a job that the gateway accepted."""
    _send(stats.incr, SUBMITTED, tags=_tags(handle))


def delivered(result: JobResult) -> None:
    """Count and time a job whose result a task has; flagged ones are counted as such."""
    ended_well(
        result.handle,
        flagged=result.flagged,
        seconds_queued=result.seconds_queued,
        seconds_running=result.seconds_running,
        billable_units=result.billable_units,
    )


def ended_well(
    handle: JobHandle,
    *,
    flagged: bool,
    seconds_queued: float | None,
    seconds_running: float | None,
    billable_units: str | None,
) -> None:
    """Count and time a job by what is known of it once its result is gone."""
    tags = _tags(handle)
    _send(stats.incr, OUTCOMES["flagged" if flagged else "succeeded"], tags=tags)
    # Airflow takes a bare number for milliseconds.
    for name, seconds in ((QUEUED, seconds_queued), (RUNNING, seconds_running)):
        if seconds is not None:
            _send(stats.timing, name, seconds * 1000, tags=tags)
    units = _number(billable_units)
    if units:
        # StatsD and OpenTelemetry both add fractions up, whatever the annotation says.
        _send(stats.incr, BILLABLE_UNITS, units, tags=tags)


def failed(failure: Failure) -> None:
    """Count what a task failed on, by outcome and by kind."""
    _send(stats.incr, OUTCOMES[failure.outcome])
    _send(stats.incr, FAILURES[failure.kind])


def batch_failed(failure: Failure) -> None:
    """Count a batch that failed, whatever on; its rows are counted by themselves."""
    _send(stats.incr, BATCH_FAILED)


def landing_failed(failure: Failure) -> None:
    """Count a landing that failed, whatever on."""
    _send(stats.incr, LANDING_FAILED)


def _send(emit: Callable[..., None], *what: Any, **tags: Any) -> None:
    """Emit a metric; one that cannot be emitted must not end a task that holds a paid job."""
    try:
        emit(*what, **tags)
    except Exception:
        log.warning("The metric %s could not be emitted.", what[0], exc_info=True)


def _tags(handle: JobHandle) -> dict[str, str]:
    # StatsD with tags writes them between commas and equals signs; slashes are no letters of its names either.
    return {
        "model": _NO_TAG.sub("_", handle.model),
        "fal_conn_id": _NO_TAG.sub("_", handle.fal_conn_id),
    }


def _number(text: str | None) -> float | None:
    """Return what the server wrote as a number above 0, or None."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 < number < math.inf else None
