"""A batch on a real scheduler and triggerer, with what it needs killed under it; posts are counted."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

import pytest
import requests
from PIL import Image

from airflow_provider_uniapi_fal.emulator.running import Emulator, EmulatorProcess
from demo.local_airflow import LocalAirflow
from tests.system.batch_runs import BatchRun
from tests.system.conftest import KEY
from tests.system.waiting import eventually

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.landing.manifest import ManifestRow

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

DAGS = Path(__file__).parent / "dags"


Begun = Callable[..., BatchRun]


@pytest.fixture
def batch_run(airflow: LocalAirflow, emulator: Emulator, tmp_path: Path) -> Begun:
    return lambda dag_id, name: BatchRun(airflow, emulator, dag_id, tmp_path, name)


def test_a_batch_defers_lands_and_is_paid_once_each(batch_run: Begun, airflow: LocalAirflow) -> None:
    batch = batch_run("batch_deferred", "A quiet night")
    batch.emulator.add_fault(fault="job", match="A quiet night 003", flagged=True)
    batch.begin()
    airflow.wait_for_task(batch.dag_id, batch.run_id, "batch", "deferred")
    [(kwargs,)] = airflow.query("SELECT kwargs FROM trigger WHERE classpath LIKE '%FalBatchTrigger'")[:1] or [
        ("",)
    ]
    assert "A quiet night" not in str(kwargs)
    # The gallery finds a batch before it is over.
    path = airflow.xcom(batch.dag_id, batch.run_id, "batch", key="manifest_path")
    assert path == (batch.place / "night" / "manifest.jsonl").as_uri()
    links = airflow.links(batch.dag_id, batch.run_id, "batch")
    assert batch.end() == "success"
    assert batch.posts() == 8
    assert batch.tries() == 1
    rows = batch.assert_all_is_whole(8)
    assert [row.outcome for row in rows].count("succeeded") == 7
    assert rows[3].outcome == "flagged"
    made = airflow.xcom(batch.dag_id, batch.run_id, "batch")
    assert made["counts"] == batch.manifest().counts
    assert [place for place in airflow.places_with("A quiet night") if ".log" in place] == []
    assert airflow.links(batch.dag_id, batch.run_id, "batch") == links
    assert_the_gallery_shows(batch, links, rows)


def assert_the_gallery_shows(
    batch: BatchRun, links: dict[str, str | None], rows: tuple[ManifestRow, ...]
) -> None:
    """What a real task has pushed and written is what a user who has logged in gets to see."""
    airflow = batch.airflow
    with requests.Session() as session:
        session.trust_env = False
        assert session.get(str(links["Media"]), timeout=30).status_code == 401
        body = {"username": airflow.user, "password": airflow.password}
        token = session.post(f"{airflow.url}/auth/token", json=body, timeout=30).json()["access_token"]
        # As a browser has it.
        session.cookies.set("_token", token)
        gallery = f"{airflow.url}/fal-media/dags/{batch.dag_id}/runs/{quote(batch.run_id, safe='')}"
        for page in (links["Media"], gallery, f"{airflow.url}/fal-media/"):
            shown = session.get(str(page), timeout=60)
            assert shown.status_code == 200
            assert batch.dag_id in shown.text
        task = session.get(str(links["Media"]), timeout=60).text
        assert [row.key for row in rows if f'"key">{row.key}<' in task] == [row.key for row in rows]
        assert "badge flagged" in task
        manifest = session.get(str(links["Manifest"]), timeout=30).content
        assert manifest == (batch.place / "night" / "manifest.jsonl").read_bytes()
        file = f"{links['Media']}/rows/0/files/0"
        media = session.get(f"{file}/media", timeout=30)
        assert hashlib.sha256(media.content).hexdigest() == rows[0].files[0].sha256
        thumbnail = session.get(f"{file}/thumbnail", timeout=60)
        assert thumbnail.headers["Content-Type"] == "image/webp"
        assert Image.open(io.BytesIO(thumbnail.content)).size == (64, 48)


def test_a_worker_killed_while_submitting_leaves_one_wave_unknown_at_most(batch_run: Begun) -> None:
    batch = batch_run("batch_blocking", "Killed while submitting")
    # The second wave of 50 stands at the gateway when the worker dies.
    batch.emulator.add_fault(fault="slow", on="submit", match="Killed while submitting 07", seconds=8)
    batch.begin(80)
    eventually(lambda: len(batch.jobs()) > 60, 60)
    batch.kill_worker()
    assert batch.end() == "failed"
    assert batch.tries() == 2
    rows = batch.assert_all_is_whole(80)
    unknown = [row.key for row in rows if row.outcome == "unknown"]
    assert 1 <= len(unknown) <= 30
    assert set(unknown) <= {f"{n:03}" for n in range(50, 80)}
    assert len(unknown) + sum(row.outcome == "succeeded" for row in rows) == 80
    # None of those was posted again: no prompt was accepted twice.
    prompts = [job["prompt"] for job in batch.jobs()]
    assert len(prompts) == len(set(prompts)) == batch.posts() <= 80


@pytest.mark.slow
def test_a_worker_killed_while_it_waits_takes_up_the_same_jobs(batch_run: Begun) -> None:
    batch = batch_run("batch_blocking", "Killed while waiting")
    batch.begin()
    eventually(lambda: len(batch.jobs()) == 8 and all(j["calls"]["status"] for j in batch.jobs()), 60)
    batch.kill_worker()
    assert batch.end() == "success"
    assert (batch.posts(), batch.tries()) == (8, 2)
    assert {row.outcome for row in batch.assert_all_is_whole(8)} == {"succeeded"}


@pytest.mark.slow
def test_a_worker_killed_while_landing_lands_the_rest(batch_run: Begun) -> None:
    batch = batch_run("batch_deferred", "Killed while landing")
    batch.emulator.add_fault(fault="slow", on="media", match="Killed while landing 00", seconds=4)
    batch.begin(24)
    eventually(lambda: bool(batch.landed()), 90)
    batch.kill_worker()
    assert batch.end() == "success"
    assert (batch.posts(), batch.tries()) == (24, 2)
    assert {row.outcome for row in batch.assert_all_is_whole(24)} == {"succeeded"}


@pytest.mark.slow
def test_a_batch_outlives_its_triggerer(batch_run: Begun, airflow: LocalAirflow) -> None:
    batch = batch_run("batch_deferred", "The triggerer of the batch dies")
    batch.emulator.add_fault(fault="job", match="triggerer of the batch dies", run_seconds=20)
    batch.begin()
    airflow.wait_for_task(batch.dag_id, batch.run_id, "batch", "deferred")
    eventually(lambda: all(job["calls"]["status"] >= 2 for job in batch.jobs()), 60)
    airflow.kill("triggerer")
    airflow.restart("triggerer")
    assert batch.end() == "success"
    assert (batch.posts(), batch.tries()) == (8, 1)
    assert {row.outcome for row in batch.assert_all_is_whole(8)} == {"succeeded"}
    assert all(job["calls"]["cancel"] == 0 for job in batch.jobs())


@pytest.mark.long
def test_marking_a_deferred_batch_failed_cancels_its_jobs(batch_run: Begun, airflow: LocalAirflow) -> None:
    batch = batch_run("batch_deferred", "Marked failed")
    batch.emulator.add_fault(fault="job", match="Marked failed", stuck=True)
    batch.begin()
    airflow.wait_for_task(batch.dag_id, batch.run_id, "batch", "deferred")
    eventually(lambda: all(job["calls"]["status"] >= 1 for job in batch.jobs()), 60)
    airflow.set_task_state(batch.dag_id, batch.run_id, "batch", "failed")
    eventually(lambda: all(job["cancelled"] for job in batch.jobs()), 30)
    assert batch.posts() == 8


@pytest.fixture
def restarting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LocalAirflow, EmulatorProcess]]:
    """An Airflow of its own, because its gateway goes away and comes back."""
    state = tmp_path_factory.mktemp("gateway") / "state.json"
    with EmulatorProcess(queue_seconds=1, run_seconds=15, key=KEY, state=str(state)) as gateway:
        connection = {
            "conn_type": "uniapi_fal",
            "host": gateway.url,
            "password": KEY,
            "extra": {"media_hosts": ["127.0.0.1"]},
        }
        with LocalAirflow(
            tmp_path_factory.mktemp("airflow"),
            dags=DAGS,
            environment={"AIRFLOW_CONN_FAL_DEFAULT": json.dumps(connection), "GATES": str(state.parent)},
        ) as own:
            yield own, gateway


@pytest.mark.slow
def test_a_batch_outlives_its_gateway(
    restarting: tuple[LocalAirflow, EmulatorProcess], tmp_path: Path
) -> None:
    own, gateway = restarting
    batch = BatchRun(own, gateway, "batch_deferred", tmp_path, "The gateway restarts")
    batch.begin()
    own.wait_for_task(batch.dag_id, batch.run_id, "batch", "deferred")
    eventually(lambda: all(job["calls"]["status"] >= 1 for job in batch.jobs()), 60)
    gateway.kill()
    gateway.restart()
    assert batch.end() == "success"
    assert (batch.posts(), batch.tries()) == (8, 1)
    assert {row.outcome for row in batch.assert_all_is_whole(8)} == {"succeeded"}
