"""One DAG for each way to get through a night of jobs; the prompts come with the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from airflow.providers.http.operators.http import HttpOperator
from airflow.providers.http.sensors.http import HttpSensor
from airflow.sdk import dag, task, task_group

from airflow_provider_uniapi_fal.operators.batch import FalBatchOperator
from airflow_provider_uniapi_fal.operators.fal import FalGenerateOperator, FalSubmitOperator
from airflow_provider_uniapi_fal.sensors.fal import FalQueueSensor
from benchmarks import peers

OPTIONS: dict[str, Any] = {
    "schedule": None,
    "params": {"prompts": [], "table": ""},
    "default_args": {"retries": 0},
    "max_active_tasks": 1000,
}
SIZE = {"width": 64, "height": 64}


@task
def prompts(params: Any = None) -> list[str]:
    return list(params["prompts"])


@task
def inputs(params: Any = None) -> list[dict[str, Any]]:
    return [peers.arguments(prompt) for prompt in params["prompts"]]


@task
def bodies(params: Any = None) -> list[str]:
    """Hand out what the HTTP provider posts, which wants it as text."""
    return [json.dumps(peers.arguments(prompt)) for prompt in params["prompts"]]


def in_a_task(name: str, work: Callable[[str], None]) -> None:
    @dag(dag_id=name, **OPTIONS)
    def way() -> None:
        @task
        def job(prompt: str) -> None:
            work(prompt)

        job.expand(prompt=prompts())

    way()


in_a_task("seed_loop", peers.loop_of_the_seed)
in_a_task("fal_client", peers.subscribe_of_fal_client)


@dag(**OPTIONS)
def http_provider() -> None:
    @task_group
    def one(body: str) -> None:
        submit = HttpOperator(
            task_id="submit",
            http_conn_id="bench_http",
            endpoint=f"/fal-ai/{peers.MODEL}",
            data=body,
            headers={"Content-Type": "application/json"},
            response_filter=lambda reply: reply.json()["request_id"],
        )
        # On the status a 202 would count as done, so it watches the result, which must be a 404 until then.
        HttpSensor(
            task_id="job",
            http_conn_id="bench_http",
            endpoint="/fal-ai/flux/requests/{{ ti.xcom_pull(task_ids='one.submit', map_indexes=ti.map_index) }}",
            poke_interval=peers.POLL_SECONDS,
            deferrable=True,
        ).set_upstream(submit)

    one.expand(body=bodies())


@dag(**OPTIONS)
def plain_operator() -> None:
    peers.PlainOperator.partial(task_id="job").expand(prompt=prompts())


@dag(**OPTIONS)
def bare_batch() -> None:
    peers.BareBatchOperator(task_id="job", prompts=prompts())


@dag(**OPTIONS)
def ours_mapped() -> None:
    @task_group
    def one(arguments: dict[str, Any]) -> None:
        submit = FalSubmitOperator(task_id="submit", model=peers.MODEL, arguments=arguments)
        FalQueueSensor(task_id="job", handle=submit.output, defer_after=0)

    one.expand(arguments=inputs())


def generate(name: str, **options: Any) -> None:
    @dag(dag_id=name, **OPTIONS)
    def way() -> None:
        FalGenerateOperator.partial(task_id="job", model=peers.MODEL, **options).expand(arguments=inputs())

    way()


generate("ours_generate")
generate("ours_generate_poll_2s", poke_interval=peers.POLL_SECONDS, defer_after=0)
generate("ours_ended_in_trigger", defer_after=0, end_from_trigger=True)
generate("ours_stream", defer_after=0, watch="stream")


@dag(**OPTIONS)
def ours_batch() -> None:
    FalBatchOperator(
        task_id="job",
        model=peers.MODEL,
        requests="{{ params.table }}",
        manifest_path="{{ params.table | replace('.jsonl', '') }}/manifest.jsonl",
        max_in_flight=peers.SUBMITS_AT_ONCE,
        parallel=32,
    )


ours_batch()
http_provider()
plain_operator()
bare_batch()
ours_mapped()
