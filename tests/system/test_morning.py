"""The morning: an asset event brings the manifest, and nothing is published before a person has approved."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import ObjectStoragePath
from PIL import Image

from airflow_provider_uniapi_fal.landing.manifest import read_manifest, verify_files
from demo.local_airflow import LocalAirflow
from tests.system.waiting import eventually

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.running import Emulator

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]

PROJECT = Path(__file__).parents[2]
KEY = "sk-a-key-that-must-be-written-nowhere"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("published")


@pytest.fixture(scope="module")
def airflow(
    emulator: Emulator, published: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalAirflow]:
    """
    Run an Airflow that starts runs by itself.

    The one of the other tests does not, so that an unpaused nightly DAG starts no night; then no asset starts a run,
    either.
    """
    dags = tmp_path_factory.mktemp("dags")
    for file in (
        PROJECT / "dags_examples" / "morning.py",
        PROJECT / "dags_examples" / "nightly_batch.py",
        Path(__file__).parent / "morning_dags" / "night.py",
    ):
        # A run that an asset starts has the parameters that are written in the file; and last night's is not made.
        text = file.read_text().replace("file:///tmp/published", published.as_uri())
        text = text.replace('schedule="0 2 * * *"', "schedule=None")
        (dags / file.name).write_text(text, encoding="utf-8")
    connection = {
        "conn_type": "uniapi_fal",
        "host": emulator.url,
        "password": KEY,
        "extra": {"media_hosts": ["127.0.0.1"]},
    }
    with LocalAirflow(
        tmp_path_factory.mktemp("airflow"),
        dags=dags,
        environment={"AIRFLOW_CONN_FAL_DEFAULT": json.dumps(connection)},
        config={"scheduler": {"use_job_schedule": True}},
    ) as airflow:
        for dag_id in ("night", "nightly_batch", "morning"):
            airflow.wait_for_dag(dag_id)
        airflow.unpause("morning")
        yield airflow


def mornings(airflow: LocalAirflow) -> list[str]:
    return [
        run for (run,) in airflow.query("SELECT run_id FROM dag_run WHERE dag_id = 'morning' ORDER BY id")
    ]


def until_a_person_is_asked(airflow: LocalAirflow, dag_id: str, conf: dict[str, str]) -> str:
    """Let a night land; return the morning that it started, once that waits for an answer."""
    known = len(mornings(airflow))
    night = airflow.trigger(dag_id, conf=conf)
    if dag_id == "nightly_batch":
        airflow.wait_for_task(dag_id, night, "media", "deferred")
    assert airflow.wait_for_run(dag_id, night, 120) == "success"
    eventually(lambda: len(mornings(airflow)) > known, 60)
    run_id = mornings(airflow)[-1]
    eventually(lambda: state_of(airflow, run_id, "approve") == "awaiting_input", 120)
    # An answer that comes before the scheduler has seen the task's process end is taken for a crash by Airflow 3.3.2.
    # A person is not so quick.
    eventually(lambda: has_seen_the_end_of(airflow, run_id, "approve"), 60)
    return run_id


def has_seen_the_end_of(airflow: LocalAirflow, run_id: str, task_id: str) -> bool:
    lines = airflow.children["scheduler"].log.read_text(errors="replace").splitlines()
    return any(
        "Received executor event with state success" in line and run_id in line and f"'{task_id}'" in line
        for line in lines
    )


def last_event(airflow: LocalAirflow) -> Any:
    """Return what the last asset event of a night has told."""
    [(extra,)] = airflow.query("SELECT extra FROM asset_event ORDER BY id DESC LIMIT 1")
    return json.loads(extra)


def state_of(airflow: LocalAirflow, run_id: str, task_id: str) -> Any:
    return airflow.task_instance("morning", run_id, task_id).state


def test_the_night_is_on_a_sheet_and_published_only_after_an_approval(
    airflow: LocalAirflow, published: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "night"
    run_id = until_a_person_is_asked(airflow, "night", {"folder": folder.as_uri()})

    told = last_event(airflow)
    assert told["manifest_path"] == (folder / "manifest.jsonl").as_uri()
    assert told["counts"]["succeeded"] == told["counts"]["asked"] == 1
    with Image.open(folder / "contact-sheet.jpg") as sheet:
        assert sheet.width == 512
        assert len(sheet.resize((32, 16)).getcolors(512) or ()) > 50, "there are pictures on it"
    assert state_of(airflow, run_id, "approve") == "awaiting_input"
    assert state_of(airflow, run_id, "publish") is None
    assert list(published.rglob("*")) == []

    airflow.answer("morning", run_id, "approve", "Approve")
    assert airflow.wait_for_run("morning", run_id, 120) == "success"
    [path] = published.rglob("selected.jsonl")
    manifest = read_manifest(ObjectStoragePath(path.as_uri()))
    files = [file for row in manifest.rows for file in row.files]
    assert sorted(Path(file.path).name for file in files) == ["harbour-0.jpg", "harbour-1.jpg"]
    assert all(Path(file.path.removeprefix("file://")).is_relative_to(published) for file in files)
    assert all(check.problem is None for check in verify_files(manifest))
    assert airflow.places_with(KEY) == []


def test_a_batch_starts_the_morning_and_what_a_person_rejects_is_not_published(
    airflow: LocalAirflow, emulator: Emulator, published: Path, tmp_path: Path
) -> None:
    emulator.add_fault(fault="job", match="A quay that is flagged", flagged=True)
    prompts = {"quay": "A quay at noon", "dark": "A quay that is flagged", "pier": "A pier at dusk"}
    table = tmp_path / "prompts.jsonl"
    table.write_text(
        "\n".join(json.dumps({"key": key, "arguments": {"prompt": text}}) for key, text in prompts.items())
    )
    before = sorted(published.rglob("*"))
    places = {"prompts": table.as_uri(), "destination": (tmp_path / "nights").as_uri()}
    run_id = until_a_person_is_asked(airflow, "nightly_batch", places)

    told = last_event(airflow)
    [folder] = (tmp_path / "nights").iterdir()
    assert told["manifest_path"] == (folder / "manifest.jsonl").as_uri()
    manifest = read_manifest(ObjectStoragePath(told["manifest_path"]))
    assert told["counts"] == manifest.counts
    assert {row.key: (row.outcome, row.posts) for row in manifest.rows} == {
        "quay": ("succeeded", 1),
        "dark": ("flagged", 1),
        "pier": ("succeeded", 1),
    }
    assert all(check.problem is None for check in verify_files(manifest))
    selected = read_manifest(ObjectStoragePath((folder / "selected.jsonl").as_uri()))
    assert [row.key for row in selected.rows] == ["quay", "pier"]
    assert (folder / "contact-sheet.jpg").exists()

    airflow.answer("morning", run_id, "approve", "Reject")
    assert airflow.wait_for_run("morning", run_id, 120) == "success"
    assert state_of(airflow, run_id, "publish") == "skipped"
    assert sorted(published.rglob("*")) == before
