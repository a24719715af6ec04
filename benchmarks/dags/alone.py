"""One job in one task: what is measured is what a way adds to the job's own time."""

from __future__ import annotations

from typing import Any

from airflow.sdk import DAG

from airflow_provider_uniapi_fal.operators.fal import FalGenerateOperator
from benchmarks import peers

OPTIONS: dict[str, Any] = {"schedule": None, "params": {"prompt": ""}, "default_args": {"retries": 0}}
PROMPT = "{{ params.prompt }}"

with DAG("alone_plain", **OPTIONS):
    peers.PlainOperator(task_id="job", prompt=PROMPT)

with DAG("alone_ours", **OPTIONS):
    FalGenerateOperator(task_id="job", model=peers.MODEL, arguments=peers.arguments(PROMPT))
