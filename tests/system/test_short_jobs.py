"""
No task of a short job fails because it is short.

Airflow 3.3 may fail a task that resumes within about six seconds of deferring: the executor's word of the
deferral comes late, and is taken for the end of the resumed task (apache/airflow #72716, #71580). Here short
jobs run on Airflow's default settings, beside a plain deferrable operator that shows how often the race is
lost on this machine. On that one nothing is asserted: whether it loses is a matter of luck.

Two runs by default; `--short-jobs-runs=6` asks for another number.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_uniapi_fal.emulator.running import Emulator, running_emulator
from demo.local_airflow import LocalAirflow, TaskInstance

if TYPE_CHECKING:
    from tests.conftest import Figures

pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(1800)]

PROJECT = Path(__file__).parents[2]
KEY = "sk-a-key-for-short-jobs-that-is-written-nowhere"
JOBS = 20
OURS, PLAIN = "short_jobs_ours", "short_jobs_plain"


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    """Jobs of 0.5 to 2.5 seconds."""
    with running_emulator(
        queue_seconds=0, run_seconds=1.5, spread=2 / 3, urls="gateway", key=KEY
    ) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def airflow(emulator: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalAirflow]:
    connection = {"conn_type": "uniapi_fal", "host": emulator.url, "password": KEY}
    with LocalAirflow(
        tmp_path_factory.mktemp("short-jobs"),
        dags=Path(__file__).parent / "short_jobs_dags",
        environment={
            "AIRFLOW_CONN_FAL_DEFAULT": json.dumps(connection),
            "PLAIN_SUBMIT_URL": f"{emulator.url}/fal-ai/flux/dev",
            "PLAIN_KEY": KEY,
            # The triggerer imports the plain trigger by its name, and never from the folder of the DAGs.
            "PYTHONPATH": str(PROJECT),
        },
        parallelism=32,  # Airflow's own default
        start_timeout=180,
    ) as airflow:
        yield airflow


def jobs(airflow: LocalAirflow, dag_id: str, run_id: str) -> list[TaskInstance]:
    return [ti for ti in airflow.task_instances(dag_id, run_id) if ti.task_id == "job"]


def test_no_short_job_fails_on_its_first_try(
    airflow: LocalAirflow, emulator: Emulator, figures: Figures, pytestconfig: pytest.Config
) -> None:
    runs = pytestconfig.getoption("short_jobs_runs")
    failed_first: dict[str, list[int]] = {OURS: [], PLAIN: []}
    for dag_id in failed_first:
        airflow.wait_for_dag(dag_id, timeout=120)
    for number in range(runs):
        started = {
            dag_id: airflow.trigger(
                dag_id, conf={"prompts": [f"{dag_id}, run {number}, job {job}" for job in range(JOBS)]}
            )
            for dag_id in failed_first
        }
        for dag_id, run_id in started.items():
            airflow.wait_for_run(dag_id, run_id, 300)
            ended = jobs(airflow, dag_id, run_id)
            assert len(ended) == JOBS
            failed_first[dag_id].append(sum(ti.state != "success" or ti.try_number > 1 for ti in ended))
        figures("short-jobs", told(failed_first))

    assert sum(failed_first[OURS]) == 0
    posts = [job for job in emulator.account()["jobs"] if job["prompt"].startswith(OURS)]
    assert len(posts) == runs * JOBS


def told(failed_first: dict[str, list[int]]) -> dict[str, Any]:
    """Say how many of the jobs of each kind have failed on their first try, run by run and in all."""
    return {
        "jobs in a run": JOBS,
        **{f"{dag_id}, first tries that failed in each run": each for dag_id, each in failed_first.items()},
        **{f"{dag_id}, of {len(each) * JOBS}": sum(each) for dag_id, each in failed_first.items()},
    }
