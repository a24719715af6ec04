"""DAGs that the system tests run: one job of each vendor, which a test kills while it waits."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_uniapi_fal.operators.kling import KlingImageOperator
from airflow_provider_uniapi_fal.operators.luma import LumaGenerateOperator
from airflow_provider_uniapi_fal.operators.openai_images import OpenAIImagesOperator

SETTINGS = {
    "schedule": None,
    "default_args": {"retries": 1, "retry_delay": timedelta(0)},
    "params": {"prompt": "", "destination": ""},
}
PROMPT = "{{ params.prompt }}"

for mode, deferrable in (("blocking", False), ("deferred", True)):
    with DAG(f"kling_{mode}", **SETTINGS):
        KlingImageOperator(task_id="generate", prompt=PROMPT, deferrable=deferrable)
    with DAG(f"luma_{mode}", **SETTINGS):
        LumaGenerateOperator(task_id="generate", user_prompt=PROMPT, deferrable=deferrable)

with DAG("openai_at_once", **SETTINGS):
    OpenAIImagesOperator(
        task_id="generate",
        model="flux/dev",
        prompt=PROMPT,
        destination="{{ params.destination }}",
    )
