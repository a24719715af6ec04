"""Pictures by Kling, in one task, and landed."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_uniapi_fal.operators.kling import KlingImageOperator
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator

with DAG(
    "kling_images",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    default_args={"retries": 2},
    params={"destination": "file:///tmp/media"},
):
    images = KlingImageOperator(
        task_id="generate",
        model_name="kling-v2",
        prompt="A tea house in the mist, ink on rice paper",
        aspect_ratio="3:2",
        n=2,
    )
    FalToObjectStorageOperator(task_id="land", result=images.output, destination="{{ params.destination }}")
