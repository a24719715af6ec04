"""The same short jobs twice: by the provider's operator with its defaults, and by a plain deferrable one."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from airflow.sdk import dag, task

from airflow_provider_uniapi_fal.operators.fal import FalGenerateOperator
from tests.system.short_jobs_dags.plain_waiting import PlainOperator

OPTIONS: dict[str, Any] = {
    "schedule": None,
    "params": {"prompts": []},
    # A retry lets the run end well, and leaves its trace in the number of tries.
    "default_args": {"retries": 2, "retry_delay": timedelta(0)},
}


@dag(**OPTIONS)
def short_jobs_ours() -> None:
    @task
    def arguments(params: Any = None) -> list[dict[str, str]]:
        return [{"prompt": prompt} for prompt in params["prompts"]]

    FalGenerateOperator.partial(task_id="job", model="flux/dev").expand(arguments=arguments())


@dag(**OPTIONS)
def short_jobs_plain() -> None:
    @task
    def prompts(params: Any = None) -> list[str]:
        return list(params["prompts"])

    PlainOperator.partial(task_id="job").expand(prompt=prompts())


short_jobs_ours()
short_jobs_plain()
