"""
A night of pictures and videos: one prompt file in, media and an account of them out.

The prompt file is JSON Lines in object storage, one job a line::

    {"key": "harbour", "model": "flux/dev", "arguments": {"prompt": "A harbour at dawn"}}

``key`` names the files and the line in the account. An input such as ``image_url`` may be the path of a file
beside the prompt file. A prompt that fails does not sink the night: its line in the account says why.
"""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pendulum
from airflow.sdk import ObjectStoragePath, Param, TriggerRule, dag, task, task_group

from airflow_provider_uniapi_fal.operators.fal import FalSubmitOperator
from airflow_provider_uniapi_fal.sensors.fal import FalQueueSensor
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator


@dag(
    schedule="0 2 * * *",
    start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
    catchup=False,
    max_active_runs=1,
    # Safe with paid jobs: a retry of a submit that was accepted takes up the same job again.
    default_args={"retries": 2, "retry_delay": timedelta(seconds=30)},
    params={
        "prompts": Param("s3://media/prompts.jsonl", type="string", description="JSON Lines file of prompts"),
        "destination": Param("s3://media/nights", type="string", description="Folder for the nights"),
    },
    tags=["media", "fal"],
    doc_md=__doc__,
)
def nightly_media() -> None:
    # Airflow would write what it returns, the prompts, into the log.
    @task(show_return_value_in_logs=False)
    def read_prompts(params: Any = None) -> list[dict[str, Any]]:
        source = ObjectStoragePath(params["prompts"])
        rows = [json.loads(line) for line in source.read_text().splitlines() if line.strip()]
        keys = [row["key"] for row in rows]
        if len(set(keys)) < len(keys):
            raise ValueError("each line of the prompt file needs a key of its own")
        for row in rows:
            for name, value in row["arguments"].items():
                if name.endswith("_url") and isinstance(value, str) and ":" not in value:
                    row["arguments"][name] = str(source.parent / value)
        return rows

    @task
    def tonight(params: Any = None, dag_run: Any = None) -> str:
        return f"{params['destination']}/{dag_run.run_after:%Y-%m-%d}"

    @task_group
    def media(key: str, model: str, arguments: dict[str, Any]) -> None:
        submit = FalSubmitOperator(task_id="submit", model=model, arguments=arguments)
        wait = FalQueueSensor(task_id="wait", handle=submit.output, timeout=3600)
        FalToObjectStorageOperator(task_id="land", result=wait.output, destination=folder, name=key)

    @task(trigger_rule=TriggerRule.ALL_DONE)
    def account(prompts: Any, folder: Any, ti: Any = None) -> dict[str, int]:
        """Write down what became of each prompt, found by its place in the prompt file and named by its key."""

        def pulled(step: str, key: str = "return_value") -> list[Any]:
            found = ti.xcom_pull(f"media.{step}", key=key, map_indexes=list(range(len(prompts))))
            return list(found)

        results, landings, ids = pulled("wait"), pulled("land"), pulled("submit", "request_id")
        failures = zip(*(pulled(step, "failure") for step in ("submit", "wait", "land")), strict=True)
        rows = []
        for prompt, request_id, result, files, failed in zip(
            prompts, ids, results, landings, failures, strict=True
        ):
            failure: dict[str, Any] = next(filter(None, failed), {})
            flagged = any(file["flagged"] for file in files or [])
            made = "flagged" if flagged else "succeeded"
            rows.append(
                {
                    "key": prompt["key"],
                    "model": prompt["model"],
                    "prompt": prompt["arguments"].get("prompt"),
                    "outcome": made
                    if files
                    else failure.get("outcome", "failed" if request_id else "missing"),
                    "error": None if files else failure.get("message"),
                    "request_id": request_id,
                    "seconds_queued": result and result["seconds_queued"],
                    "seconds_running": result and result["seconds_running"],
                    "files": files or [],
                }
            )
        outcomes = [row["outcome"] for row in rows]
        counts = {
            "asked": len(rows),
            **{outcome: outcomes.count(outcome) for outcome in sorted(set(outcomes))},
        }
        text = json.dumps({"counts": counts, "rows": rows}, ensure_ascii=False, indent=1)
        ObjectStoragePath(f"{folder}/account.json").write_text(text)
        return counts

    prompts = read_prompts()
    folder = tonight()
    media.expand_kwargs(prompts) >> account(prompts, folder)


nightly_media()
