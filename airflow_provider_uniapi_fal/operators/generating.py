"""What the operators that submit a job and wait for its result have in common."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow_provider_uniapi_fal import metrics
from airflow_provider_uniapi_fal.exceptions import FalError, error_of
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.hooks.task_states import cancel_if_killed, killed_by_user
from airflow_provider_uniapi_fal.ledger.record import (
    JobRecord,
    Phase,
    cancelled_by_a_clear,
    ends_the_job,
)
from airflow_provider_uniapi_fal.ledger.task_state import TaskLedger
from airflow_provider_uniapi_fal.links.fal import links_are_stored
from airflow_provider_uniapi_fal.operators.submitting import SubmittingOperator, handle_in, in_phase
from airflow_provider_uniapi_fal.protocol.arguments import both_clocks, one_of, seconds, seconds_or_none
from airflow_provider_uniapi_fal.protocol.cadence import LONGEST_REST
from airflow_provider_uniapi_fal.protocol.errors import FailureKind
from airflow_provider_uniapi_fal.protocol.job import JobHandle
from airflow_provider_uniapi_fal.protocol.streaming import WAYS, WatchBy
from airflow_provider_uniapi_fal.protocol.watching import WaitMore, Watch
from airflow_provider_uniapi_fal.reporting import failure_in_xcom, summary
from airflow_provider_uniapi_fal.triggers.deferring import DeferringOperator, is_deferrable
from airflow_provider_uniapi_fal.triggers.fal import (
    BACKSTOP_SECONDS,
    RACE_SECONDS,
    FalQueueTrigger,
    result_of,
)

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_provider_uniapi_fal.protocol.errors import Failure
    from airflow_provider_uniapi_fal.protocol.job import JobResult

#: Seconds in which a clear has cancelled the job, if it does: a worker learns of the clear by its heartbeat, every five
#: seconds, a triggerer in its next turn, and the gateway may be slow to answer. It is seen at the next look.
CLEAR_SECONDS = 60.0

#: Seconds that a killed task may spend on finding out whether a user has killed it. Airflow allows five.
KILL_SECONDS = 3.0

#: Seconds in which a job counts as submitted just now: so long its records and the way to the wait may take.
JUST_NOW = 7.0


class GeneratingOperator(DeferringOperator, SubmittingOperator):
    """
    Base of the operators that submit one job, wait for it and return its result: one task, one paid job.

    One ledger is over both: a retry or a clear takes up a job that still runs, delivers one that has succeeded,
    submits again only after a job that ended unbilled for a reason that may pass, and fails at once where no retry
    can help.

    Besides the parameters of :class:`~airflow_provider_uniapi_fal.operators.submitting.SubmittingOperator`:

    :param wait: True (default) waits for the result and returns it; False returns the handle at once, for
        ``FalQueueSensor(handle=…)``, and none of the parameters below applies
    :param deferrable: True (default) waits in the triggerer without a worker; False waits in the worker; None
        asks Airflow's ``[operators] default_deferrable``
    :param poke_interval: seconds between looks; None (default) is adaptive: closely when the job is due, as far as
        the process has learned how long jobs of the model take, else a third of the job's age, between 1.5
        and 15 seconds
    :param watch: how the triggerer learns that the job has ended: ``poll`` asks for its status; ``stream``
        follows fal's status stream, and falls back to polls where there is none; ``auto`` (default) lets one job
        find out whether the gateway streams, while it is polled as well, and then does what serves. A fixed
        ``poke_interval`` is polled. The worker, before it defers, polls
    :param queue_timeout: seconds in which the job must have been seen running, counted anew in each try; None
        (default) for no limit
    :param timeout: seconds until the wait fails, default one day; counted anew in each try
    :param cancel_on_timeout: ask the gateway to cancel the job when its time is over; default True
    :param cancel_on_kill: ask the gateway to cancel the job when a user clears the task or marks it failed or
        successful while it runs or waits; default True
    :param end_from_trigger: end the task in the triggerer if the job succeeds, without starting a worker again;
        default False. Asset events, success callbacks and extra links are left out then, and the ledger does
        not learn that the result was delivered
    :param logs: bring the model's log lines into the task's log; default True
    :param defer_after: seconds to watch from the worker before deferring, default 6: short jobs need no trigger
    :return: the result as JSON values, see :class:`~airflow_provider_uniapi_fal.protocol.job.JobResult`; data
        URIs are left out of it
    :raises FalQueueTimeout: the job never started. A retry submits again if it was removed from the queue, and
        else looks at the same job again; ``may_run`` tells the two apart
    :raises FalTimeout: the job did not end in time. A retry submits again if it was removed from the queue, fails
        at once if it was stopped while it ran (it may have been billed), and else looks at the same job again
    :raises FalJobFailed: the job failed; ``billed`` says whether it was charged
    :raises FalContentRefused: the model refused the content; it may be billed
    :raises FalJobCancelled: somebody cancelled the job
    :raises FalResultExpired: the job ended, but its result is kept no longer; it may be billed
    """

    ui_color = "#ffe9d6"

    def __init__(
        self,
        *,
        wait: bool = True,
        deferrable: bool | None = True,
        poke_interval: timedelta | float | None = None,
        watch: WatchBy = "auto",
        queue_timeout: timedelta | float | None = None,
        timeout: timedelta | float = 86400.0,
        cancel_on_timeout: bool = True,
        cancel_on_kill: bool = True,
        end_from_trigger: bool = False,
        logs: bool = True,
        defer_after: timedelta | float = 6.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.wait = wait
        self.deferrable = is_deferrable(deferrable)
        self.poke_interval = seconds_or_none("poke_interval", poke_interval)
        self.queue_timeout, self.timeout = both_clocks(queue_timeout, timeout)
        self.cancel_on_timeout = cancel_on_timeout
        self.cancel_on_kill = cancel_on_kill
        self.end_from_trigger = end_from_trigger
        self.watch = one_of("watch", watch, WAYS)
        self.logs = logs
        self.defer_after = seconds("defer_after", defer_after, or_zero=True)
        self._running: tuple[Any, JobHandle] | None = None

    def execute(self, context: Context) -> dict[str, Any]:  # noqa: RET503 - defer() does not return
        """Submit and wait, or go on where a previous try was; return the result as JSON values."""
        if not self.wait:
            return super().execute(context)
        ledger = TaskLedger(context["task_state_store"])
        hook = FalHook(self.fal_conn_id)
        with failure_in_xcom(context):
            record = self.submitted(context, hook, ledger)
            handle = handle_in(record)
            self._running = (context["ti"], handle)
            # An earlier try may have submitted it through another connection.
            hook = hook.of(handle)
            now = time.time()
            watch = Watch(
                handle,
                deadline=now + self.timeout,
                queue_deadline=None if self.queue_timeout is None else now + self.queue_timeout,
                cancel_on_timeout=self.cancel_on_timeout,
                poke_interval=self.poke_interval,
                by=self.watch,
                logs=self.logs,
            )
            in_worker = self.defer_after if self.deferrable else None
            # Of a job that was submitted just now the stream tells enough, and the trigger may open it at once.
            streamed = self.watch == "stream" and self.poke_interval is None
            told = in_worker == 0 and streamed and now - handle.submitted_at < JUST_NOW
            try:
                end = WaitMore(0.0) if told else hook.watch_for(watch, in_worker, self._say)
                if not isinstance(end, WaitMore):
                    return self._deliver(context, ledger, record, hook.delivered(watch, end))
            except FalError as error:
                return self._ended_badly(context, ledger, record, error)
        now = time.time()
        self.defer(
            trigger=FalQueueTrigger.of(
                watch,
                next_look_at=now + end.seconds,
                hold_until=now + RACE_SECONDS,
                cancel_on_kill=self.cancel_on_kill,
                end_from_trigger=self.end_from_trigger,
            ),
            method_name="execute_complete",
            timeout=timedelta(seconds=(watch.deadline or now) - now + BACKSTOP_SECONDS),
        )

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take what the trigger brought: return the result as JSON values, or raise what went wrong."""
        links_are_stored(self)
        ledger = TaskLedger(context["task_state_store"])
        with failure_in_xcom(context):
            record = _of_the_job(ledger.read(), event)
            try:
                result = result_of(event)
            except FalError as error:
                return self._ended_badly(context, ledger, record, error)
            return self._deliver(context, ledger, record, result)

    def without_an_event(self, context: Context, failure: Failure) -> dict[str, Any]:
        """Raise the error of a wait that has ended without an event; the next try looks at the job again."""
        ledger = TaskLedger(context["task_state_store"])
        with failure_in_xcom(context):
            record = ledger.read()
            if record is not None and record.handle is not None:
                failure = failure.about(record.handle.request_id)
            return self._ended_badly(context, ledger, record, error_of(failure))

    @property
    def hands_its_job_on(self) -> bool:
        """Whether the task succeeds while its job still runs."""
        return not self.wait

    @property
    def cancels_what_is_cleared(self) -> bool:
        """Whether the task cancels its job when it is cleared."""
        return self.wait and self.cancel_on_kill

    def on_kill(self) -> None:
        """
        Cancel the job if a user cleared or marked the task, and only then.

        Airflow calls this also on eviction, on a time-out and when it has lost touch with its server; the task is
        running, deferred or about to be tried again then, as far as Airflow knows, and the job is left alone.
        """
        super().on_kill()
        if not self.cancel_on_kill or self._running is None:
            return
        ti, handle = self._running
        cancel_if_killed(
            ti,
            partial(self._cancel, handle),
            is_killed=killed_by_user,
            what=f"Request {handle.request_id} is",
            say=self._say,
            within=KILL_SECONDS,
        )

    def _cancel(self, handle: JobHandle) -> None:
        outcome = FalHook(handle.fal_conn_id).cancel(handle)
        self._say(f"Request {handle.request_id}: asked to cancel it, the gateway says {outcome.value}.")

    def _deliver(
        self, context: Context, ledger: TaskLedger, record: JobRecord | None, result: JobResult
    ) -> dict[str, Any]:
        self._running = None
        self._say(summary(result))
        metrics.delivered(result)
        if record is not None:
            self.delivered(context, ledger, record)
        return result.to_json()

    def _ended_badly(
        self, context: Context, ledger: TaskLedger, record: JobRecord | None, error: FalError
    ) -> dict[str, Any]:
        """Let the next try know how this job ended, if it did; raise the error, or begin anew after a clear."""
        self._running = None
        if record is None or not ends_the_job(error.failure):
            raise error
        failure = _as_the_next_try_acts(error.failure)
        ti = context["ti"]
        ended = in_phase(record, Phase.ENDED, ti.max_tries, failure)
        to_be_seen = CLEAR_SECONDS + (LONGEST_REST if self.poke_interval is None else self.poke_interval)
        if not cancelled_by_a_clear(ended, ti.try_number, within=to_be_seen):
            ended = replace(ended, clear=None)
        ledger.write(ended)
        if ended.clear is not None:
            self._say(str(failure))
            return self.execute(context)
        raise error_of(failure) from None

    def _say(self, line: str) -> None:
        self.log.info("%s", line)


def _of_the_job(record: JobRecord | None, event: Any) -> JobRecord | None:
    """Return the record with the job that the trigger watched, if the ledger has lost the record of its submit."""
    if record is None or record.handle is not None:
        return record
    try:
        return replace(record, handle=JobHandle.from_json(event["handle"]))
    except (TypeError, LookupError, ValueError):
        # Such an event brings nothing that is written down.
        return record


def _as_the_next_try_acts(failure: Failure) -> Failure:
    """Return the failure of a wait in the words of a task that submits as well."""
    if failure.kind is FailureKind.RESULT_EXPIRED:
        again = "is not made; a clear looks again, and submits if the gateway still does not have it."
    elif failure.may_run:
        return failure
    elif failure.transient:
        again = "submits again."
    else:
        again = "fails at once, with this error; a clear submits again."
    return replace(failure, retry_does=again)
