"""A night of one request, whose landing emits the asset that the morning is scheduled on."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG, Asset

from airflow_provider_uniapi_fal.operators.fal import FalGenerateOperator
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator

with DAG("night", schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"), params={"folder": ""}):
    made = FalGenerateOperator(
        task_id="generate",
        model="flux/dev",
        arguments={"prompt": "A quiet harbour before sunrise", "num_images": 2},
    )
    FalToObjectStorageOperator(
        task_id="land",
        result=made.output,
        destination="{{ params.folder }}/media",
        name="harbour",
        manifest_path="{{ params.folder }}/manifest.jsonl",
        outlets=[Asset("media_night")],
    )
