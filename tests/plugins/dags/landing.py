"""A DAG that a test does run: one job, whose media and manifest are landed."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_uniapi_fal.operators.fal import FalSubmitOperator
from airflow_provider_uniapi_fal.sensors.fal import FalQueueSensor
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator

with DAG("landing", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), params={"folder": ""}):
    submit = FalSubmitOperator(
        task_id="submit", model="flux/dev", arguments={"prompt": "A red fox"}, fal_conn_id="fal_landing"
    )
    wait = FalQueueSensor(task_id="wait", handle=submit.output, timeout=300)
    FalToObjectStorageOperator(
        task_id="land",
        result=wait.output,
        destination="{{ params.folder }}",
        manifest_path="{{ params.folder }}/manifest.jsonl",
    )
