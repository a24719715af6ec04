"""The transfer operator's accounts: manifests, asset events, lineage; and landing a whole manifest."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jsonschema
import pendulum
import pytest
from airflow.sdk import Asset, ObjectStoragePath
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_provider_uniapi_fal.exceptions import FalInputError, FalProtocolError, FalResultExpired
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.landing.manifest import (
    Manifest,
    ManifestRow,
    RowError,
    manifest_schema,
    read_manifest,
    verify_files,
    write_manifest,
)
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator
from tests.fakes import ARGUMENTS, KEY, MODEL, PROMPT, Task, as_json, calls

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.job import JobResult
    from tests.fakes import Start
    from tests.storage import Store


def finished(**arguments: Any) -> JobResult:
    hook = FalHook()
    return hook.result(hook.submit(MODEL, {**ARGUMENTS, **arguments}).handle)  # type: ignore[union-attr]


def context_of(task: Task) -> Any:
    run = SimpleNamespace(run_after=pendulum.datetime(2026, 11, 25, 1, tz="Europe/Berlin"))
    ti: Any = task.ti
    ti.dag_id, ti.run_id, ti.task_id, ti.map_index = "night", "run-1", "land", -1
    return {**task.context, "dag_run": run, "outlet_events": OutletEventAccessors()}


def operator(result: Any, store: Store, **options: Any) -> FalToObjectStorageOperator:
    destination = options.pop("destination", str(store.path / "media"))
    return FalToObjectStorageOperator(task_id="land", result=result, destination=destination, **options)


def test_a_landing_with_a_manifest_tells_where_it_is_before_and_after(start: Start, store: Store) -> None:
    start()
    result = finished(num_images=2, seed=5)
    task, path = Task(), str(store.path / "manifest.jsonl")
    told = operator(as_json(result.to_json()), store, manifest_path=path, name="harbour").execute(
        context_of(task)
    )
    counts = {"asked": 1, "succeeded": 1, **dict.fromkeys(("flagged", "refused", "failed"), 0)}
    counts |= dict.fromkeys(("timed_out", "cancelled", "unknown", "missing"), 0)
    assert told == {
        "manifest_path": path,
        "summary_path": path.replace(".jsonl", ".summary.json"),
        "counts": counts,
    }
    assert task.xcoms["manifest_path"] == path
    manifest = read_manifest(ObjectStoragePath(path))
    assert (manifest.dag_id, manifest.run_id, manifest.task_id) == ("night", "run-1", "land")
    [row] = manifest.rows
    assert (row.key, row.outcome, row.request_id) == ("harbour", "succeeded", result.handle.request_id)
    assert (row.model, row.seed, row.posts, len(row.files)) == (MODEL, 5, 0, 2)
    assert all(check.problem is None for check in verify_files(manifest))
    validator = jsonschema.Draft202012Validator(manifest_schema())
    for line in ObjectStoragePath(path).read_text().splitlines():
        validator.validate(json.loads(line))


def test_files_are_named_by_the_template_and_the_day_of_the_run(start: Start, store: Store) -> None:
    start()
    result = finished(num_images=2, output_format="png", seed=5)
    [first, second] = operator(
        as_json(result.to_json()), store, name="harbour", name_template="{date}/{model}/{key}-{seed}-{index}"
    ).execute(context_of(Task()))
    assert store.names() == [f"media/2026-11-25/flux-dev/harbour-5-{index}.png" for index in range(2)]
    assert first["path"].endswith("harbour-5-0.png")
    assert second["where"] == "images[1]"


def test_an_asset_event_carries_the_manifest_and_the_counts(start: Start, store: Store) -> None:
    start()
    task, asset = Task(), Asset("night_of_media")
    context: Any = context_of(task)
    path = str(store.path / "manifest.jsonl")
    told = operator(as_json(finished().to_json()), store, manifest_path=path, outlets=[asset]).execute(
        context
    )
    assert context["outlet_events"][asset].extra == {"manifest_path": path, "counts": told["counts"]}


def test_a_retry_does_not_fetch_what_its_manifest_says_has_landed(start: Start, store: Store) -> None:
    emulator = start()
    result = as_json(finished(num_images=3, output_format="png").to_json())
    task, path = Task(), str(store.path / "manifest.jsonl")
    first = operator(result, store, manifest_path=path, name="a").execute(context_of(task))
    (store.path / "media" / "a-1.png").unlink()
    store.path.fs.invalidate_cache()
    before = len(calls(emulator, "media"))
    again = operator(result, store, manifest_path=path, name="a").execute(context_of(task.next_try()))
    assert again == first
    assert len(calls(emulator, "media")) == before + 1
    assert len(calls(emulator, "submit")) == 1
    assert all(check.problem is None for check in verify_files(read_manifest(ObjectStoragePath(path))))


def test_a_landing_that_fails_in_part_leaves_an_account_and_what_could_be_had(
    start: Start, store: Store
) -> None:
    start()
    result = as_json(finished(num_images=2, output_format="png").to_json())
    result["media"][0]["url"] += "-gone"
    task, path = Task(), str(store.path / "manifest.jsonl")
    context: Any = context_of(task)
    asset = Asset("night_of_media")
    with pytest.raises(FalResultExpired, match=r"images\[0\]"):
        operator(result, store, manifest_path=path, name="a", outlets=[asset]).execute(context)
    assert task.xcoms["failure"]["kind"] == "result_expired"
    assert store.names() == ["manifest.jsonl", "manifest.summary.json", "media/a-1.png"]
    [row] = read_manifest(ObjectStoragePath(path)).rows
    assert (row.outcome, [file.where for file in row.files]) == ("failed", ["images[1]"])
    assert row.error is not None
    assert row.error.kind == "result_expired"


def landed_before(store: Store) -> tuple[Manifest, ObjectStoragePath]:
    """Land three results, and write their manifest with rows of every other kind between them."""
    path = store.path / "night" / "manifest.jsonl"
    rows: list[ManifestRow] = []
    for key in ("a", "b"):
        made = as_json(finished(prompt=f"{PROMPT} {key}", output_format="png").to_json())
        where = str(store.path / "night" / f"{key}.jsonl")
        operator(made, store, name=key, destination=str(store.path / "night"), manifest_path=where).execute(
            context_of(Task())
        )
        rows += read_manifest(ObjectStoragePath(where)).rows
    late = finished(prompt=f"{PROMPT} late", output_format="png").handle
    error = RowError("timeout", "The wait has ended before the job did.", "maybe", True)
    common: dict[str, Any] = {"model": MODEL, "dialect": "fal", "fal_conn_id": "fal_default"}
    for key, outcome, request_id in (
        ("late", "timed_out", late.request_id),
        ("refused", "refused", "r-1"),
        ("gone", "failed", "r-2"),
        ("unknown", "unknown", None),
    ):
        rows.append(
            ManifestRow(
                key=key,
                index=len(rows),
                outcome=outcome,
                arguments_sha256="ab" * 32,
                request_id=request_id,
                error=error,
                posts=1,
                **common,
            )
        )
    manifest = Manifest(tuple(rows))
    write_manifest(manifest, path)
    return manifest, path


def test_a_manifest_is_landed_elsewhere_with_all_its_rows(start: Start, store: Store) -> None:
    emulator = start()
    source, path = landed_before(store)
    submits = len(calls(emulator, "submit"))
    told = operator(str(path), store, name_template="{key}/{index}").execute(context_of(Task()))
    assert told["manifest_path"] == str(store.path / "media" / "manifest.jsonl")
    landed = read_manifest(ObjectStoragePath(told["manifest_path"]))
    assert [row.key for row in landed.rows] == [row.key for row in source.rows]
    by_key = {row.key: row for row in landed.rows}
    assert {key: row.outcome for key, row in by_key.items()} == {
        "a": "succeeded",
        "b": "succeeded",
        "late": "succeeded",
        "refused": "refused",
        "gone": "failed",
        "unknown": "unknown",
    }
    assert by_key["late"].error is None, "its job had ended well after all"
    assert by_key["gone"].error == source.rows[4].error
    assert by_key["gone"].posts == 1
    assert [name for name in store.names() if name.endswith(".png") and "media" in name] == [
        "media/a/0.png",
        "media/b/0.png",
        "media/late/0.png",
    ]
    assert all(check.problem is None for check in verify_files(landed))
    assert len(calls(emulator, "submit")) == submits, "a landing submits nothing"


def test_what_a_batch_returned_is_landed_by_the_manifest_that_it_names(start: Start, store: Store) -> None:
    start()
    source, path = landed_before(store)
    output = {"manifest_path": str(path), "summary_path": "of no use here", "counts": source.counts}
    told = operator(output, store).execute(context_of(Task()))
    landed = read_manifest(ObjectStoragePath(told["manifest_path"]))
    assert [row.key for row in landed.rows] == [row.key for row in source.rows]
    assert "media/a.png" in store.names()


def test_a_manifest_whose_files_were_damaged_is_landed_but_for_those(start: Start, store: Store) -> None:
    start()
    _, path = landed_before(store)
    (store.path / "night" / "a.png").write_bytes(b"something else")
    store.path.fs.invalidate_cache()
    task = Task()
    with pytest.raises(
        FalProtocolError, match=r"1 of 6 results could not be landed; the first: .*not the one"
    ):
        operator(str(path), store).execute(context_of(task))
    landed = read_manifest(store.path / "media" / "manifest.jsonl")
    assert {row.key: row.outcome for row in landed.rows if row.key in "ab"} == {
        "a": "failed",
        "b": "succeeded",
    }


def test_a_manifest_is_not_landed_onto_itself(start: Start, store: Store) -> None:
    start()
    _, path = landed_before(store)
    with pytest.raises(FalInputError, match="is the manifest that is landed"):
        operator(str(path), store, destination=str(store.path / "night")).execute(context_of(Task()))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"name_template": "../{key}"}, "name_template"),
        ({"name_template": "{date}"}, "name_template"),
        ({"manifest_path": ""}, "manifest_path"),
        ({"manifest_path": 7}, "manifest_path"),
    ],
)
def test_a_wrong_place_is_refused_before_anything_is_fetched(
    start: Start, tmp_path: Path, options: dict[str, Any], says: str
) -> None:
    emulator = start()
    land = FalToObjectStorageOperator(
        task_id="land",
        result=as_json(finished().to_json()),
        destination=tmp_path.as_uri(),
        **options,
    )
    with pytest.raises(FalInputError, match=says):
        land.execute(context_of(Task()))
    assert calls(emulator, "media") == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [None, b"no JSON", b""])
def test_what_is_no_manifest_is_refused(start: Start, tmp_path: Path, content: bytes | None) -> None:
    start()
    path = tmp_path / "manifest.jsonl"
    if content is not None:
        path.write_bytes(content)
        (tmp_path / "manifest.summary.json").write_bytes(content)
    land = FalToObjectStorageOperator(
        task_id="land", result=path.as_uri(), destination=(tmp_path / "media").as_uri()
    )
    with pytest.raises(FalInputError, match=r"result: the manifest .* cannot be read"):
        land.execute(context_of(Task()))


@pytest.mark.parametrize("name", ["max_bytes", "max_files", "max_pixels", "parallel"])
def test_a_limit_that_lets_nothing_through_is_refused_when_the_dag_is_parsed(name: str) -> None:
    with pytest.raises(ValueError, match=name):
        FalToObjectStorageOperator(
            task_id="land",
            result={},
            destination="file:///tmp",
            **{name: 0},  # type: ignore[arg-type]
        )


def test_lineage_leads_from_the_job_to_the_folder_and_the_manifest(start: Start, store: Store) -> None:
    start()
    result = finished(num_images=2)
    path = str(store.path / "manifest.jsonl")
    land = operator(as_json(result.to_json()), store, manifest_path=path)
    land.execute(context_of(Task()))
    lineage = land.get_openlineage_facets_on_complete(None)
    [job] = lineage.inputs
    assert (job.namespace, job.name) == (
        "uniapi_fal://fal_default",
        f"fal/{MODEL}/requests/{result.handle.request_id}",
    )
    folder, manifest = lineage.outputs
    if store.conn_id is None:
        base = store.root.removeprefix("file://")
        assert (folder.namespace, folder.name) == ("file", f"{base}/media")
        assert (manifest.namespace, manifest.name) == ("file", f"{base}/manifest.jsonl")
    else:
        assert (folder.namespace, folder.name) == (store.root, "media")
        assert (manifest.namespace, manifest.name) == (store.root, "manifest.jsonl")
    statistics = folder.outputFacets["outputStatistics"]
    [row] = read_manifest(ObjectStoragePath(path)).rows
    assert (statistics.fileCount, statistics.size) == (2, sum(file.bytes for file in row.files))
    assert KEY not in str(lineage)


def test_lineage_of_a_manifest_leads_from_the_manifest(start: Start, store: Store) -> None:
    start()
    _, path = landed_before(store)
    land = operator(str(path), store)
    land.execute(context_of(Task()))
    [source] = land.get_openlineage_facets_on_complete(None).inputs
    assert source.name.endswith("night/manifest.jsonl")


def test_the_extractor_of_openlineage_takes_the_facets(start: Start, store: Store) -> None:
    from airflow.providers.openlineage.extractors.base import DefaultExtractor

    start()
    land = operator(as_json(finished().to_json()), store)
    land.execute(context_of(Task()))
    lineage = DefaultExtractor(land).extract_on_complete(None)
    assert lineage is not None
    assert len(lineage.inputs) == len(lineage.outputs) == 1


def test_without_openlineage_there_is_no_lineage_and_no_error(
    start: Start, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    land = operator(as_json(finished().to_json()), store)
    assert land.get_openlineage_facets_on_complete(None) is None, "nothing was landed"
    land.execute(context_of(Task()))
    found = builtins.__import__

    def missing(name: str, *args: Any) -> Any:
        if "openlineage" in name:
            raise ImportError(name)
        return found(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert land.get_openlineage_facets_on_complete(None) is None
