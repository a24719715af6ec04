"""The columns of the matrix: five ways to have one job done, with gates at which a try can be stopped."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG

from airflow_provider_uniapi_fal.ledger.record import JobRecord, Phase
from airflow_provider_uniapi_fal.operators.fal import FalGenerateOperator, FalSubmitOperator
from airflow_provider_uniapi_fal.operators.submitting import SubmittingOperator
from airflow_provider_uniapi_fal.sensors.fal import FalQueueSensor

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk import Context

    from airflow_provider_uniapi_fal.hooks.fal import FalHook
    from airflow_provider_uniapi_fal.ledger.task_state import TaskLedger
    from airflow_provider_uniapi_fal.protocol.job import JobResult
    from airflow_provider_uniapi_fal.protocol.watching import RoundEnd, Watch

#: No test leaves a task at its gate for longer; a run that was given up ends by itself.
GATE_SECONDS = 600

PARAMS = {"prompt": "", "cell": "", "gate": "", "then": ""}


def gate_of(context: Context) -> Callable[[str], None]:
    """Return what a task calls at each gate: whoever comes first to the run's own gate stays there, or raises."""
    params: Any = context["params"]
    reached = Path(os.environ["GATES"], params["cell"])

    def at(gate: str) -> None:
        # Not by the try's number: on a crowded machine Airflow loses one now and then before it begins.
        if gate != params["gate"] or reached.exists():
            return
        reached.touch()
        if params["then"] == "raise":
            raise RuntimeError("an exception of the user's own")
        time.sleep(GATE_SECONDS)

    return at


class Gated(SubmittingOperator):
    """Stops around its post, in its wait, and before it delivers."""

    def submitted(self, context: Context, hook: FalHook, ledger: TaskLedger) -> JobRecord:
        at = gate_of(context)
        post, write, watch_for, delivered = hook.post, ledger.write, hook.watch_for, hook.delivered

        def gated_post(*args: Any, **kwargs: Any) -> Any:
            at("before the post")
            return post(*args, **kwargs)

        def gated_write(record: JobRecord) -> None:
            if record.phase is Phase.SUBMITTED:
                at("before the record")
            write(record)

        def gated_watch(*args: Any) -> Any:
            at("in the wait")
            return watch_for(*args)

        def gated_delivered(*args: Any) -> Any:
            at("before the delivery")
            return delivered(*args)

        at("before the intent")
        vars(hook).update(post=gated_post, watch_for=gated_watch, delivered=gated_delivered)
        vars(ledger).update(write=gated_write)
        record = super().submitted(context, hook, ledger)
        at("after the record")
        return record


class GatedSubmit(Gated, FalSubmitOperator):
    pass


class GatedGenerate(Gated, FalGenerateOperator):
    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> dict[str, Any]:
        gate_of(context)("before the delivery")
        return super().execute_complete(context, event)


class GatedSensor(FalQueueSensor):
    def execute(self, context: Context) -> Any:
        self._at = gate_of(context)
        return super().execute(context)

    def _hook_of(self, watch: Watch) -> FalHook:
        self._at("in the wait")
        return super()._hook_of(watch)

    def _delivered(self, watch: Watch, end: RoundEnd) -> JobResult:
        # A job that has ended before the sensor begins is delivered without a trigger.
        self._at("before the delivery")
        return super()._delivered(watch, end)

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> dict[str, Any]:
        gate_of(context)("before the delivery")
        return super().execute_complete(context, event)


JOB: dict[str, Any] = {"model": "flux/dev", "arguments": {"prompt": "{{ params.prompt }}"}}


def columns(
    variant: str = "",
    *,
    timeout: float = 1800,
    queue_timeout: float | None = None,
    execution_timeout: float | None = None,
    retries: int = 5,
    pool: str | None = None,
) -> None:
    """Make one DAG for each column, in one variant."""
    common: dict[str, Any] = {"retries": retries, "retry_delay": timedelta(0)}
    if pool is not None:
        common["pool"] = pool
    if execution_timeout is not None:
        common["execution_timeout"] = timedelta(seconds=execution_timeout)
    waiting: dict[str, Any] = {"timeout": timeout, "queue_timeout": queue_timeout}

    with DAG(f"{variant}submit_alone", schedule=None, params=PARAMS, default_args=common):
        GatedSubmit(task_id="submit", **JOB)
    with DAG(f"{variant}submit_and_sensor", schedule=None, params=PARAMS, default_args=common):
        submit = GatedSubmit(task_id="submit", **JOB)
        GatedSensor(task_id="wait", handle=submit.output, timeout=timeout, defer_after=0)
    with DAG(f"{variant}generate_blocking", schedule=None, params=PARAMS, default_args=common):
        GatedGenerate(task_id="generate", deferrable=False, **waiting, **JOB)
    with DAG(f"{variant}generate_deferrable", schedule=None, params=PARAMS, default_args=common):
        GatedGenerate(task_id="generate", defer_after=0, **waiting, **JOB)
    with DAG(f"{variant}generate_ended_by_trigger", schedule=None, params=PARAMS, default_args=common):
        GatedGenerate(task_id="generate", defer_after=0, end_from_trigger=True, **waiting, **JOB)


columns()
# Of its tries Airflow may lose one.
columns("impatient_", timeout=12, queue_timeout=6, retries=2)
columns("hasty_", execution_timeout=12, retries=20)
# Of its slots a cell takes all away, to keep its next try waiting.
columns("pooled_", pool="matrix")
