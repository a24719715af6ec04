"""An Airflow and an emulator of the matrix's own: its rows kill triggerers, workers and the emulator itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_uniapi_fal.emulator.running import EmulatorProcess
from demo.local_airflow import LocalAirflow
from tests.system.matrix.cells import COLUMNS, Matrix

#: Looked for in every log, table and file: it must be nowhere.
KEY = "sk-a-key-of-the-matrix-that-must-be-written-nowhere"


@pytest.fixture(scope="session")
def emulator() -> Iterator[EmulatorProcess]:
    with EmulatorProcess(queue_seconds=0.5, run_seconds=2, key=KEY) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix-gates")


@pytest.fixture(scope="session")
def airflow(
    emulator: EmulatorProcess, gates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalAirflow]:
    dags = tmp_path_factory.mktemp("matrix-dags")
    shutil.copy(Path(__file__).parent / "dags" / "columns.py", dags)
    connection = {"conn_type": "uniapi_fal", "host": emulator.url, "password": KEY}
    folder = tmp_path_factory.mktemp("matrix-airflow")
    with LocalAirflow(
        folder,
        dags=dags,
        environment={"AIRFLOW_CONN_FAL_DEFAULT": json.dumps(connection), "GATES": str(gates)},
        # Every cell may hold a worker, and a killed one may be noticed late.
        parallelism=24,
        config={
            "core": {"max_active_runs_per_dag": 100, "max_active_tasks_per_dag": 100},
            # A crowd of writers waits for its turn instead of failing.
            "database": {"sql_alchemy_conn": f"sqlite:///{folder / 'airflow.db'}?timeout=60"},
            # Lost workers and lost triggerers are noticed sooner than by default.
            "scheduler": {
                "task_instance_heartbeat_timeout": 40,
                "task_instance_heartbeat_timeout_detection_interval": 5,
            },
            "triggerer": {"triggerer_health_check_threshold": 15},
        },
    ) as airflow:
        for column in COLUMNS:
            airflow.wait_for_dag(column)
        yield airflow


@pytest.fixture(autouse=True)
def the_key_is_written_nowhere() -> None:
    """Leave that to the last test of the matrix: looking through all of it after each cell would take long."""


@pytest.fixture(scope="session")
def matrix(airflow: LocalAirflow, emulator: EmulatorProcess, gates: Path) -> Matrix:
    return Matrix(airflow, emulator, gates)
