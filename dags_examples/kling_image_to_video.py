"""A video from a picture in storage by Kling, which gets the picture inside the request."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_uniapi_fal.operators.kling import KlingImageToVideoOperator
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator

with DAG(
    "kling_image_to_video",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    default_args={"retries": 2},
    params={"picture": "s3://media/harbour.jpg", "destination": "file:///tmp/media"},
):
    video = KlingImageToVideoOperator(
        task_id="generate",
        model_name="kling-v2-1",
        image="{{ params.picture }}",
        prompt="Boats sway at their moorings, gulls cross the sky",
        duration="5",
    )
    FalToObjectStorageOperator(task_id="land", result=video.output, destination="{{ params.destination }}")
