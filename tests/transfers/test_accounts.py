"""The transfer operator's accounts: manifests, asset events, lineage; and landing a whole manifest."""

from __future__ import annotations

import builtins
import json
import math
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import jsonschema
import pendulum
import pytest
from airflow.sdk import Asset, ObjectStoragePath
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_provider_uniapi_fal.exceptions import (
    FalAuthError,
    FalBalanceError,
    FalError,
    FalInputError,
    FalProtocolError,
    FalResultExpired,
)
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
from airflow_provider_uniapi_fal.landing.rows import ASKED_AT_ONCE
from airflow_provider_uniapi_fal.protocol import retrying
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator
from tests.fakes import ARGUMENTS, KEY, MODEL, PROMPT, ScriptedServer, Task, as_json, calls, set_connection

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.job import JobResult
    from tests.fakes import Exchange, Start
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


def landed_row(store: Store, key: str, *, folder: str = "night", **arguments: Any) -> ManifestRow:
    """Land a result of its own; return its row."""
    result = as_json(finished(prompt=f"{PROMPT} {key}", output_format="png", **arguments).to_json())
    place, account = str(store.path / folder), store.path / f"{key}.jsonl"
    operator(result, store, name=key, destination=place, manifest_path=str(account)).execute(
        context_of(Task())
    )
    [row] = read_manifest(account).rows
    return row


def landed_by_halves(store: Store) -> ObjectStoragePath:
    """Write the manifest of a row of two files, the first of which could not be landed."""
    row = landed_row(store, "a", num_images=2)
    error = RowError("protocol", "The file images[0] of the result cannot be landed.", "maybe", False)
    path = store.path / "night" / "manifest.jsonl"
    write_manifest(Manifest((replace(row, outcome="failed", error=error, files=row.files[1:]),)), path)
    return path


def unlanded(count: int, prompt: str) -> list[ManifestRow]:
    """Return rows of jobs that have ended, which whoever wrote them did not see."""
    error = RowError("timeout", "The wait has ended before the job did.", "maybe", True)
    hook, rows = FalHook(), []
    for number in range(count):
        job = hook.submit(MODEL, {**ARGUMENTS, "prompt": f"{prompt} {number}"}).handle  # type: ignore[union-attr]
        rows.append(
            ManifestRow(
                key=job.request_id,
                index=number,
                model=MODEL,
                dialect="fal",
                fal_conn_id="fal_default",
                outcome="failed",
                arguments_sha256=None,
                request_id=job.request_id,
                error=error,
            )
        )
    return rows


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


def test_a_file_that_lies_in_storage_is_copied_and_only_the_others_are_fetched(
    start: Start, store: Store
) -> None:
    emulator = start()
    path = landed_by_halves(store)
    before = len(calls(emulator, "media"))
    told = operator(str(path), store).execute(context_of(Task()))
    [row] = read_manifest(ObjectStoragePath(told["manifest_path"])).rows
    assert (row.outcome, row.error) == ("succeeded", None)
    assert [(file.where, ObjectStoragePath(file.path).name) for file in row.files] == [
        ("images[0]", "a-0.png"),
        ("images[1]", "a-1.png"),
    ]
    assert len(calls(emulator, "media")) == before + 1
    assert all(
        check.problem is None for check in verify_files(read_manifest(store.path / "media/manifest.jsonl"))
    )


def test_a_file_that_lies_in_storage_is_copied_although_the_gateway_has_it_no_more(
    start: Start, store: Store
) -> None:
    emulator = start()
    path = landed_by_halves(store)
    emulator.add_fault("server-error on=media status=404")
    with pytest.raises(FalResultExpired, match=r"images\[0\]"):
        operator(str(path), store).execute(context_of(Task()))
    [row] = read_manifest(store.path / "media" / "manifest.jsonl").rows
    assert [(file.where, ObjectStoragePath(file.path).name) for file in row.files] == [
        ("images[1]", "a-1.png")
    ]
    assert (store.path / "media" / "a-1.png").exists()


def test_a_file_that_storage_has_lost_is_fetched_from_the_gateway(start: Start, store: Store) -> None:
    start()
    path = landed_by_halves(store)
    (store.path / "night" / "a-1.png").unlink()
    store.path.fs.invalidate_cache()
    told = operator(str(path), store).execute(context_of(Task()))
    [row] = read_manifest(ObjectStoragePath(told["manifest_path"])).rows
    assert [file.where for file in row.files] == ["images[0]", "images[1]"]


def test_a_file_that_neither_storage_nor_the_gateway_gives_is_tried_again_if_one_of_them_may_have_it(
    start: Start, store: Store
) -> None:
    emulator = start()
    path = landed_by_halves(store)
    (store.path / "night" / "a-1.png").unlink()
    store.path.fs.invalidate_cache()
    emulator.add_fault("server-error on=media status=403")
    with pytest.raises(FalProtocolError, match="403"):
        operator(str(path), store).execute(context_of(Task()))


def test_a_row_whose_job_the_model_refused_keeps_no_other_from_landing(start: Start, store: Store) -> None:
    start(faults=[f'job match="{PROMPT} wrong" failure=result-422'])
    rows = [landed_row(store, "a"), *unlanded(1, f"{PROMPT} wrong"), *unlanded(1, PROMPT)]
    path = store.path / "night" / "manifest.jsonl"
    write_manifest(Manifest(tuple(rows)), path)
    operator(str(path), store).execute(context_of(Task()))
    landed = read_manifest(store.path / "media" / "manifest.jsonl").rows
    assert [row.outcome for row in landed] == ["succeeded", "failed", "succeeded"]
    assert landed[1] == rows[1]
    assert (store.path / "media" / "a.png").exists()


def test_a_job_that_still_runs_leaves_its_row_as_it_is(start: Start, store: Store) -> None:
    start(run_seconds=3600.0)
    rows = unlanded(1, PROMPT)
    path = store.path / "night" / "manifest.jsonl"
    write_manifest(Manifest(tuple(rows)), path)
    operator(str(path), store).execute(context_of(Task()))
    assert read_manifest(store.path / "media" / "manifest.jsonl").rows == tuple(rows)


def test_a_gateway_that_is_away_is_asked_a_few_times_and_the_landing_fails_for_a_retry(
    start: Start, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start()
    rows = [*unlanded(3 * ASKED_AT_ONCE, PROMPT), landed_row(store, "a")]
    path = store.path / "night" / "manifest.jsonl"
    write_manifest(Manifest(tuple(rows)), path)
    monkeypatch.setattr(retrying, "backoff", lambda attempt, jitter: 0.0)
    task = Task()
    with ScriptedServer(lambda call: call.answer(b"<h1>Bad gateway</h1>", "text/html", 502)) as away:
        set_connection(monkeypatch, away.url)
        with pytest.raises(
            FalProtocolError, match=r"24 of 25 results could not be landed; .*HTTP 502"
        ) as met:
            operator(str(path), store).execute(context_of(task))
    assert len(away.seen) <= 2 * ASKED_AT_ONCE * retrying.MAX_READ_ATTEMPTS
    assert "A retry of the landing asks for it again; nothing is submitted." in str(met.value)
    assert task.xcoms["failure"]["kind"] == "protocol"
    landed = read_manifest(store.path / "media" / "manifest.jsonl").rows
    assert landed[:-1] == tuple(rows[:-1]), "nothing new is known of them"
    assert (store.path / "media" / "a.png").exists(), "what lies in storage is landed all the same"
    set_connection(monkeypatch, emulator.url)
    told = operator(str(path), store).execute(context_of(task.next_try()))
    assert told["counts"]["succeeded"] == len(rows)


@pytest.mark.parametrize(("status", "error"), [(401, FalAuthError), (402, FalBalanceError)])
def test_a_refused_key_or_account_ends_the_asking_and_keeps_nothing_in_storage_from_landing(
    start: Start, store: Store, monkeypatch: pytest.MonkeyPatch, status: int, error: type[FalError]
) -> None:
    start()
    rows = [*unlanded(3 * ASKED_AT_ONCE, PROMPT), landed_row(store, "a")]
    path = store.path / "night" / "manifest.jsonl"
    write_manifest(Manifest(tuple(rows)), path)
    with ScriptedServer(lambda call: call.json({"detail": "Refused"}, status)) as refusing:
        set_connection(monkeypatch, refusing.url)
        with pytest.raises(error, match="24 of 25 results could not be landed"):
            operator(str(path), store).execute(context_of(Task()))
    assert len(refusing.seen) <= ASKED_AT_ONCE
    assert (store.path / "media" / "a.png").exists()


def test_results_are_asked_for_several_at_once(
    start: Start, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    rows = unlanded(2 * ASKED_AT_ONCE, PROMPT)
    path = store.path / "night" / "manifest.jsonl"
    write_manifest(Manifest(tuple(rows)), path)
    together = threading.Barrier(ASKED_AT_ONCE)

    def answer(call: Exchange) -> None:
        together.wait(30)
        call.json({"detail": [{"loc": ["body"], "msg": "wrong", "type": "value_error"}]}, 422)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        operator(str(path), store).execute(context_of(Task()))
    assert len(server.seen) == len(rows)
    assert not together.broken


def test_of_several_errors_the_one_that_a_retry_may_mend_is_raised(start: Start, store: Store) -> None:
    start()
    _, path = landed_before(store)
    (store.path / "night" / "a.png").unlink()
    (store.path / "night" / "b.png").write_bytes(b"something else")
    store.path.fs.invalidate_cache()
    with pytest.raises(
        FalProtocolError, match=r"2 of 6 results could not be landed; the first: .*not the one"
    ):
        operator(str(path), store).execute(context_of(Task()))


def test_no_file_takes_the_place_of_its_manifest(start: Start, store: Store) -> None:
    start()
    result = as_json(finished(output_format="png").to_json())
    path = store.path / "media" / "a.png"
    operator(result, store, name="a", manifest_path=str(path)).execute(context_of(Task()))
    [row] = read_manifest(path).rows
    [file] = row.files
    assert file.path == str(store.path / "media" / f"a-{file.sha256[:8]}.png")
    assert [check.problem for check in verify_files(read_manifest(path))] == [None]


@pytest.mark.parametrize("named", ["source", "target"])
def test_no_copied_file_takes_the_place_of_a_manifest(start: Start, store: Store, named: str) -> None:
    start()
    row = landed_row(store, "a")
    odd, plain = store.path / "media" / "a.png", store.path / "media" / "manifest.jsonl"
    source, target = (odd, plain) if named == "source" else (plain, odd)
    write_manifest(Manifest((row,)), source)
    operator(str(source), store, manifest_path=str(target)).execute(context_of(Task()))
    assert read_manifest(source).rows == (row,)
    assert [check.problem for check in verify_files(read_manifest(target))] == [None]
    [file] = read_manifest(target).rows[0].files
    assert file.path.endswith(f"a-{file.sha256[:8]}.png")


def test_no_copied_file_takes_the_place_of_one_that_is_still_to_be_copied(start: Start, store: Store) -> None:
    start()
    night, path = store.path / "night", store.path / "night" / "manifest.jsonl"
    rows = (landed_row(store, "a", num_images=2, folder="made"), landed_row(store, "a-1"))
    write_manifest(Manifest(rows), path)
    there = (night / "a-1.png").read_bytes()
    operator(str(path), store, destination=str(night), manifest_path=str(night / "other.jsonl")).execute(
        context_of(Task())
    )
    assert (night / "a-1.png").read_bytes() == there
    assert [check.problem for check in verify_files(read_manifest(night / "other.jsonl"))] == [None] * 3


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
@pytest.mark.parametrize("value", [0, -1, True, 1.5, math.nan, math.inf, "8", None])
def test_a_limit_that_is_no_whole_number_above_zero_is_refused_when_the_dag_is_parsed(
    name: str, value: Any
) -> None:
    with pytest.raises(ValueError, match=name):
        FalToObjectStorageOperator(
            task_id="land",
            result={},
            destination="file:///tmp",
            **{name: value},
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
