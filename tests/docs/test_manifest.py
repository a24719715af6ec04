"""docs/manifest.md names every field and outcome there is, and its lines read a real manifest."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import duckdb
import pandas  # type: ignore[import-untyped]
import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal.landing.kinds import UNTOLD
from airflow_provider_uniapi_fal.landing.manifest import OUTCOMES, Manifest, manifest_schema, write_manifest
from airflow_provider_uniapi_fal.landing.names import FIELDS
from tests.landing.test_manifest import ERROR, PICTURE, row

TEXT = Path(__file__).parents[2].joinpath("docs", "manifest.md").read_text()


def first_column(heading: str) -> list[str]:
    section = TEXT.partition(f"## {heading}\n")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([^`]+)` \|", section, re.MULTILINE)


@pytest.mark.parametrize(
    ("heading", "definition"),
    [("Fields of a row", "row"), ("Fields of a file", "file"), ("Fields of the summary", "summary")],
)
def test_the_tables_name_the_fields_of_the_schema(heading: str, definition: str) -> None:
    assert sorted(first_column(heading)) == sorted(manifest_schema()["$defs"][definition]["properties"])


def test_the_tables_name_every_outcome_and_every_field_of_a_name() -> None:
    assert first_column("Outcomes") == list(OUTCOMES)
    assert sorted(first_column("Names of files")) == sorted(f"{{{field}}}" for field in FIELDS)


def test_the_media_that_are_believed_whatever_their_bytes_are_named() -> None:
    section = TEXT.partition("Some media cannot be told by their bytes")[2].partition("\n\n")[0]
    assert set(re.findall(r"`([^`]+)`", section)) == UNTOLD


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Write a manifest into the folder in which the lines of the page are run."""
    rows = (
        row("001", files=(PICTURE, PICTURE), seed=7, posts=1),
        row("002", "failed", index=1, error=ERROR, request_id="r-2"),
        row("夜", index=2, files=(PICTURE,), metadata={"scene": "harbour"}, submitted_at=1764000000.5),
    )
    write_manifest(Manifest(rows), ObjectStoragePath((tmp_path / "manifest.jsonl").as_uri()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def line(language: str) -> str:
    [found] = re.findall(rf"```{language}\n(pandas[^\n]*|SELECT[^\n]*)\n```", TEXT)
    return str(found)


@pytest.mark.usefixtures("folder")
def test_the_line_for_pandas_reads_a_manifest() -> None:
    table: Any = eval(line("python"), {"pandas": pandas})
    assert list(table["key"]) == ["001", "002", "夜"]
    assert list(table["outcome"]) == ["succeeded", "failed", "succeeded"]
    assert [len(files) for files in table["files"]] == [2, 0, 1]
    assert table["error"][1]["billed"] == "maybe"


@pytest.mark.usefixtures("folder")
def test_the_line_for_duckdb_reads_a_manifest() -> None:
    found = duckdb.sql(line("sql"))
    names, rows = [column[0] for column in found.description], found.fetchall()
    assert names[:2] == ["key", "outcome"]
    assert set(names[2:]) == set(manifest_schema()["$defs"]["file"]["properties"])
    assert [(each[0], each[names.index("bytes")]) for each in rows] == [
        ("001", 12),
        ("001", 12),
        ("夜", 12),
    ]
