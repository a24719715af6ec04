"""The command line beside a real Airflow: it sees what tasks have submitted, while it may be billing."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from tests.system.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_uniapi_fal.emulator.running import Emulator
    from demo.local_airflow import LocalAirflow

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(240)]


def jobs(airflow: LocalAirflow, run_id: str, *words: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "airflow", "fal", "jobs", "--run-id", run_id, "-o", "json", *words]
    done = subprocess.run(command, env=airflow.environment, capture_output=True, text=True, check=True)
    listed: list[dict[str, Any]] = json.loads(done.stdout)
    return listed


def test_a_job_is_listed_by_its_dag_and_run_while_it_is_live_and_not_after(
    airflow: LocalAirflow, emulator: Emulator, tmp_path: Path
) -> None:
    airflow.wait_for_dag("one_picture")
    # Longer than two starts of a command line take on a busy machine.
    emulator.add_fault({"fault": "job", "match": "A lighthouse at dusk", "run_seconds": 25.0, "times": 1})
    run_id = airflow.trigger("one_picture", conf={"destination": f"file://{tmp_path}"})
    airflow.wait_for_task("one_picture", run_id, "submit", "success", timeout=60)
    request_id = airflow.xcom("one_picture", run_id, "submit", key="request_id")
    (live,) = jobs(airflow, run_id)
    assert (live["dag_id"], live["task_id"], live["request_id"]) == ("one_picture", "submit", request_id)
    assert (live["phase"], live["may_bill"]) == ("delivered", "yes")
    assert airflow.wait_for_run("one_picture", run_id, 120) == "success"
    assert jobs(airflow, run_id) == []
    assert [row["state"] for row in jobs(airflow, run_id, "--all")] == ["succeeded"]


def test_the_jobs_of_a_batch_under_way_are_listed_row_by_row(
    airflow: LocalAirflow, emulator: Emulator, tmp_path: Path
) -> None:
    dag_id, name = "batch_deferred", "A night that is looked after"
    emulator.add_fault(fault="job", match=f"{name} 1", stuck=True)
    rows = [{"key": str(n), "arguments": {"prompt": f"{name} {n}."}} for n in range(2)]
    (tmp_path / "table.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    airflow.wait_for_dag(dag_id)
    conf = {"table": (tmp_path / "table.jsonl").as_uri(), "destination": (tmp_path / "night").as_uri()}
    run_id = airflow.trigger(dag_id, conf=conf)
    eventually(lambda: bool(list(tmp_path.glob("night/0.*"))), 120)
    (live,) = jobs(airflow, run_id)
    assert (live["dag_id"], live["task_id"], live["key"], live["may_bill"]) == (dag_id, "batch", "1", "yes")
    airflow.set_task_state(dag_id, run_id, "batch", "failed")
    eventually(lambda: jobs(airflow, run_id) == [], 60)
