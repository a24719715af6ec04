"""DAGs that a test never runs: it writes manifests, and says in XCom that their tasks did."""

from __future__ import annotations

import pendulum
from airflow.sdk import dag, task


def night(dag_id: str, *tasks: str) -> None:
    @dag(dag_id, schedule=None, start_date=pendulum.datetime(2026, 1, 1, tz="UTC"))
    def nights() -> None:
        @task
        def land() -> None:
            raise AssertionError("this DAG stays paused")

        for name in tasks:
            land.override(task_id=name)()

    nights()


SCENES = [f"scene_{index}" for index in range(16)]
night("open_night", "one", "nothing", *SCENES)
night("closed_night", "one", "nothing", *SCENES)
night("nightly_batch", "media")
