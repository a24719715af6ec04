"""One job in one task, by FalGenerateOperator; the file imports what that needs and no more."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_provider_uniapi_fal.operators.fal import FalGenerateOperator

with DAG("alone_ours", schedule=None, params={"prompt": ""}, default_args={"retries": 0}):
    FalGenerateOperator(
        task_id="job",
        model="flux/dev",
        arguments={"prompt": "{{ params.prompt }}", "image_size": {"width": 64, "height": 64}},
    )
