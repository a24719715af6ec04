"""Whole nights with harm in them: through operator, trigger, journal and manifest, and the rest of the night is whole."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import ObjectStoragePath
from PIL import Image

from airflow_provider_uniapi_fal.exceptions import FalInputError, FalSubmitOutcomeUnknown
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.landing.manifest import read_manifest, verify_files
from airflow_provider_uniapi_fal.operators import batch as operators
from airflow_provider_uniapi_fal.protocol import watching
from airflow_provider_uniapi_fal.transport import media as transport
from airflow_provider_uniapi_fal.triggers import batch as triggers
from tests.batch.tasks import MODES, BatchTask, counts, table
from tests.fakes import ARGUMENTS, MODEL, PROMPT, ScriptedServer, posts

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.landing.manifest import ManifestRow
    from tests.fakes import Exchange, Start

HALF = "\ud83d"


def picture() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "teal").save(buffer, "png")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "RACE_SECONDS", 0.0)
    monkeypatch.setattr(triggers, "GATHER_SECONDS", 0.05)
    monkeypatch.setattr(watching, "CANCEL_GRACE", 0.05)
    monkeypatch.setattr(transport, "MAX_ATTEMPTS", 1)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    return MODES[request.param]


@pytest.fixture
def media() -> Iterator[ScriptedServer]:
    """Serve a picture, or what the path asks for."""
    bodies = {
        "/page": (b"<!doctype html><html>Not here</html>", "image/png"),
        "/empty": (b"", "image/png"),
        "/cut": (picture()[:-20], "image/png"),
        "/elf": (b"\x7fELF\2\1\1\0" + bytes(99), "image/png"),
    }

    def answer(call: Exchange) -> None:
        call.answer(*bodies.get(call.path, (picture(), "image/png")))

    with ScriptedServer(answer) as server:
        yield server


def rows_of(task: BatchTask) -> dict[str, ManifestRow]:
    """Return the rows of the manifest by key, having proven every file of it."""
    manifest = read_manifest(ObjectStoragePath(f"{task.place}/manifest.jsonl"))
    assert [check for check in verify_files(manifest) if check.problem] == []
    return {row.key: row for row in manifest.rows}


def assert_the_others_are_whole(rows: dict[str, ManifestRow], *hostile: str) -> None:
    others = [row for key, row in rows.items() if key not in hostile]
    assert others
    assert {(row.outcome, len(row.files), row.posts) for row in others} == {("succeeded", 1, 1)}


def test_half_a_character_in_a_reply_costs_nobody_the_night(
    start: Start, place: str, mode: dict[str, Any], media: ScriptedServer
) -> None:
    emulator = start(run_seconds=0.3)
    odd: dict[str, Any] = {
        "000": {"images": [{"url": f"{media.url}/x", "file_name": f"a{HALF}.png"}]},
        "001": {"images": [{"url": f"{media.url}/x", "content_type": f"image/{HALF}"}]},
        "002": {f"more{HALF}": [{"url": f"{media.url}/x"}]},
        "003": {"images": [{"url": f"{media.url}/x{HALF}"}]},
    }
    for number, fields in odd.items():
        emulator.add_fault(fault="body", on="result", match=f"{PROMPT} {number}", **fields)
    task = BatchTask(f"{place}/night", requests=table(6), **mode)
    assert counts(task.run()) == {"asked": 6, "succeeded": 6}
    assert posts(emulator) == 6
    rows = rows_of(task)
    assert_the_others_are_whole(rows, "row-002")
    assert [file.where for file in rows["row-002"].files] == ["images[0]", "more\ufffd[0]"]
    assert task.next_try().run()["counts"]["succeeded"] == 6


@pytest.mark.parametrize("where", ["key", "metadata", "arguments.prompt", "arguments: half"])
def test_half_a_character_in_the_table_is_refused_by_name_before_anything_is_paid(
    start: Start, place: str, where: str
) -> None:
    emulator = start()
    rows = table(3)
    if where == "key":
        rows[1]["key"] = f"row-001{HALF}"
    elif where == "metadata":
        rows[1]["note"] = {"deep": [HALF]}
    elif where == "arguments.prompt":
        rows[1]["arguments"]["prompt"] = HALF
    else:
        rows[1]["arguments"][HALF] = 1
    given = ObjectStoragePath(f"{place}/table.jsonl")
    given.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(FalInputError, match=f"row-001.*{where}"):
        BatchTask(f"{place}/night", requests=str(given), **MODES["blocking"]).run()
    assert emulator.requests() == []


def test_two_rows_that_the_gateway_gives_one_request_id_are_two_rows(
    start: Start, place: str, mode: dict[str, Any]
) -> None:
    emulator = start(run_seconds=0.3)
    accepted: Any = FalHook().submit(MODEL, ARGUMENTS)
    kept = {"request_id": accepted.handle.request_id, "status_url": accepted.handle.status_path}
    for number in ("001", "002"):
        emulator.add_fault(fault="body", on="submit", match=f"{PROMPT} {number}", **kept)
    task = BatchTask(f"{place}/night", requests=table(4), **mode)
    assert counts(task.run()) == {"asked": 4, "succeeded": 4}
    rows = rows_of(task)
    assert_the_others_are_whole(rows)
    assert rows["row-001"].request_id == rows["row-002"].request_id == accepted.handle.request_id


def test_hostile_results_are_errors_of_their_own_rows_in_a_whole_night(
    start: Start, place: str, mode: dict[str, Any], media: ScriptedServer
) -> None:
    emulator = start(run_seconds=0.3)
    hostile: dict[str, tuple[dict[str, Any], str]] = {
        "row-000": ({"images": [{"url": f"{media.url}/page"}]}, "HTML page"),
        "row-001": ({"images": [{"url": f"{media.url}/cut"}]}, "ends in the middle"),
        "row-002": ({"images": [{"url": f"{media.url}/empty"}]}, "empty file"),
        "row-003": ({"images": [{"url": "http://localhost:1/x"}]}, "private address"),
        "row-004": ({"images": [{"url": "data:image/png;base64,***"}]}, "cannot be decoded"),
        "row-005": ({"images": [{"url": f"{media.url}/{n}"} for n in range(101)]}, "101 files"),
        "row-006": ({"images": [{"url": f"{media.url}/elf", "content_type": "image/png"}]}, "no picture"),
    }
    for key, (fields, _) in hostile.items():
        emulator.add_fault(fault="body", on="result", match=f"{PROMPT} {key[-3:]}", **fields)
    task = BatchTask(f"{place}/night", requests=table(10), min_success_ratio=0.3, **mode)
    assert counts(task.run()) == {"asked": 10, "succeeded": 3, "failed": 7}
    assert posts(emulator) == 10
    rows = rows_of(task)
    assert_the_others_are_whole(rows, *hostile)
    for key, (_, says) in hostile.items():
        row = rows[key]
        assert row.error is not None
        assert says in row.error.message
        assert (row.files, row.posts) == ((), 1)
    landed = {name.rpartition("/")[2] for name in _all_below(task.place) if ".journal" not in name}
    assert landed == {
        "manifest.jsonl",
        "manifest.summary.json",
        *(f"row-{n:03}.jpg" for n in range(7, 10)),
    }


@pytest.mark.parametrize("what", ["segments/000001-", "openings/000001-", "segments/"])
def test_a_night_of_which_a_lifecycle_rule_has_deleted_old_files_pays_nothing_again(
    start: Start, place: str, what: str
) -> None:
    emulator = start(faults=["job match=002 failure=refused times=1"])
    task = BatchTask(f"{place}/night", requests=table(3), min_success_ratio=0.5, **MODES["blocking"])
    task.run()
    task.next_try(cleared=True).run()
    assert posts(emulator) == 4
    for name in _all_below(task.place):
        if f"manifest.journal/{what}" in name:
            ObjectStoragePath(task.place).fs.rm_file(name)
    with pytest.raises(FalSubmitOutcomeUnknown, match="journal cannot be read"):
        task.next_try(cleared=True).run()
    assert posts(emulator) == 4


def _all_below(place: str) -> list[str]:
    path = ObjectStoragePath(place)
    path.fs.invalidate_cache()
    return [str(name) for name in path.fs.find(path.path)]
