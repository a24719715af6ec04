"""A night of many pictures in one task: a table of prompts in, media and a manifest of them out."""

from __future__ import annotations

from datetime import timedelta

import pendulum
from airflow.sdk import DAG, Asset, Param

from airflow_provider_uniapi_fal.operators.batch import FalBatchOperator

with DAG(
    "nightly_batch",
    schedule="0 2 * * *",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    params={
        "prompts": Param("s3://media/prompts.jsonl", type="string", description="JSON Lines, CSV or Parquet"),
        "destination": Param("s3://media/nights", type="string", description="Folder for the nights"),
    },
    tags=["media", "fal"],
    doc_md=__doc__,
):
    FalBatchOperator(
        task_id="media",
        requests="{{ params.prompts }}",
        model="flux/dev",
        # Each run has a folder of its own: a manifest belongs to one run.
        destination="{{ params.destination }}/{{ dag_run.run_after | ts_nodash }}",
        include_arguments=True,
        max_jobs=1000,
        queue_timeout=timedelta(minutes=30),
        timeout=timedelta(hours=2),
        # Safe with paid jobs: a retry takes up what runs, and posts only what never was, or ended unbilled.
        retries=2,
        retry_delay=timedelta(seconds=30),
        outlets=[Asset("media_night")],
    )
