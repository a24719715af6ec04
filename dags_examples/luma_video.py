"""A video by Luma, and a longer one made from it. Both are landed without a watermark where that is offered."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_uniapi_fal.operators.luma import LumaExtendOperator, LumaGenerateOperator
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator

with DAG(
    "luma_video",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    default_args={"retries": 2},
    params={"destination": "file:///tmp/media"},
):
    video = LumaGenerateOperator(
        task_id="generate",
        user_prompt="A lighthouse keeper climbs the stairs, lantern in hand",
        aspect_ratio="16:9",
    )
    longer = LumaExtendOperator(
        task_id="extend", handle=video.output, user_prompt="He opens the door to the storm"
    )
    for task, result in (("land", video.output), ("land_longer", longer.output)):
        FalToObjectStorageOperator(task_id=task, result=result, destination="{{ params.destination }}")
