"""An Airflow and an emulator of the matrix's own: its rows kill triggerers, workers and the emulator itself."""

from __future__ import annotations

import json
import shutil
import socket
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import requests

from airflow_provider_uniapi_fal.emulator.running import EmulatorProcess
from demo.local_airflow import LocalAirflow
from demo.processes import Processes
from tests.system.matrix.cells import COLUMNS, POOL, SLOTS, Matrix, eventually

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
    # A crowd of readers does not keep writers waiting then; the mode is written into the file.
    with closing(sqlite3.connect(folder / "airflow.db")) as database:
        database.execute("PRAGMA journal_mode=WAL")
    with LocalAirflow(
        folder,
        dags=dags,
        environment={"AIRFLOW_CONN_FAL_DEFAULT": json.dumps(connection), "GATES": str(gates)},
        # Every cell may hold a worker, and a killed one may be noticed late.
        parallelism=16,
        config={
            "core": {"max_active_runs_per_dag": 100, "max_active_tasks_per_dag": 100},
            # A crowd of writers waits for its turn instead of failing, and each waits with one request only: those
            # who asked again would fill all of the API server's threads, and nobody could finish his own.
            "database": {"sql_alchemy_conn": f"sqlite:///{folder / 'airflow.db'}?timeout=20"},
            "workers": {"execution_api_timeout": 60},
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
        with an_api_server_of_the_users_own(airflow):
            airflow.set_pool(POOL, SLOTS)
            yield airflow


@contextmanager
def an_api_server_of_the_users_own(airflow: LocalAirflow) -> Iterator[None]:
    """
    Let all that is asked as a user go to another API server than the tasks' requests.

    Airflow 3.3 notes who triggers, clears or marks on the server's event loop. On SQLite that waits for whoever
    writes, and a task's request that writes cannot end while the loop of its own server waits: both would be stuck
    until the database gives up.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    command = [sys.executable, "-m", "airflow", "api-server", "--apps", "core", "--port", str(port)]
    log = airflow.folder / "components" / "users-api-server.log"
    with Processes() as processes:
        processes.start(
            "the users' API server",
            command,
            environment=airflow.environment,
            folder=airflow.folder,
            log=log,
        )
        eventually(lambda: answers(f"http://127.0.0.1:{port}/api/v2/version"))
        airflow.port = port
        yield


def answers(url: str) -> bool:
    with requests.Session() as session:
        session.trust_env = False  # a proxy has no business with loopback
        try:
            return session.get(url, timeout=5).ok
        except requests.RequestException:
            return False


@pytest.fixture(autouse=True)
def the_key_is_written_nowhere() -> None:
    """Leave that to the last test of the matrix: looking through all of it after each cell would take long."""


@pytest.fixture(scope="session")
def matrix(airflow: LocalAirflow, emulator: EmulatorProcess, gates: Path) -> Matrix:
    return Matrix(airflow, emulator, gates)
