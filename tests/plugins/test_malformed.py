"""Manifests that fit their summary and are none: each is said to be broken, and no page breaks with it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from airflow.api_fastapi.core_api.security import get_user
from fastapi.testclient import TestClient

from airflow_provider_uniapi_fal.plugins.gallery import app as module
from airflow_provider_uniapi_fal.plugins.gallery.access import may_see_dag
from airflow_provider_uniapi_fal.plugins.gallery.accounts import Named, Run
from tests.plugins import nights

ERROR = {"kind": "input", "message": "No.", "billed": "no", "may_run": False, "error_type": None}
RUN = "/dags/open_night/runs/bad"
TASK = f"{RUN}/tasks/land/-1"

#: What cannot be a field of a row, of its file, of its error, of the summary.
ROWS: tuple[Any, ...] = (
    {"key": 5},
    {"key": None},
    {"index": "0"},
    {"index": True},
    {"index": 1.5},
    {"model": None},
    {"model": 7},
    {"outcome": []},
    {"arguments": [1]},
    {"arguments": "abc"},
    {"metadata": [1]},
    {"metadata": None},
    {"request_id": 5},
    {"seed": "seven"},
    {"submitted_at": "x"},
    {"submitted_at": 1e300},
    {"submitted_at": -1e12},
    {"submitted_at": float("nan")},
    {"seconds_queued": "abc"},
    {"seconds_running": float("nan")},
    {"seconds_running": float("inf")},
    {"seconds_running": 10**400},
    {"seconds_running": True},
    {"billable_units": 1.0},
    {"flagged": None},
    {"flagged": 1},
    {"error": "no"},
    {"error": []},
    {"files": 5},
    {"files": "abc"},
    {"files": [5]},
    {"files": {"a": 1}},
)
ERRORS: tuple[Any, ...] = (
    {"message": None},
    {"kind": 5},
    {"may_run": None},
    {"error_type": 7},
    {"billed": []},
)
FILES: tuple[Any, ...] = (
    {"content_type": 5},
    {"path": 5},
    {"where": None},
    {"bytes": "x"},
    {"bytes": 1.5},
    {"sha256": None},
    {"width": "4"},
    {"flagged": "no"},
    {"duration": "x"},
    {"duration": float("nan")},
)
SUMMARIES: tuple[Any, ...] = ({"run_id": 5}, {"task_id": None}, {"map_index": "x"}, {"written_at": "x"})

#: What is right, and hard to show all the same.
ODD_ROWS: tuple[Any, ...] = (
    {"key": "\ud800"},
    {"model": "\ud800", "arguments": {"prompt": "\udfff"}},
    {"seed": 10**400},
    {"seconds_running": 1e300, "seconds_queued": -1},
    {"submitted_at": 253_402_300_799},
    {"arguments": {"prompt": 5}},
    {"metadata": {"a": float("nan")}},
)
ODD_FILES: tuple[Any, ...] = ({"bytes": 10**400}, {"duration": 1e300}, {"path": "\ud800"}, {"path": "\0"})

Site = Callable[..., TestClient]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    """Return a gallery of two runs: a good one, and ``bad``, whose manifest is given."""
    monkeypatch.setenv("AIRFLOW__UNIAPI_FAL__MEDIA_ROOTS", tmp_path.as_uri())
    monkeypatch.setenv("AIRFLOW__UNIAPI_FAL__THUMBNAIL_FOLDER", str(tmp_path / "small"))
    (tmp_path / "good").mkdir()
    nights.small_night(tmp_path / "good")
    at = datetime(2026, 1, 1, tzinfo=timezone.utc)
    monkeypatch.setattr(module, "visible_dags", lambda _: {"open_night"})
    monkeypatch.setattr(
        module,
        "runs_of",
        lambda *_, **__: ([Run("open_night", run, 1, at) for run in ("bad", "good")], False),
    )

    def manifests_of(dag_id: str, run_id: str, *_: Any) -> list[Named]:
        return [Named(dag_id, run_id, "land", -1, f"file://{tmp_path}/{run_id}/manifest.jsonl")]

    monkeypatch.setattr(module, "manifests_of", manifests_of)

    def made(rows: list[Any], **summary: Any) -> TestClient:
        bad = tmp_path / "bad"
        bad.mkdir()
        text = "".join(json.dumps(row) + "\n" for row in rows).encode()
        (bad / "manifest.jsonl").write_bytes(text)
        fields = {
            "dag_id": "open_night",
            "run_id": "bad",
            "task_id": "land",
            "map_index": -1,
            "written_at": 0,
        }
        proof = {"rows_sha256": hashlib.sha256(text).hexdigest()}
        (bad / "manifest.summary.json").write_text(json.dumps({**fields, **proof, **summary}))
        app = module.make_app()
        app.dependency_overrides[may_see_dag] = lambda: None
        app.dependency_overrides[get_user] = lambda: None
        return TestClient(app, raise_server_exceptions=False, follow_redirects=False)

    return made


def the_row(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    """Return a right row with a file, as JSON has it, and changes."""
    (tmp_path / "a.png").write_bytes(b"abc")
    file = nights.landed(tmp_path / "a.png", "image/png", width=4, height=3)
    return {**nights.row("a", 0, files=(file,), arguments={"prompt": "A fox"}).to_json(), **changes}


def is_said_to_be_broken(client: TestClient) -> None:
    menu = client.get("/")
    assert menu.status_code == 200
    assert "This is no manifest" in menu.text
    assert menu.text.count('src="/fal-media/dags/open_night/runs/good') == 1  # the other run is there
    for path in (RUN, TASK, f"{TASK}?text=fox"):
        page = client.get(path)
        assert page.status_code == 200, path
        assert "This is no manifest" in page.text
    for path in ("/manifest", "/rows/0/details", "/rows/0/files/0/details", "/rows/0/files/0/media"):
        assert client.get(TASK + path).status_code == 403


@pytest.mark.parametrize("change", ROWS, ids=str)
def test_a_row_of_wrong_types_breaks_its_manifest_alone(site: Site, tmp_path: Path, change: Any) -> None:
    is_said_to_be_broken(site([the_row(tmp_path), the_row(tmp_path, key="b", index=1) | change]))


@pytest.mark.parametrize("change", ERRORS, ids=str)
def test_an_error_of_wrong_types_breaks_its_manifest_alone(site: Site, tmp_path: Path, change: Any) -> None:
    is_said_to_be_broken(site([the_row(tmp_path, outcome="failed", error={**ERROR, **change})]))


@pytest.mark.parametrize("change", FILES, ids=str)
def test_a_file_of_wrong_types_breaks_its_manifest_alone(site: Site, tmp_path: Path, change: Any) -> None:
    row = the_row(tmp_path)
    row["files"][0].update(change)
    is_said_to_be_broken(site([row]))


@pytest.mark.parametrize("change", SUMMARIES, ids=str)
def test_a_summary_of_wrong_types_breaks_its_manifest_alone(site: Site, tmp_path: Path, change: Any) -> None:
    is_said_to_be_broken(site([the_row(tmp_path)], **change))


@pytest.mark.parametrize("row", [5, None, "key", [], [{}], {"key": "a"}], ids=str)
def test_what_is_no_row_breaks_its_manifest_alone(site: Site, row: Any) -> None:
    is_said_to_be_broken(site([row]))


def all_are_shown(client: TestClient) -> None:
    for path in ("/", RUN, TASK, f"{TASK}?text=fox"):
        assert client.get(path).status_code == 200, path
    assert 'class="card' in client.get(RUN).text
    for path in ("/rows/0/details", "/rows/0/files/0/details"):
        assert client.get(TASK + path).status_code == 200, path
    for path in ("/rows/0/files/0/media", "/rows/0/files/0/thumbnail"):
        assert client.get(TASK + path).status_code in (200, 307, 403), path


@pytest.mark.parametrize("change", ODD_ROWS, ids=ascii)
def test_a_row_of_odd_values_is_shown(site: Site, tmp_path: Path, change: Any) -> None:
    all_are_shown(site([the_row(tmp_path, **change)]))


@pytest.mark.parametrize("change", ODD_FILES, ids=ascii)
def test_a_file_of_odd_values_is_shown(site: Site, tmp_path: Path, change: Any) -> None:
    row = the_row(tmp_path)
    row["files"][0].update(change)
    all_are_shown(site([row]))


@pytest.mark.parametrize("depth", [100, 900, 940, 980, 100_000])
def test_a_row_nested_however_deeply_breaks_no_page(site: Site, tmp_path: Path, depth: int) -> None:
    nested = json.dumps(the_row(tmp_path, arguments={"prompt": "A fox", "deep": "HERE"}))
    deep = nested.replace('"HERE"', "[" * depth + "]" * depth)

    client = site([the_row(tmp_path)])
    text = (deep + "\n").encode()
    (tmp_path / "bad" / "manifest.jsonl").write_bytes(text)
    summary = tmp_path / "bad" / "manifest.summary.json"
    told = json.loads(summary.read_text())
    summary.write_text(json.dumps({**told, "rows_sha256": hashlib.sha256(text).hexdigest()}))
    for path in ("/", RUN, f"{TASK}?text=fox"):
        assert client.get(path).status_code == 200, path
    assert client.get(f"{TASK}/rows/0/details").status_code in (200, 403)
