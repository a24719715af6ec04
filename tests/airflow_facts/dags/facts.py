"""The DAGs that show how Airflow behaves; what they do is in ``probes``."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from typing import Any

from airflow.sdk import DAG, Asset, TriggerRule, task, task_group
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout

from tests.airflow_facts.probes import (
    AtOnce,
    Deferring,
    Gathering,
    Killed,
    OneOfMany,
    Remembering,
    Rescheduled,
    Then,
    note,
)

AT_ONCE = timedelta(0)


def said_success(context: Any) -> None:
    note("success_callback", "called", task_id=context["ti"].task_id)


with DAG("tries", schedule=None):
    for name, killed in (("raised", False), ("killed", True)):
        Remembering(task_id=name, killed=killed, retries=1, retry_delay=AT_ONCE)
    Deferring(task_id="fails_when_resumed", fails=True, retries=1, retry_delay=AT_ONCE)

with DAG("deferrals", schedule=None):
    for name in ("cleared", "marked_failed", "marked_success", "moved", "outlives_its_triggerer"):
        Deferring(task_id=name)
    Deferring(task_id="works_on", fires="and works on")
    Deferring(task_id="backstopped", timeout=timedelta(seconds=1), retries=1, retry_delay=AT_ONCE)
    # Far longer than the way to the triggerer takes, and shorter than the wait.
    Deferring(task_id="overlong", seconds=25, execution_timeout=timedelta(seconds=20))
    for name, fires in (("told", "event"), ("ends_with_xcoms", "success with xcoms"), ("ends", "success")):
        Deferring(
            task_id=name,
            fires=fires,
            outlets=[Asset(name=name, uri=f"x-facts://{name}")],
            on_success_callback=said_success,
        )

with DAG("failed_as_a_whole", schedule=None):
    Deferring(task_id="in_a_failed_run")

with DAG("running", schedule=None):
    Killed(task_id="marked_while_running")
    Killed(task_id="cleared_while_running")
    Killed(task_id="told_by_its_supervisor")
    Killed(task_id="told_with_its_supervisor")
    Killed(task_id="timed_out", execution_timeout=timedelta(seconds=2))
    Rescheduled(task_id="rescheduled", mode="reschedule", poke_interval=8, timeout=600)

with DAG("endings", schedule=None, default_args={"retries": 2, "retry_delay": AT_ONCE}):

    @task(retry_policy=AtOnce())
    def hopeless() -> None:
        raise AirflowFailException

    @task(retry_policy=AtOnce())
    def out_of_time() -> None:
        raise AirflowSensorTimeout

    @task(retries=1, retry_delay=timedelta(hours=1), retry_policy=AtOnce())
    def patient(ti: Any = None) -> None:
        if ti.try_number == 1:
            raise RuntimeError("as it was told")

    @task(show_return_value_in_logs=False)
    def silent() -> str:
        return "a-value-to-keep-quiet"

    @task
    def talkative() -> str:
        return "a-value-to-tell"

    hopeless()
    out_of_time()
    patient()
    silent()
    talkative()

with DAG("mapped", schedule=None):

    @task_group
    def group(index: int) -> None:
        OneOfMany(task_id="one", index=index) >> Then(task_id="then")

    many = group.expand(index=[0, 1, 2])
    many >> Gathering(task_id="gather", of="group.one", trigger_rule=TriggerRule.ALL_DONE)

with DAG(
    "scheduled", schedule="* * * * *", start_date=datetime(2026, 1, 1, tzinfo=timezone.utc), catchup=False
):

    @task
    def runs() -> None:
        note("scheduled", "ran")

    runs()

with DAG("tested", schedule=None):
    Deferring(task_id="in_dag_test")
    Deferring(task_id="ends_in_dag_test", fires="success with xcoms")
