"""The manifest: rows and summary, and what is no manifest."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import jsonschema
import pandas  # type: ignore[import-untyped]
import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal.landing.files import LandedFile
from airflow_provider_uniapi_fal.landing.manifest import (
    LATEST,
    OUTCOMES,
    FileCheck,
    Manifest,
    ManifestRow,
    RowError,
    manifest_schema,
    read_manifest,
    summary_path,
    verify_files,
    write_manifest,
)
from airflow_provider_uniapi_fal.protocol.errors import FailureKind

PICTURE = LandedFile("images[0]", "file:///media/a.png", 12, "ab" * 32, "image/png", 8, 9, False)

ERROR = RowError("input", "The model refused its input.", "maybe", False, "value_error")


def row(key: str, outcome: str = "succeeded", **fields: Any) -> ManifestRow:
    common: dict[str, Any] = {
        "index": 0,
        "model": "flux/dev",
        "dialect": "fal",
        "fal_conn_id": "fal_default",
        "arguments_sha256": "cd" * 32,
    }
    return ManifestRow(key=key, outcome=outcome, **{**common, **fields})


@pytest.fixture
def path(tmp_path: Path) -> ObjectStoragePath:
    return ObjectStoragePath((tmp_path / "night" / "manifest.jsonl").as_uri())


def test_half_a_character_in_a_row_costs_no_manifest_and_is_read_by_everybody(
    path: ObjectStoragePath,
) -> None:
    odd = replace(PICTURE, content_type="image/\ud83d")
    write_manifest(Manifest((row("a", files=(odd,)), row("b"))), path)
    [first, _] = read_manifest(path).rows
    assert first.files[0].content_type == "image/?"


def test_a_manifest_is_read_as_it_was_written(path: ObjectStoragePath) -> None:
    manifest = Manifest(
        (row("a", files=(PICTURE,), posts=1, tries=1, seed=7), row("b", "failed", index=1, error=ERROR)),
        dag_id="night",
        run_id="one",
        task_id="make",
        written_at=1.5,
    )
    write_manifest(manifest, path)
    assert read_manifest(path) == manifest


@pytest.mark.parametrize("seed", [-(2**63) - 1, -(2**63), 2**64 - 1, 2**64, 10**30])
def test_a_seed_of_any_length_is_kept_exactly_and_keeps_no_reader_from_the_manifest(
    path: ObjectStoragePath, seed: int
) -> None:
    manifest = Manifest((row("a", seed=1), row("b", seed=seed, index=1)))
    write_manifest(manifest, path)
    assert read_manifest(path) == manifest
    for line in path.read_text().splitlines():
        assert problems(json.loads(line), "row") == []
    assert pandas.read_json(path.path, lines=True, dtype={"key": str})["key"].tolist() == ["a", "b"]
    exact = pandas.read_json(path.path, lines=True, dtype={"key": str, "seed": str})["seed"].tolist()
    assert exact == ["1", str(seed)]
    found = duckdb.sql(f"SELECT seed FROM '{path.path}'").fetchall()
    assert [str(each).strip('"') for (each,) in found] == ["1", str(seed)]


def test_the_outcomes_add_up_to_what_was_asked(path: ObjectStoragePath) -> None:
    summary = write_manifest(Manifest((row("a"), row("b", "unknown"), row("c", "unknown"))), path)
    counts = summary["counts"]
    assert counts.pop("asked") == sum(counts.values()) == 3
    assert counts["unknown"] == 2


def test_rows_and_a_summary_that_do_not_belong_together_are_no_manifest(path: ObjectStoragePath) -> None:
    write_manifest(Manifest((row("a"),)), path)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(ValueError, match="do not belong together"):
        read_manifest(path)


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"model": None}, "model"),
        ({"seconds_queued": float("nan")}, "seconds_queued"),
        ({"submitted_at": 1e300}, "submitted_at"),
        ({"posts": True}, "posts"),
        ({"files": (replace(PICTURE, bytes="12"),)}, "bytes"),  # type: ignore[arg-type]
        ({"outcome": "failed", "error": replace(ERROR, message=None)}, "message"),  # type: ignore[arg-type]
    ],
)
def test_a_row_that_nobody_could_read_again_is_not_written(
    path: ObjectStoragePath, change: dict[str, Any], names: str
) -> None:
    with pytest.raises(ValueError, match=f"^{names} "):
        write_manifest(Manifest((row("a"), replace(row("b"), **change))), path)
    assert not path.exists()
    assert not summary_path(path).exists()
    line = json.loads(json.dumps(replace(row("b"), **change).to_json()))
    with pytest.raises(ValueError, match=f"no row of a manifest: {names} "):
        ManifestRow.from_json(line)


def test_fields_of_a_later_version_are_passed_over() -> None:
    line = row("a", "failed", error=ERROR, files=(PICTURE,)).to_json()
    later = {
        **line,
        "later": 1,
        "error": {**line["error"], "later": 2},
        "files": [{**line["files"][0], "later": 3}],
    }
    assert ManifestRow.from_json(later) == row("a", "failed", error=ERROR, files=(PICTURE,))


def test_an_outcome_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="outcome"):
        row("a", "fine")


def schema_of(definition: str) -> dict[str, Any]:
    schema = manifest_schema()
    return {"$schema": schema["$schema"], "$defs": schema["$defs"], "$ref": f"#/$defs/{definition}"}


def problems(value: Any, definition: str) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema_of(definition))
    return [error.message for error in validator.iter_errors(value)]


#: A row of each outcome, with every field that it can have.
NIGHT = (
    row("a", files=(PICTURE,), seed=7, posts=1, tries=1, submitted_at=1.5, billable_units="1"),
    row("b", "flagged", index=1, flagged=True, arguments={"prompt": "x"}, metadata={"scene": [1]}),
    *(
        row(outcome, outcome, index=index, error=ERROR, request_id="r", arguments_sha256=None)
        for index, outcome in enumerate(OUTCOMES[2:], 2)
    ),
)


def test_what_is_written_fits_the_schema(path: ObjectStoragePath) -> None:
    jsonschema.Draft202012Validator.check_schema(manifest_schema())
    write_manifest(Manifest(NIGHT), path)
    for line in path.read_text().splitlines():
        value = json.loads(line)
        assert problems(value, "row") == []
        assert not list(jsonschema.Draft202012Validator(manifest_schema()).iter_errors(value))
    assert problems(json.loads(summary_path(path).read_text()), "summary") == []


def test_the_schema_knows_every_field_and_no_other(path: ObjectStoragePath) -> None:
    summary = write_manifest(Manifest(NIGHT), path)
    definitions = manifest_schema()["$defs"]
    written = {
        "row": NIGHT[0].to_json(),
        "file": PICTURE.to_json(),
        "error": NIGHT[2].to_json()["error"],
        "summary": summary,
    }
    for name, value in written.items():
        assert set(definitions[name]["properties"]) == set(value) == set(definitions[name]["required"])
    assert definitions["row"]["properties"]["submitted_at"]["maximum"] == LATEST
    assert definitions["outcome"]["enum"] == list(OUTCOMES)
    assert definitions["error"]["properties"]["kind"]["enum"] == [kind.value for kind in FailureKind]
    assert definitions["summary"]["properties"]["counts"]["required"] == list(summary["counts"])


@pytest.mark.parametrize(
    "change",
    [
        {"outcome": "fine"},
        {"key": ""},
        {"key": 7},
        {"arguments_sha256": "abc"},
        {"index": -1},
        {"schema_version": 2},
        {"files": [{"path": "a"}]},
        {"error": ERROR.__dict__},
        {"seconds_queued": -1},
        {"flagged": None},
        {"seed": 2**64},
        {"seed": "seven"},
    ],
)
def test_the_schema_refuses_what_is_no_row(change: dict[str, Any]) -> None:
    good = json.loads(json.dumps(NIGHT[0].to_json()))
    assert problems(good, "row") == []
    assert problems({**good, **change}, "row") != []


def test_each_file_is_hashed_again(tmp_path: Path) -> None:
    def landed(name: str, content: bytes) -> LandedFile:
        (tmp_path / name).write_bytes(content)
        digest = hashlib.sha256(content).hexdigest()
        path = (tmp_path / name).as_uri()
        return LandedFile("images[0]", path, len(content), digest, "image/png", 8, 9, False)

    files = [landed(name, b"a picture") for name in ("whole", "changed", "cut", "gone")]
    (tmp_path / "changed").write_bytes(b"A picture")
    (tmp_path / "cut").write_bytes(b"a pict")
    (tmp_path / "gone").unlink()
    manifest = Manifest((row("a", files=tuple(files[:2])), row("b"), row("c", files=tuple(files[2:]))))
    assert list(verify_files(manifest)) == [
        FileCheck("a", files[0].path),
        FileCheck("a", files[1].path, "its bytes are not those that were landed"),
        FileCheck("c", files[2].path, "it has 6 bytes; 9 were landed"),
        FileCheck("c", files[3].path, "it is not there"),
    ]


def test_a_file_that_cannot_be_read_is_a_problem_and_not_the_end(tmp_path: Path) -> None:
    odd = LandedFile("images[0]", "odd://bucket/a.png", 1, "ab" * 32, None, None, None, False)
    [check] = verify_files(Manifest((row("a", files=(odd,)),)))
    assert check.problem == "it cannot be read (ValueError)"
