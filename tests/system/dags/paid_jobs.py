"""DAGs that the system tests run: single jobs, with gates at which a test can kill a task."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import DAG, dag, task

from airflow_provider_uniapi_fal.operators.fal import FalGenerateOperator, FalSubmitOperator
from airflow_provider_uniapi_fal.sensors.fal import FalQueueSensor

if TYPE_CHECKING:
    from airflow.sdk import Context

ARGUMENTS = {"prompt": "{{ params.prompt }}", "image_size": "square"}
RETRIES = {"retries": 2, "retry_delay": timedelta(0)}


class GatedSubmitOperator(FalSubmitOperator):
    """Submits, and in its first try does not come back until the test opens the gate."""

    def execute(self, context: Context) -> dict[str, Any]:
        handle = super().execute(context)
        gate = Path(os.environ["GATES"], context["params"]["prompt"])
        while context["ti"].try_number == 1 and not gate.exists():
            time.sleep(0.05)
        return handle


@dag(schedule=None, params={"prompt": ""}, default_args=RETRIES)
def killed_after_the_post() -> None:
    submit = GatedSubmitOperator(task_id="submit", model="fal-ai/flux/dev", arguments=ARGUMENTS)
    FalQueueSensor(task_id="wait", handle=submit.output, timeout=120)


@dag(schedule=None, params={"prompt": ""}, default_args=RETRIES)
def one_job() -> None:
    submit = FalSubmitOperator(task_id="submit", model="flux/dev", arguments=ARGUMENTS)
    for mode in ("poke", "reschedule"):
        FalQueueSensor(task_id=mode, handle=submit.output, deferrable=False, mode=mode, timeout=120)
    FalQueueSensor(task_id="deferred", handle=submit.output, timeout=120)
    FalQueueSensor(task_id="impatient", handle=submit.output, timeout=1, defer_after=0, soft_fail=True)
    status_url = "{{ ti.xcom_pull('submit', key='status_url') }}"
    submit >> FalQueueSensor(task_id="by_url", status_url=status_url, timeout=120)


@task
def first_file(result: dict[str, Any]) -> str:
    return str(result["media"][0]["where"])


def generating(dag_id: str, **options: Any) -> None:
    with DAG(dag_id, schedule=None, params={"prompt": ""}, default_args=RETRIES):
        made = FalGenerateOperator(
            task_id="generate", model="flux/dev", arguments=ARGUMENTS, timeout=120, **options
        )
        first_file(made.output)


killed_after_the_post()
one_job()
for name, options in {
    "generate_blocking": {"deferrable": False},
    "generate_deferred": {"defer_after": 0},
    "generate_ended_in_the_trigger": {"defer_after": 0, "end_from_trigger": True},
}.items():
    generating(name, **options)
