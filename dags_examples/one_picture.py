from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_uniapi_fal.operators.fal import FalSubmitOperator
from airflow_provider_uniapi_fal.sensors.fal import FalQueueSensor
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator

with DAG(
    "one_picture",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    default_args={"retries": 2},
    params={"destination": "file:///tmp/media"},
):
    submit = FalSubmitOperator(
        task_id="submit",
        model="flux-pro/kontext/text-to-image",
        arguments={"prompt": "A lighthouse at dusk, oil on canvas", "aspect_ratio": "16:9"},
    )
    wait = FalQueueSensor(task_id="wait", handle=submit.output, timeout=3600)
    FalToObjectStorageOperator(task_id="land", result=wait.output, destination="{{ params.destination }}")
