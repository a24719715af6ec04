"""A person in new clothes by Kling; submitted by one task and waited for by another."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_uniapi_fal.operators.kling import KlingVirtualTryOnOperator
from airflow_provider_uniapi_fal.sensors.fal import FalQueueSensor
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator

with DAG(
    "kling_try_on",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    default_args={"retries": 2},
    params={
        "person": "s3://media/person.jpg",
        "cloth": "s3://media/coat.jpg",
        "destination": "file:///tmp/media",
    },
):
    submit = KlingVirtualTryOnOperator(
        task_id="submit",
        human_image="{{ params.person }}",
        cloth_image="{{ params.cloth }}",
        wait=False,
    )
    wait = FalQueueSensor(task_id="wait", handle=submit.output, timeout=1800)
    FalToObjectStorageOperator(task_id="land", result=wait.output, destination="{{ params.destination }}")
