"""``airflow fal manifest``: the counts, the rows, and every file hashed again."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal.landing.files import LandedFile
from airflow_provider_uniapi_fal.landing.manifest import Manifest, ManifestRow, RowError, write_manifest

if TYPE_CHECKING:
    from tests.cli.conftest import Fal


def landed(path: Path, content: bytes) -> LandedFile:
    path.write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    return LandedFile("images[0]", f"file://{path}", len(content), digest, "image/png", 1, 1, False)


def row(key: str, index: int, outcome: str, *files: LandedFile, error: RowError | None = None) -> ManifestRow:
    return ManifestRow(
        key, index, "flux/dev", "fal", "fal_default", outcome, "a" * 64, files=files, error=error
    )


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    refused = RowError("content_refused", "The model refused it.", "maybe", False)
    rows = (
        row("harbour", 0, "succeeded", landed(tmp_path / "harbour.png", b"harbour")),
        row("storm", 1, "succeeded", landed(tmp_path / "storm.png", b"storm")),
        row("riot", 2, "refused", error=refused),
    )
    path = tmp_path / "manifest.jsonl"
    write_manifest(Manifest(rows, "night", "r1", "batch"), ObjectStoragePath(f"file://{path}"))
    return path


def test_a_manifest_is_shown_with_its_counts_and_reasons(fal: Fal, manifest: Path) -> None:
    done = fal("manifest", "show", str(manifest))
    assert done.code == 0
    assert "3 asked, 2 succeeded, 1 refused" in done.err
    assert [line.split()[0] for line in done.out.splitlines()] == ["key", "harbour", "storm", "riot"]
    assert "The model refused it." in done.out
    only = fal("manifest", "show", f"file://{manifest}", "--outcome", "refused", "-o", "json")
    assert [each["key"] for each in only.json] == ["riot"]


def test_files_that_are_as_they_were_landed_verify(fal: Fal, manifest: Path) -> None:
    done = fal("manifest", "verify", str(manifest), "-o", "json")
    assert (done.code, [each["problem"] for each in done.json]) == (0, [None, None])


@pytest.mark.parametrize("changed", [b"harboux", b"harbour and more", b""])
def test_a_changed_and_a_missing_file_are_named_and_fail_the_verb(
    fal: Fal, manifest: Path, changed: bytes
) -> None:
    (manifest.parent / "harbour.png").write_bytes(changed)
    (manifest.parent / "storm.png").unlink()
    done = fal("manifest", "verify", str(manifest))
    assert done.code == 1
    assert [line.split()[0] for line in done.out.splitlines()] == ["key", "harbour", "storm"]
    assert "0 are as they were landed, 2 are not" in done.err


def test_a_file_in_a_storage_that_cannot_be_had_fails_the_verb(fal: Fal, tmp_path: Path) -> None:
    elsewhere = LandedFile("images[0]", "gopher://x/y.png", 1, "b" * 64, None, None, None, False)
    path = ObjectStoragePath(f"file://{tmp_path}/manifest.jsonl")
    write_manifest(Manifest((row("x", 0, "succeeded", elsewhere),)), path)
    done = fal("manifest", "verify", str(tmp_path / "manifest.jsonl"))
    assert done.code == 1
    assert "cannot be read" in done.out


def test_what_is_no_whole_manifest_is_refused(fal: Fal, manifest: Path, tmp_path: Path) -> None:
    manifest.write_bytes(manifest.read_bytes() + b"{}\n")
    torn = fal("manifest", "verify", str(manifest))
    assert (torn.code, "do not belong together" in torn.err) == (1, True)
    absent = fal("manifest", "show", str(tmp_path / "nothing.jsonl"))
    assert (absent.code, "cannot be read" in absent.err) == (1, True)
