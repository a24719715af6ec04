"""One real Airflow and one emulator for all system tests; the prompt tells a test's jobs from all others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_provider_uniapi_fal.emulator.running import Emulator, running_emulator
from demo.local_airflow import LocalAirflow

PROJECT = Path(__file__).parents[2]

#: Looked for in every log, table and file: it must be nowhere.
KEY = "sk-a-key-that-must-be-written-nowhere"


@pytest.fixture(scope="session")
def emulator() -> Iterator[Emulator]:
    with running_emulator(queue_seconds=3, run_seconds=6, key=KEY) as emulator:
        yield emulator


@pytest.fixture(scope="session")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gates")


@pytest.fixture(scope="session")
def airflow(
    emulator: Emulator, gates: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalAirflow]:
    dags = tmp_path_factory.mktemp("dags")
    for file in [*(PROJECT / "dags_examples").glob("*.py"), *Path(__file__).parent.glob("dags/*.py")]:
        shutil.copy(file, dags)
    connection = {
        "conn_type": "uniapi_fal",
        "host": emulator.url,
        "password": KEY,
        "extra": {"media_hosts": ["127.0.0.1"]},
    }
    environment = {"AIRFLOW_CONN_FAL_DEFAULT": json.dumps(connection), "GATES": str(gates)}
    with LocalAirflow(
        tmp_path_factory.mktemp("airflow"),
        dags=dags,
        environment=environment,
        parallelism=6,
        # Unpausing a DAG must not start the run of last night.
        config={
            "scheduler": {"use_job_schedule": False},
            # A dead triggerer is noticed sooner than by default.
            "triggerer": {"triggerer_health_check_threshold": 10},
            # Where every test's media are.
            "uniapi_fal": {
                "media_roots": f"file://{tmp_path_factory.getbasetemp()}",
                "thumbnail_folder": tmp_path_factory.mktemp("thumbnails"),
            },
        },
    ) as airflow:
        yield airflow


@pytest.fixture(autouse=True)
def the_key_is_written_nowhere(airflow: LocalAirflow) -> Iterator[None]:
    yield
    assert airflow.places_with(KEY) == []
