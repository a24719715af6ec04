"""The ways to have a job made that chaos is let loose on, each mapped over the prompts of its run."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, task, task_group

from airflow_provider_uniapi_fal.operators.fal import FalGenerateOperator, FalSubmitOperator
from airflow_provider_uniapi_fal.sensors.fal import FalQueueSensor

MODEL = "flux/dev"
# More tries than any job here needs: what fails in the end does not fail for the want of one.
DEFAULT_ARGS = {"retries": 5, "retry_delay": timedelta(0)}


@task(show_return_value_in_logs=False)
def arguments(params: Any = None) -> list[dict[str, str]]:
    return [{"prompt": prompt, "image_size": "square"} for prompt in params["prompts"]]


@task_group
def media(arguments: Any) -> None:
    submit = FalSubmitOperator(task_id="submit", model=MODEL, arguments=arguments)
    FalQueueSensor(task_id="wait", handle=submit.output, timeout=75)


def dag_of(way: str) -> DAG:
    return DAG(way, schedule=None, params={"prompts": []}, default_args=DEFAULT_ARGS)


for deferrable, way in ((True, "generate_deferred"), (False, "generate_blocking")):
    with dag_of(way):
        FalGenerateOperator.partial(
            task_id="generate", model=MODEL, deferrable=deferrable, queue_timeout=60, timeout=300
        ).expand(arguments=arguments())

with dag_of("submit_and_wait"):
    media.expand(arguments=arguments())
