"""Whole nights whose files would have one name: what is to stay stays, and what is made anew takes the old one's place."""

from __future__ import annotations

import hashlib
import io
import json
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk import ObjectStoragePath
from PIL import Image

from airflow_provider_uniapi_fal.exceptions import FalInputError
from airflow_provider_uniapi_fal.landing import media
from airflow_provider_uniapi_fal.landing.manifest import read_manifest, verify_files
from airflow_provider_uniapi_fal.landing.storage import put, put_bytes
from airflow_provider_uniapi_fal.operators import batch as operators
from airflow_provider_uniapi_fal.triggers import batch as triggers
from tests.batch.tasks import MODES, BatchTask, counts, table
from tests.fakes import PROMPT, ScriptedServer, posts

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.landing.files import LandedFile
    from tests.fakes import Start

SIZE = {"width": 64, "height": 48}


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "RACE_SECONDS", 0.0)
    monkeypatch.setattr(triggers, "GATHER_SECONDS", 0.05)


def files(manifest: str) -> dict[str, tuple[LandedFile, ...]]:
    """Return the files of each row, having proven that all of them are there."""
    read = read_manifest(ObjectStoragePath(manifest))
    assert [check for check in verify_files(read) if check.problem] == []
    return {row.key: row.files for row in read.rows}


def names(folder: str) -> set[str]:
    path = ObjectStoragePath(folder)
    path.fs.invalidate_cache()
    found = {str(name).rpartition("/")[2] for name in path.fs.ls(path.path, detail=False)}
    return {name for name in found if not name.startswith("manifest.")}


def sha256(address: str) -> str:
    return hashlib.sha256(ObjectStoragePath(address).read_bytes()).hexdigest()


def test_the_files_of_an_earlier_manifest_keep_their_names(start: Start, place: str) -> None:
    start()
    one = {"key": "a", "arguments": {"prompt": "one", "num_images": 2, "image_size": SIZE}}
    two = {"key": "a-0", "arguments": {"prompt": "two", "image_size": SIZE}}
    first = f"{place}/first.jsonl"
    BatchTask(f"{place}/media", requests=[one], manifest_path=first, **MODES["blocking"]).run()
    second = BatchTask(
        f"{place}/media",
        requests=[one, two],
        manifest_path=f"{place}/second.jsonl",
        skip_existing=first,
        run_id="second",
        **MODES["blocking"],
    )
    assert counts(second.run()) == {"asked": 2, "succeeded": 2}
    rows = files(f"{place}/second.jsonl")
    assert rows["a"] == files(first)["a"]
    assert len({file.path for row in rows.values() for file in row}) == 3


def test_an_input_beside_the_table_stays_as_it_is(start: Start, place: str) -> None:
    start()
    buffer = io.BytesIO()
    Image.new("RGB", (70, 70), "red").save(buffer, "jpeg")
    put_bytes(buffer.getvalue(), ObjectStoragePath(place) / "night" / "harbour.jpg")
    row = {"key": "harbour", "arguments": {"prompt": "x", "image_url": "harbour.jpg", "image_size": SIZE}}
    listed = {"key": "b", "arguments": {"prompt": "y", "image_urls": ["harbour.jpg"], "image_size": SIZE}}
    (ObjectStoragePath(place) / "night" / "t.jsonl").write_text(f"{json.dumps(row)}\n{json.dumps(listed)}\n")
    task = BatchTask(f"{place}/night", requests=f"{place}/night/t.jsonl", **MODES["blocking"])
    assert counts(task.run()) == {"asked": 2, "succeeded": 2}
    [made] = files(f"{place}/night/manifest.jsonl")["harbour"]
    assert (ObjectStoragePath(place) / "night" / "harbour.jpg").read_bytes() == buffer.getvalue()
    assert names(f"{place}/night") - {"manifest.journal"} == {
        "harbour.jpg",
        "b.jpg",
        "t.jsonl",
        f"harbour-{made.sha256[:8]}.jpg",
    }


@pytest.mark.parametrize(("key", "suffix"), [("manifest", ".jsonl"), ("manifest.summary", ".json")])
def test_no_landed_file_takes_the_place_of_the_manifest(
    start: Start, place: str, key: str, suffix: str
) -> None:
    emulator = start()
    with ScriptedServer(lambda call: call.answer(b"\0binary", "application/octet-stream")) as server:
        emulator.add_fault(fault="body", on="result", meshes=[{"url": f"{server.url}/x{suffix}"}], images=[])
        rows = [{**table(1)[0], "key": key}]
        task = BatchTask(f"{place}/night", requests=rows, **MODES["blocking"])
        assert counts(task.run()) == {"asked": 1, "succeeded": 1}
        [file] = files(f"{place}/night/manifest.jsonl")[key]
        assert file.path.endswith(f"/{key}-{file.sha256[:8]}{suffix}")


def test_a_key_that_storage_reads_as_something_else_is_refused(start: Start, place: str) -> None:
    emulator = start()
    rows = [{**table(1)[0], "key": "a::b"}]
    with pytest.raises(FalInputError, match="plain file name"):
        BatchTask(f"{place}/night", requests=rows, **MODES["blocking"]).run()
    assert posts(emulator) == 0


@pytest.mark.parametrize("mode", MODES)
def test_what_a_clear_makes_anew_takes_the_place_of_the_old_and_of_nothing_else(
    start: Start, place: str, mode: str
) -> None:
    emulator = start(run_seconds=0.3)
    task = BatchTask(f"{place}/night", requests=table(3), on_clear="all", **MODES[mode])
    task.run()
    before = files(f"{place}/night/manifest.jsonl")
    # The second picture cannot be made again: its old one stays.
    emulator.add_fault(fault="job", match=f"{PROMPT} 001", failure="refused")
    task.next_try(cleared=True)
    for row in task.options["requests"]:
        row["arguments"]["seed"] = 99
    assert counts(task.run(min_success_ratio=0.5)) == {"asked": 3, "succeeded": 2, "refused": 1}
    assert posts(emulator) == 6
    after = files(f"{place}/night/manifest.jsonl")
    assert names(f"{place}/night") - {"manifest.journal"} == {f"row-{n:03}.jpg" for n in range(3)}
    for key in ("row-000", "row-002"):
        [new], [old] = after[key], before[key]
        assert new.path == old.path
        assert new.sha256 != old.sha256
    [kept] = before["row-001"]
    assert sha256(kept.path) == kept.sha256


def test_the_old_picture_stays_until_the_new_one_is_whole(
    start: Start, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    task = BatchTask(f"{place}/night", requests=table(1), on_clear="all", **MODES["blocking"])
    task.run()
    [old] = files(f"{place}/night/manifest.jsonl")["row-000"]
    seen: list[Any] = []

    def look_and_put(source: Any, target: ObjectStoragePath) -> None:
        seen.append(sha256(str(target)))
        put(source, target)

    monkeypatch.setattr(media, "put", look_and_put)
    task.options["requests"][0]["arguments"]["seed"] = 99
    task.next_try(cleared=True).run()
    assert seen == [old.sha256]
