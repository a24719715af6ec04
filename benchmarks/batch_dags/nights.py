"""The night of the benchmark: a batch as users write it."""

from __future__ import annotations

from airflow.sdk import DAG

from airflow_provider_uniapi_fal.operators.batch import FalBatchOperator

with DAG("batch", schedule=None, params={"table": "", "destination": ""}):
    FalBatchOperator(
        task_id="night",
        requests="{{ params.table }}",
        destination="{{ params.destination }}",
        model="flux/dev",
        retries=1,
    )
