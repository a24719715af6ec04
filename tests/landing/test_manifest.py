"""The manifest: rows and summary, and what is no manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal.landing.files import LandedFile
from airflow_provider_uniapi_fal.landing.manifest import (
    Manifest,
    ManifestRow,
    RowError,
    read_manifest,
    write_manifest,
)

PICTURE = LandedFile("images[0]", "file:///media/a.png", 12, "ab" * 32, "image/png", 8, 9, False)


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


def test_a_manifest_is_read_as_it_was_written(path: ObjectStoragePath) -> None:
    error = RowError("input", "The model refused its input.", "maybe", False, "value_error")
    manifest = Manifest(
        (row("a", files=(PICTURE,), posts=1, tries=1, seed=7), row("b", "failed", index=1, error=error)),
        dag_id="night",
        run_id="one",
        task_id="make",
        written_at=1.5,
    )
    write_manifest(manifest, path)
    assert read_manifest(path) == manifest


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


def test_an_outcome_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="outcome"):
        row("a", "fine")
