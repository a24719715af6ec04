"""Nights whose tasks say where manifests are that a test has written."""

from __future__ import annotations

from typing import Any

import pendulum
from airflow.sdk import dag, task


def night(dag_id: str) -> None:
    @dag(
        dag_id,
        schedule=None,
        start_date=pendulum.datetime(2026, 1, 1, tz="UTC"),
        params={"manifests": [], "one": ""},
    )
    def nights() -> None:
        @task
        def manifests(params: Any = None) -> list[str]:
            return list(params["manifests"])

        @task
        def land(path: str, ti: Any = None) -> None:
            ti.xcom_push(key="manifest_path", value=path)

        @task
        def one(params: Any = None, ti: Any = None) -> None:
            if params["one"]:
                ti.xcom_push(key="manifest_path", value=params["one"])

        land.expand(path=manifests())
        one()

    nights()


night("open_night")
night("closed_night")
