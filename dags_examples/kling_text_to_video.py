"""A video from text by Kling. Ten seconds or the mode "pro" cost more."""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.sdk import DAG

from airflow_provider_uniapi_fal.operators.kling import KlingTextToVideoOperator
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator

with DAG(
    "kling_text_to_video",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    default_args={"retries": 2},
    params={"destination": "file:///tmp/media"},
):
    video = KlingTextToVideoOperator(
        task_id="generate",
        model_name="kling-v1-6",
        prompt="A paper boat on a river of rain, street lights in the water",
        negative_prompt="text, people",
        duration="5",
        mode="std",
        aspect_ratio="16:9",
        camera_control={"type": "simple", "config": {"zoom": -3}},
        timeout=timedelta(hours=1),
    )
    FalToObjectStorageOperator(task_id="land", result=video.output, destination="{{ params.destination }}")
