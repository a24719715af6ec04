"""A batch whose worker is lost, on a real scheduler that soon takes it for dead: into S3, and back from the dead."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from airflow_provider_uniapi_fal.emulator.running import Emulator, running_emulator
from demo.local_airflow import LocalAirflow
from tests.storage import Store, bucket, s3_connection, s3_server
from tests.system.batch_runs import BatchRun
from tests.system.conftest import KEY
from tests.system.waiting import eventually

__all__ = ["bucket", "s3_server"]

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

DAGS = Path(__file__).parent / "dags"

#: Seconds without a sign of life after which the scheduler takes a worker for dead. It gives one every five.
TAKEN_FOR_DEAD = 20


@pytest.fixture(scope="module")
def emulator() -> Iterator[Emulator]:
    with running_emulator(queue_seconds=1, run_seconds=4, key=KEY) as emulator:
        yield emulator


@pytest.fixture(scope="module")
def airflow(
    emulator: Emulator, s3_server: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalAirflow]:
    """An Airflow of its own, which is quick to take a worker for dead."""
    connection = {
        "conn_type": "uniapi_fal",
        "host": emulator.url,
        "password": KEY,
        # What was sent before a worker froze is answered while it is frozen.
        "extra": {"media_hosts": ["127.0.0.1"], "read_timeout": 280},
    }
    with LocalAirflow(
        tmp_path_factory.mktemp("airflow"),
        dags=DAGS,
        environment={
            "AIRFLOW_CONN_FAL_DEFAULT": json.dumps(connection),
            f"AIRFLOW_CONN_MEDIA_BUCKET_{s3_server.rpartition(':')[2]}": s3_connection(s3_server),
            "GATES": str(tmp_path_factory.mktemp("gates")),
        },
        config={
            "scheduler": {
                "task_instance_heartbeat_timeout": TAKEN_FOR_DEAD,
                "task_instance_heartbeat_timeout_detection_interval": 2,
            }
        },
    ) as airflow:
        yield airflow


def test_a_worker_killed_while_landing_in_s3_leaves_no_half_object_and_its_retry_lands_the_rest(
    airflow: LocalAirflow, emulator: Emulator, bucket: Store, tmp_path: Path
) -> None:
    name = "Killed while landing in S3"
    batch = BatchRun(airflow, emulator, "batch_deferred", tmp_path, name, str(bucket.path / "night"))
    emulator.add_fault(fault="slow", on="media", match=f"{name} 00", seconds=4)
    batch.begin(24)
    eventually(lambda: bool(batch.landed()), 90)
    batch.kill_worker()
    left = batch.landed()
    assert 0 < len(left) < 24
    for each in left:
        assert (batch.destination / each).read_bytes().endswith(b"\xff\xd9")
    assert batch.end() == "success"
    assert (batch.posts(), batch.tries()) == (24, 2)
    assert {row.outcome for row in batch.assert_all_is_whole(24)} == {"succeeded"}


def test_a_worker_that_was_taken_for_dead_and_wakes_pays_for_nothing_twice_and_spoils_no_file(
    airflow: LocalAirflow, emulator: Emulator, tmp_path: Path
) -> None:
    name = "Back from the dead"
    batch = BatchRun(airflow, emulator, "batch_blocking", tmp_path, name)
    # It freezes in its second wave of fifty, and finds its retry waiting when it wakes.
    for tens in "56789":
        emulator.add_fault(fault="slow", on="submit", match=f"{name} 0{tens}", seconds=3)
    emulator.add_fault(fault="job", match=f"{name} 11", run_seconds=60)
    batch.begin(120)
    eventually(lambda: len(batch.jobs()) > 60, 90)
    frozen = airflow.task_process(batch.dag_id, batch.run_id, "batch")
    supervisor = frozen.parent()
    assert supervisor is not None
    for process in (supervisor, frozen):
        process.suspend()
    airflow.wait_for_task(batch.dag_id, batch.run_id, "batch", "running", try_number=2, timeout=120)
    eventually(lambda: any(f"{name} 119" in job["prompt"] for job in batch.jobs()), 60)
    # Its supervisor sleeps on, and cannot tell it that the task is not its own any more.
    frozen.resume()
    # It goes on with its wave, and writes down of the next one that it has sent nothing.
    segments = tmp_path / "night" / "manifest.journal" / "segments"
    eventually(lambda: any('"not_taken"' in path.read_text() for path in segments.glob("*.jsonl")), 60)
    supervisor.resume()
    assert batch.end() == "success"
    eventually(lambda: not _runs(frozen), 60)
    assert batch.tries() == 2
    assert Counter(job["prompt"] for job in batch.jobs()).most_common(1)[0][1] == 1
    assert batch.posts() == 120
    rows = batch.assert_all_is_whole(120)
    assert {row.outcome for row in rows} == {"succeeded"}
    assert {row.posts for row in rows} == {1}


def _runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
