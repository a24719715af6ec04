"""One job in one task, by a plain deferrable operator; the file imports what that needs and no more."""

from __future__ import annotations

from airflow.sdk import DAG

from benchmarks import peers

with DAG("alone_plain", schedule=None, params={"prompt": ""}, default_args={"retries": 0}):
    peers.PlainOperator(task_id="job", prompt="{{ params.prompt }}")
