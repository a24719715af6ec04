"""Pictures by the OpenAI-images form: one long request, whose pictures are landed by the same task."""

from __future__ import annotations

import pendulum
from airflow.sdk import DAG

from airflow_provider_uniapi_fal.operators.openai_images import OpenAIImagesOperator

with DAG(
    "openai_pictures",
    schedule="@daily",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    default_args={"retries": 2},
    params={"destination": "file:///tmp/media"},
):
    OpenAIImagesOperator(
        task_id="generate",
        model="flux-pro/kontext/text-to-image",
        prompt="A lighthouse made of books, woodcut",
        n=2,
        arguments={"aspect_ratio": "1:1", "output_format": "png"},
        destination="{{ params.destination }}",
    )
