"""A video in one task: submit, wait without a worker, fetch; with two clocks and the gateway's own delays."""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.sdk import DAG

from airflow_provider_uniapi_fal.operators.fal import FalGenerateOperator
from airflow_provider_uniapi_fal.retry_policy import FalRetryPolicy
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator

with DAG(
    "one_task",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    params={"destination": "file:///tmp/media"},
):
    video = FalGenerateOperator(
        task_id="generate",
        model="kling-video/v2.1/standard/text-to-video",
        arguments={"prompt": "Waves run up a beach of black sand, seen from above", "duration": "5"},
        queue_timeout=timedelta(minutes=30),
        timeout=timedelta(hours=2),
        retries=3,
        retry_policy=FalRetryPolicy(),
    )
    FalToObjectStorageOperator(task_id="land", result=video.output, destination="{{ params.destination }}")
