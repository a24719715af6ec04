"""DAGs that the system tests run: whole nights in one task, waiting in the triggerer or in the worker."""

from __future__ import annotations

from datetime import timedelta

from airflow.sdk import DAG

from airflow_provider_uniapi_fal.operators.batch import FalBatchOperator

for name, options in {
    "batch_deferred": {"deferrable": True, "defer_after": 0},
    "batch_blocking": {"deferrable": False},
}.items():
    with DAG(name, schedule=None, params={"table": "", "destination": ""}):
        FalBatchOperator(
            task_id="batch",
            requests="{{ params.table }}",
            destination="{{ params.destination }}",
            model="flux/dev",
            land_after=1,
            timeout=240,
            retries=2,
            retry_delay=timedelta(0),
            **options,
        )
