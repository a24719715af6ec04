"""The buttons of a task, while it runs, while it waits in the triggerer, and after."""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import requests

if TYPE_CHECKING:
    from pathlib import Path

    from demo.local_airflow import LocalAirflow

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


def test_the_links_of_a_job_last_from_leg_to_leg(airflow: LocalAirflow, tmp_path: Path) -> None:
    airflow.wait_for_dag("one_task")
    run_id = airflow.trigger("one_task", conf={"destination": f"file://{tmp_path}"})
    seen = {}
    airflow.wait_for_task("one_task", run_id, "generate", "running")
    while not (links := airflow.links("one_task", run_id, "generate")).get("Media"):
        assert airflow.task_instance("one_task", run_id, "generate").state in ("running", "deferred")
    # The job takes longer than the first leg watches it: that the link is there now is our own doing.
    seen["running"] = links["Media"]
    airflow.wait_for_task("one_task", run_id, "generate", "deferred")
    seen["deferred"] = airflow.links("one_task", run_id, "generate")["Media"]
    assert airflow.wait_for_run("one_task", run_id, 120) == "success"
    seen["success"] = airflow.links("one_task", run_id, "generate")["Media"]

    request_id = airflow.xcom("one_task", run_id, "generate", key="request_id")
    address = f"{airflow.url}/fal-media/dags/one_task/runs/{quote(run_id, safe='')}?text={request_id}"
    assert seen == {"running": address, "deferred": address, "success": address}
    assert airflow.links("one_task", run_id, "generate")["Job"] is None  # no template is configured
    # The address is one that the gallery answers at, to those who are logged in.
    session = requests.Session()
    session.trust_env = False
    assert session.get(address, timeout=30).status_code == 401
