"""One task, one paid job: FalGenerateOperator through kills, marks and clears, with posts counted."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.waiting import eventually

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.running import Emulator
    from demo.local_airflow import LocalAirflow

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]


def jobs_of(emulator: Emulator, prompt: str) -> list[dict[str, Any]]:
    return [job for job in emulator.account()["jobs"] if job["prompt"] == prompt]


def started(airflow: LocalAirflow, emulator: Emulator, dag_id: str, prompt: str, **job: float) -> str:
    """Start a run whose job takes its time."""
    airflow.wait_for_dag(dag_id)
    emulator.add_fault(fault="job", match=prompt, **job)
    run_id = airflow.trigger(dag_id, conf={"prompt": prompt})
    eventually(lambda: len(jobs_of(emulator, prompt)) == 1, 60)
    return run_id


def test_a_worker_killed_while_it_waits_takes_up_the_same_job(
    airflow: LocalAirflow, emulator: Emulator
) -> None:
    dag_id, prompt = "generate_blocking", "killed while it waits"
    run_id = started(airflow, emulator, dag_id, prompt, queue_seconds=2, run_seconds=15)
    eventually(lambda: jobs_of(emulator, prompt)[0]["calls"]["status"] >= 2, 30)
    os.kill(airflow.pid_of_task(dag_id, run_id, "generate"), signal.SIGKILL)

    assert airflow.wait_for_run(dag_id, run_id, 120) == "success"
    (job,) = jobs_of(emulator, prompt)
    assert (job["accepted_posts"], job["calls"]["cancel"]) == (1, 0)
    assert airflow.task_instance(dag_id, run_id, "generate").try_number == 2
    assert airflow.xcom(dag_id, run_id, "generate")["handle"]["request_id"] == job["request_id"]
    assert airflow.xcom(dag_id, run_id, "generate", key="request_id") == job["request_id"]


def test_a_deferred_job_outlives_its_triggerer(airflow: LocalAirflow, emulator: Emulator) -> None:
    dag_id, prompt = "generate_deferred", "the triggerer dies"
    run_id = started(airflow, emulator, dag_id, prompt, queue_seconds=2, run_seconds=20)
    airflow.wait_for_task(dag_id, run_id, "generate", "deferred")
    eventually(lambda: jobs_of(emulator, prompt)[0]["calls"]["status"] >= 3, 30)
    airflow.kill("triggerer")
    airflow.restart("triggerer")

    assert airflow.wait_for_run(dag_id, run_id, 120) == "success"
    (job,) = jobs_of(emulator, prompt)
    assert (job["accepted_posts"], job["calls"]["cancel"]) == (1, 0)
    assert airflow.task_instance(dag_id, run_id, "generate").try_number == 1
    assert airflow.xcom(dag_id, run_id, "first_file") == "images[0]"


def test_marking_a_deferred_task_failed_cancels_its_job_once(
    airflow: LocalAirflow, emulator: Emulator
) -> None:
    dag_id, prompt = "generate_deferred", "marked failed while deferred"
    run_id = started(airflow, emulator, dag_id, prompt, queue_seconds=120)
    airflow.wait_for_task(dag_id, run_id, "generate", "deferred")
    eventually(lambda: jobs_of(emulator, prompt)[0]["calls"]["status"] >= 2, 30)
    airflow.set_task_state(dag_id, run_id, "generate", "failed")

    eventually(lambda: jobs_of(emulator, prompt)[0]["cancelled"], 30)
    (job,) = jobs_of(emulator, prompt)
    assert (job["accepted_posts"], job["calls"]["cancel"]) == (1, 1)
    assert airflow.wait_for_run(dag_id, run_id, 60) == "failed"


def test_marking_a_running_task_failed_cancels_its_job_once(
    airflow: LocalAirflow, emulator: Emulator
) -> None:
    dag_id, prompt = "generate_blocking", "marked failed while running"
    run_id = started(airflow, emulator, dag_id, prompt, queue_seconds=120)
    airflow.wait_for_task(dag_id, run_id, "generate", "running")
    eventually(lambda: jobs_of(emulator, prompt)[0]["calls"]["status"] >= 1, 30)
    airflow.set_task_state(dag_id, run_id, "generate", "failed")

    eventually(lambda: jobs_of(emulator, prompt)[0]["cancelled"], 30)
    (job,) = jobs_of(emulator, prompt)
    assert (job["accepted_posts"], job["calls"]["cancel"]) == (1, 1)
    assert airflow.wait_for_run(dag_id, run_id, 60) == "failed"


def test_clearing_what_was_delivered_makes_a_new_one(airflow: LocalAirflow, emulator: Emulator) -> None:
    dag_id, prompt = "generate_deferred", "delivered, then cleared"
    run_id = started(airflow, emulator, dag_id, prompt, queue_seconds=0, run_seconds=1)
    assert airflow.wait_for_run(dag_id, run_id, 60) == "success"
    first = airflow.xcom(dag_id, run_id, "generate", key="request_id")
    airflow.clear(dag_id, run_id)
    assert airflow.wait_for_run(dag_id, run_id, 60) == "success"
    assert airflow.xcom(dag_id, run_id, "generate", key="request_id") != first
    assert [job["accepted_posts"] for job in jobs_of(emulator, prompt)] == [1, 1]


def test_a_task_that_ends_in_the_trigger_hands_its_result_on(
    airflow: LocalAirflow, emulator: Emulator
) -> None:
    dag_id, prompt = "generate_ended_in_the_trigger", "ended in the trigger"
    run_id = started(airflow, emulator, dag_id, prompt, queue_seconds=1, run_seconds=10)
    assert airflow.wait_for_run(dag_id, run_id, 120) == "success"
    (job,) = jobs_of(emulator, prompt)
    assert airflow.xcom(dag_id, run_id, "generate")["handle"]["request_id"] == job["request_id"]
    assert airflow.xcom(dag_id, run_id, "first_file") == "images[0]"
