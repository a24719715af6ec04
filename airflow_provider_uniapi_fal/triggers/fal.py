"""The trigger that watches one job in the triggerer."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from airflow.sdk.execution_time.xcom import XCom
from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent

from airflow_provider_uniapi_fal.exceptions import FalError, error_of
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.hooks.task_states import (
    cleared_or_resumed,
    killed_by_user,
    states_of,
)
from airflow_provider_uniapi_fal.protocol.cadence import LONGEST_REST
from airflow_provider_uniapi_fal.protocol.errors import Failure
from airflow_provider_uniapi_fal.protocol.job import SCHEMA_VERSION, JobHandle, JobResult, JobState
from airflow_provider_uniapi_fal.protocol.watching import FetchElsewhere, RoundEnd, Watch
from airflow_provider_uniapi_fal.triggers.deferring import foreign_event
from airflow_provider_uniapi_fal.triggers.hub import waits

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.streaming import WatchBy

#: A longer result is fetched by the worker: events pass through Airflow's metadata database.
MAX_EVENT_BYTES = 256 * 1024

#: Airflow 3.3 may fail a task that resumes within about six seconds of deferring (apache/airflow #72716).
RACE_SECONDS = 7.0

#: The trigger ends a wait in time; Airflow's own deferral time-out, which says less, only stands behind it.
BACKSTOP_SECONDS = 120.0


class FalQueueEvent(TriggerEvent):
    """An event whose representation tells no prompt: Airflow writes it into the trigger's log."""

    def __init__(self, payload: dict[str, Any]) -> None:
        super().__init__(payload)  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        """Name what the event brings."""
        brings = [name for name in ("result", "failure") if self.payload.get(name)] or ["a result to fetch"]
        return f"{type(self).__name__}<{brings[0]}>"

    __str__ = __repr__


class FalQueueTrigger(BaseTrigger):
    """
    Watch one job until it has ended, and fetch its result at once.

    It submits nothing and downloads no media. It fires exactly one event, whose form is described at
    ``event_of``. Its arguments lie in plain text in Airflow's metadata database: they hold no key, no
    prompt and no input.

    :param handle: the job, as JSON values
    :param poke_interval: seconds between looks, or None for adaptive
    :param watch: ``auto``, ``poll`` or ``stream``: how to learn of the job's end
    :param deadline: seconds since the epoch at which the wait ends, or None
    :param queue_deadline: seconds since the epoch by which the job must have started, or None
    :param cancel_on_timeout: ask the gateway to cancel the job when its time is over
    :param cancel_on_kill: ask the gateway to cancel the job when the task is cleared or marked by a user
    :param end_from_trigger: end the task here if the job succeeds, without a worker
    :param logs: bring the model's log lines into the task's log
    :param progress: what the worker saw of the job before it deferred
    :param next_look_at: seconds since the epoch before which there is no look
    :param hold_until: seconds since the epoch before which no event is fired: Airflow 3.3 may fail a task that
        resumes within a few seconds of deferring
    """

    def __init__(
        self,
        *,
        handle: dict[str, Any],
        poke_interval: float | None = None,
        watch: WatchBy = "auto",
        deadline: float | None = None,
        queue_deadline: float | None = None,
        cancel_on_timeout: bool = False,
        cancel_on_kill: bool = False,
        end_from_trigger: bool = False,
        logs: bool = True,
        progress: dict[str, Any] | None = None,
        next_look_at: float = 0.0,
        hold_until: float = 0.0,
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.handle = handle
        self.poke_interval = poke_interval
        self.watch = watch
        self.deadline = deadline
        self.queue_deadline = queue_deadline
        self.cancel_on_timeout = cancel_on_timeout
        self.cancel_on_kill = cancel_on_kill
        self.end_from_trigger = end_from_trigger
        self.logs = logs
        self.progress = progress or {}
        self.next_look_at = next_look_at
        self.hold_until = hold_until
        self._fired = False

    @classmethod
    def of(
        cls,
        watch: Watch,
        *,
        next_look_at: float,
        hold_until: float,
        cancel_on_kill: bool = False,
        end_from_trigger: bool = False,
    ) -> FalQueueTrigger:
        """Return the trigger that goes on with a wait that a worker began."""
        return cls(
            handle=watch.handle.to_json(),
            poke_interval=watch.poke_interval,
            watch=watch.by,
            deadline=watch.deadline,
            queue_deadline=watch.queue_deadline,
            cancel_on_timeout=watch.cancel_on_timeout,
            cancel_on_kill=cancel_on_kill,
            end_from_trigger=end_from_trigger,
            logs=watch.logs,
            progress=watch.progress(),
            next_look_at=next_look_at,
            hold_until=hold_until,
        )

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments, for Airflow's database."""
        return (
            f"{type(self).__module__}.{type(self).__qualname__}",
            {
                "handle": self.handle,
                "poke_interval": self.poke_interval,
                "watch": self.watch,
                "deadline": self.deadline,
                "queue_deadline": self.queue_deadline,
                "cancel_on_timeout": self.cancel_on_timeout,
                "cancel_on_kill": self.cancel_on_kill,
                "end_from_trigger": self.end_from_trigger,
                "logs": self.logs,
                "progress": self.progress,
                "next_look_at": self.next_look_at,
                "hold_until": self.hold_until,
            },
        )

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Watch the job and fire the event."""
        watch = Watch(
            JobHandle.from_json(self.handle),
            deadline=self.deadline,
            queue_deadline=self.queue_deadline,
            cancel_on_timeout=self.cancel_on_timeout,
            poke_interval=self.poke_interval,
            by=self.watch,
            logs=self.logs,
        )
        watch.resume(self.progress)
        # The worker's clock may be ahead of this one.
        hold_until = min(self.hold_until, time.time() + RACE_SECONDS)
        await _until(min(self.next_look_at, time.time() + self._longest_rest(watch)))
        end = await self._watch(watch)
        await _until(hold_until)
        # A result of many files takes a while to write down, and the event loop is that of all triggers.
        event = await asyncio.to_thread(event_of, watch, end)
        if self.end_from_trigger and "result" in event:
            # TaskSuccessEvent(xcoms=…) would encode the value twice.
            try:
                await asyncio.to_thread(self._push_result, event["result"])
            except Exception:
                self.log.exception("The result could not be written here; a worker will do it.")
            else:
                self._fired = True
                yield TaskSuccessEvent()
                return
        self._fired = True
        yield FalQueueEvent(event)

    def _longest_rest(self, watch: Watch) -> float:
        """Return the seconds that the worker meant the job to rest, by its clock alone."""
        looked_at = max(watch.looked_at or 0.0, watch.said_at)
        if looked_at:
            return self.next_look_at - looked_at
        return min(
            self.next_look_at - watch.handle.submitted_at, max(LONGEST_REST, self.poke_interval or 0.0)
        )

    async def on_kill(self) -> None:
        """
        Cancel the job if a user cleared or marked the task, and only then.

        Airflow calls this also when a stalled triggerer has lost its triggers to another one, which goes on
        waiting: the task is still deferred then, or resumed, and the job is left alone. The work is done in a thread, which
        outlives the second cancellation that Airflow sends after about a second.
        """
        if self.cancel_on_kill and not self._fired:
            await asyncio.to_thread(self._cancel_unless_deferred)

    def _cancel_unless_deferred(self) -> None:
        handle = JobHandle.from_json(self.handle)
        states = states_of(self.task_instance)
        if not killed_by_user(states) and not (
            cleared_or_resumed(states) and self._has_nothing_to_fire(handle)
        ):
            self.log.info("Request %s is not cancelled: the task's states are %s.", handle.request_id, states)
            return
        outcome = FalHook(handle.fal_conn_id).cancel(handle)
        self.log.info(
            "Request %s: asked to cancel it, the gateway says %s.", handle.request_id, outcome.value
        )

    def _has_nothing_to_fire(self, handle: JobHandle) -> bool:
        """Whether this wait would go on, so that no other triggerer can have ended it: then the task was cleared."""
        deadlines = [each for each in (self.deadline, self.queue_deadline) if each is not None]
        if time.time() >= min(deadlines, default=math.inf):
            return False
        try:
            return FalHook(handle.fal_conn_id).status(handle).state in (JobState.PENDING, JobState.RUNNING)
        except FalError:
            return False

    def _push_result(self, result: dict[str, Any]) -> None:
        ti: Any = self.task_instance
        XCom.set(
            key="return_value",
            value=result,
            dag_id=ti.dag_id,
            task_id=ti.task_id,
            run_id=ti.run_id,
            map_index=ti.map_index,
        )

    async def _watch(self, watch: Watch) -> RoundEnd:
        async with waits(say=lambda line: self.log.info("%s", line)) as waiting:
            waiting.add(watch)
            _, end = await waiting.next_end()
            return end


def event_of(watch: Watch, end: RoundEnd) -> dict[str, Any]:
    """
    Return the payload of the event for how a wait ended.

    ``{"schema_version", "handle", "result" | "failure", "progress"}``; neither result nor failure means that
    the job is done and that the worker is to fetch a result too long for an event.
    """
    event: dict[str, Any] = {"schema_version": SCHEMA_VERSION, "handle": watch.handle.to_json()}
    if isinstance(end, Failure):
        return {**event, "failure": end.about(watch.handle.request_id).to_json()}
    if isinstance(end, JobResult):
        result = end.to_json()
        if len(json.dumps(result)) <= MAX_EVENT_BYTES:
            return {**event, "result": result}
    elif isinstance(end, FetchElsewhere):
        event["handle"] = end.handle.to_json()
    return {**event, "progress": watch.progress()}


def result_of(event: object) -> JobResult:
    """
    Return what an event brings to the worker, fetching the result if it was too long for the event.

    :raises FalError: how the job or the wait failed, the very error that a blocking wait raises
    :raises FalProtocolError: if the event is none of this trigger's
    """
    try:
        brought = _read(event)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        again = "of a wait looks again; nothing is submitted."
        raise error_of(foreign_event(event, retry_does=again)) from error
    if isinstance(brought, Failure):
        raise error_of(brought)
    if isinstance(brought, JobResult):
        return brought
    return brought.with_times(FalHook(brought.handle.fal_conn_id).result(brought.handle))


def _read(event: Any) -> JobResult | Failure | Watch:
    """Read an event; a watch stands for a result that is still to be fetched."""
    handle = JobHandle.from_json(event["handle"])
    if event.get("failure"):
        return Failure.from_json(event["failure"])
    if event.get("result"):
        return JobResult.from_json(event["result"])
    watch = Watch(handle)
    watch.resume(event["progress"])
    return watch


async def _until(moment: float) -> None:
    await asyncio.sleep(max(moment - time.time(), 0.0))
