"""The sensor that waits for a job."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseSensorOperator, PokeReturnValue
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, AirflowSkipException

from airflow_provider_uniapi_fal import metrics
from airflow_provider_uniapi_fal.exceptions import FalSensorTimeout, FalTimeout, error_of
from airflow_provider_uniapi_fal.hooks.fal import DEFAULT_CONN_ID, FalHook
from airflow_provider_uniapi_fal.mapping import CheckedWhenMapped
from airflow_provider_uniapi_fal.protocol.arguments import one_of, seconds, seconds_or_none
from airflow_provider_uniapi_fal.protocol.cadence import LONGEST
from airflow_provider_uniapi_fal.protocol.dialects import dialect_named
from airflow_provider_uniapi_fal.protocol.errors import bad_input
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult
from airflow_provider_uniapi_fal.protocol.streaming import WAYS, WatchBy
from airflow_provider_uniapi_fal.protocol.watching import RoundEnd, WaitMore, Watch
from airflow_provider_uniapi_fal.reporting import failure_in_xcom, summary
from airflow_provider_uniapi_fal.triggers.deferring import DeferringOperator, is_deferrable
from airflow_provider_uniapi_fal.triggers.fal import (
    BACKSTOP_SECONDS,
    RACE_SECONDS,
    FalQueueTrigger,
    result_of,
)

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

    from airflow_provider_uniapi_fal.protocol.errors import Failure

#: Where a sensor in reschedule mode keeps what it has seen between its pokes.
PROGRESS_KEY = "uniapi_fal:watch"


class FalQueueSensor(CheckedWhenMapped, DeferringOperator, BaseSensorOperator):
    """
    Wait until a job has ended, and return its result.

    It submits nothing: a retry or a clear looks at the same job again. Queue position and the model's log lines
    appear in the task's log once each.

    Give the job in one of three ways: ``handle``, or ``status_url``, or ``request_id`` with ``model``.

    :param handle: what ``FalSubmitOperator``, or any other operator of this provider with ``wait=False``, returned
        (templated); it names its dialect and its connection
    :param status_url: address of a status (templated); its host is not used, the connection's is
    :param request_id: the server's id (templated)
    :param model: model id that the request was submitted to (templated)
    :param dialect: wire protocol of ``status_url`` and ``request_id``, default ``fal``; a handle names its own
    :param fal_conn_id: connection for ``status_url`` and ``request_id`` (templated; default ``fal_default``);
        with a handle, None means the handle's own
    :param deferrable: True (default) waits in the triggerer without a worker; False waits in the worker, by
        ``mode`` ``poke`` or ``reschedule``; None asks Airflow's ``[operators] default_deferrable``
    :param poke_interval: seconds between looks; None (default) is adaptive: closely when the job is due, as far as
        the process has learned how long jobs of the model take, else a third of the job's age, between 1.5
        and 15 seconds; at least 7 seconds in mode ``reschedule``
    :param watch: how the triggerer learns that the job has ended: ``poll`` asks for its status; ``stream``
        follows fal's status stream, and falls back to polls where there is none; ``auto`` (default) lets one job
        find out whether the gateway streams, while it is polled as well, and then does what serves. A fixed
        ``poke_interval`` is polled. The worker, before it defers, polls
    :param timeout: seconds until the wait fails; default is Airflow's ``[sensors] default_timeout``. The job is
        not cancelled
    :param soft_fail: skip the task instead of failing it on a time-out or a hopeless case; default False
    :param logs: bring the model's log lines into the task's log; default True
    :param defer_after: seconds to watch from the worker before deferring, default 6: short jobs need no trigger
    :return: the result as JSON values, see :class:`~airflow_provider_uniapi_fal.protocol.job.JobResult`; data
        URIs are left out of it
    :raises FalSensorTimeout: the wait is over; the job may still run and be billed. Airflow makes no retry after
        a sensor's time-out; a clear looks again
    :raises FalJobFailed: the job failed; ``billed`` says whether it was charged
    :raises FalContentRefused: the model refused the content; it may be billed
    :raises FalInputError: the model refused its input, or the sensor's own arguments are wrong
    :raises FalJobCancelled: somebody cancelled the job
    :raises FalResultExpired: the job ended, but its result is kept no longer; it may be billed
    :raises FalAuthError: the key is refused; the job is not affected
    :raises FalProtocolError: the gateway's answers cannot be understood; the job may run
    """

    template_fields: Sequence[str] = ("handle", "status_url", "request_id", "model", "fal_conn_id")
    ui_color = "#d9f2ff"

    def __init__(
        self,
        *,
        handle: Mapping[str, Any] | XComArg | None = None,
        status_url: str | XComArg | None = None,
        request_id: str | XComArg | None = None,
        model: str | XComArg | None = None,
        dialect: str = "fal",
        fal_conn_id: str | None = None,
        deferrable: bool | None = True,
        poke_interval: timedelta | float | None = None,
        watch: WatchBy = "auto",
        logs: bool = True,
        defer_after: timedelta | float = 6.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(poke_interval=LONGEST if poke_interval is None else poke_interval, **kwargs)
        ways = {"handle": handle, "status_url": status_url, "request_id": request_id}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            raise ValueError("give exactly one of handle, status_url and request_id (with model)")
        if request_id is not None and model is None:
            raise ValueError("request_id needs model: its path leads to the job")
        self.deferrable = is_deferrable(deferrable)
        if self.deferrable and self.mode == "reschedule":
            raise ValueError("mode='reschedule' needs deferrable=False")
        seconds_or_none("poke_interval", poke_interval)
        seconds("timeout", self.timeout)
        # Templates and XComs are values by the time that execute() looks.
        self.handle: Any = handle
        self.status_url: Any = status_url
        self.request_id: Any = request_id
        self.model: Any = model
        dialect_named(dialect)
        self.dialect = dialect
        self._way = given[0]
        self.fal_conn_id = fal_conn_id
        self._adaptive = poke_interval is None
        self.watch = one_of("watch", watch, WAYS)
        self.logs = logs
        self.defer_after = seconds("defer_after", defer_after, or_zero=True)
        self._started_at: float | None = None
        self._watch: Watch | None = None
        self._hook: FalHook | None = None

    def execute(self, context: Context) -> Any:  # noqa: RET503 - defer() does not return
        """Wait, and return the result as JSON values."""
        self._started_at = time.time()
        if not self.deferrable:
            return super().execute(context)
        with self._skips_as_in_poke_mode(), failure_in_xcom(context), _times_out_as_sensors_do():
            watch = self._new_watch(self._started_at)
            end = self._hook_of(watch).watch_for(watch, self.defer_after, self._say)
            if not isinstance(end, WaitMore):
                return self._delivered(watch, end).to_json()
        now = time.time()
        self.defer(
            trigger=FalQueueTrigger.of(watch, next_look_at=now + end.seconds, hold_until=now + RACE_SECONDS),
            method_name="execute_complete",
            timeout=timedelta(seconds=self._started_at + self.timeout - now + BACKSTOP_SECONDS),
        )

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take what the trigger brought: return the result as JSON values, or raise what went wrong."""
        with self._skips_as_in_poke_mode(), failure_in_xcom(context), _times_out_as_sensors_do():
            result = result_of(event)
        self._say(summary(result))
        metrics.delivered(result)
        return result.to_json()

    def without_an_event(self, context: Context, failure: Failure) -> dict[str, Any]:
        """Raise the error of a wait that has ended without an event."""
        with self._skips_as_in_poke_mode(), failure_in_xcom(context), _times_out_as_sensors_do():
            raise error_of(failure.about(self._resolved_handle().request_id))

    def poke(self, context: Context) -> bool | PokeReturnValue:
        """Look once; done when the result is there."""
        with failure_in_xcom(context), _times_out_as_sensors_do():
            return self._poke(context)

    def _poke(self, context: Context) -> bool | PokeReturnValue:
        watch = self._watch or self._watch_of_mode(context)
        self._watch = watch
        end = self._hook_of(watch).watch_for(watch, 0, self._say)
        if isinstance(end, WaitMore):
            # What is left until the deadline may be less than the interval.
            self.poke_interval = end.seconds
            if self.reschedule and self._adaptive:
                # A rescheduled task that comes back too soon meets the same race as a deferred one.
                self.poke_interval = max(end.seconds, RACE_SECONDS)
            if self.reschedule:
                seen: Any = {"handle": watch.handle.to_json(), "progress": watch.progress()}
                context["task_state_store"].set(PROGRESS_KEY, seen)
            return False
        return PokeReturnValue(is_done=True, xcom_value=self._delivered(watch, end).to_json())

    def _watch_of_mode(self, context: Context) -> Watch:
        if not self.reschedule:
            return self._new_watch(self._started_at or time.time())
        first = context["ti"].get_first_reschedule_date(context)
        watch = self._new_watch(first.timestamp() if first else self._started_at or time.time())
        seen: Any = context["task_state_store"].get(PROGRESS_KEY)
        if first and isinstance(seen, dict):
            known = JobHandle.from_json(seen["handle"])
            if known.request_id == watch.handle.request_id:
                watch.handle = known
                watch.resume(seen["progress"])
        return watch

    def _new_watch(self, started_at: float) -> Watch:
        return Watch(
            self._resolved_handle(),
            deadline=started_at + self.timeout,
            poke_interval=None if self._adaptive else self.poke_interval,
            by=self.watch,
            logs=self.logs,
        )

    def _resolved_handle(self) -> JobHandle:
        if not getattr(self, self._way):
            raise error_of(bad_input(f"{self._way}: it is empty now that the task runs."))
        if self.handle is None:
            hook = FalHook(self.fal_conn_id or DEFAULT_CONN_ID)
            return hook.handle_of(
                status_url=self.status_url,
                request_id=self.request_id,
                model=self.model,
                dialect=self.dialect,
            )
        try:
            handle = JobHandle.from_json(self.handle)
        except ValueError as error:
            raise error_of(bad_input(f"handle: {error}.")) from error
        return handle if self.fal_conn_id is None else replace(handle, fal_conn_id=self.fal_conn_id)

    def _hook_of(self, watch: Watch) -> FalHook:
        self._hook = self._hook or FalHook(watch.handle.fal_conn_id)
        return self._hook

    def _say(self, line: str) -> None:
        self.log.info("%s", line)

    def _delivered(self, watch: Watch, end: RoundEnd) -> JobResult:
        result = self._hook_of(watch).delivered(watch, end)
        self._say(summary(result))
        metrics.delivered(result)
        return result

    @contextmanager
    def _skips_as_in_poke_mode(self) -> Iterator[None]:
        """Skip a deferrable wait on what Airflow skips one in poke mode on."""
        try:
            yield
        except Exception as error:
            hopeless = isinstance(error, (AirflowSensorTimeout, AirflowFailException))
            if self.never_fail or (self.soft_fail and hopeless):
                raise AirflowSkipException(f"Skipped, as soft_fail or never_fail says: {error}") from error
            raise


@contextmanager
def _times_out_as_sensors_do() -> Iterator[None]:
    """Raise a time-out as one of Airflow's sensors, which is skipped on ``soft_fail`` and never retried."""
    try:
        yield
    except FalTimeout as error:
        again = "is not made by Airflow after a sensor's time-out; a clear looks at the same job again."
        raise FalSensorTimeout(replace(error.failure, retry_does=again)) from None
