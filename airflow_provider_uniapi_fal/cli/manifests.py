"""``airflow fal manifest``: read the account of a landing or a batch, and prove its files."""

from __future__ import annotations

import hashlib
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from airflow_provider_uniapi_fal.cli.jobs import storage_path
from airflow_provider_uniapi_fal.cli.terminal import ExitCode, fail, progress, refuse, say, show_rows, verb
from airflow_provider_uniapi_fal.landing.manifest import OUTCOMES, Manifest, read_manifest

if TYPE_CHECKING:
    import argparse

    from airflow_provider_uniapi_fal.landing.files import LandedFile

#: Files hashed at once.
PARALLEL = 4
CHUNK_BYTES = 1024 * 1024

ROW_COLUMNS = ("key", "outcome", "model", "request_id", "files", "seconds_running", "billable_units", "error")
FILE_COLUMNS = ("key", "path", "verdict", "bytes", "found_bytes")


@verb
def show(args: argparse.Namespace) -> ExitCode | None:
    """Show the rows of a manifest, and its counts."""
    if args.outcome is not None and args.outcome not in OUTCOMES:
        refuse(f"--outcome: one of {', '.join(OUTCOMES)} is needed, not {args.outcome!r}.")
    manifest = _read(args)
    rows = [row.to_json() for row in manifest.rows if args.outcome in (None, row.outcome)]
    if args.output == "table":
        rows = [
            {**row, "files": len(row["files"]), "error": (row["error"] or {}).get("message")} for row in rows
        ]
    show_rows(rows, ROW_COLUMNS, args.output)
    say(", ".join(f"{count} {name}" for name, count in manifest.counts.items() if count))
    return None


@verb
def verify(args: argparse.Namespace) -> ExitCode | None:
    """Hash every file of a manifest again; anything but an exact match fails the verb."""
    manifest = _read(args)
    files = [(row.key, file) for row in manifest.rows for file in row.files]
    with progress() as shown, ThreadPoolExecutor(PARALLEL) as pool:
        task = shown.add_task("Hashing", total=len(files))

        def one(named: tuple[str, LandedFile]) -> dict[str, Any]:
            verdict = _verdict(named[1], args.storage_conn_id)
            shown.advance(task)
            return {"key": named[0], **verdict}

        verdicts = list(pool.map(one, files))
    bad = [verdict for verdict in verdicts if verdict["verdict"] != "same"]
    show_rows(verdicts if args.output == "json" else bad, FILE_COLUMNS, args.output)
    counts = Counter(verdict["verdict"] for verdict in verdicts)
    say(
        f"{len(files)} files: " + (", ".join(f"{n} {word}" for word, n in counts.items()) or "none to verify")
    )
    return ExitCode.FAILED if bad else ExitCode.OK


def _read(args: argparse.Namespace) -> Manifest:
    path = storage_path(args.path, args.storage_conn_id)
    try:
        return read_manifest(path)
    except OSError as error:
        fail(f"The manifest {args.path} cannot be read ({type(error).__name__}).", ExitCode.FAILED)
    except (ValueError, KeyError, TypeError) as error:
        fail(f"This is no whole manifest: {error}.", ExitCode.FAILED)


def _verdict(file: LandedFile, storage_conn_id: str | None) -> dict[str, Any]:
    """Return what became of one file: same, changed, missing or unreadable."""
    facts = {"path": file.path, "bytes": file.bytes, "sha256": file.sha256}
    hashed = hashlib.sha256()
    length = 0
    try:
        with storage_path(file.path, storage_conn_id).open("rb") as reader:
            while chunk := reader.read(CHUNK_BYTES):
                hashed.update(chunk)
                length += len(chunk)
    except FileNotFoundError:
        return {**facts, "verdict": "missing", "found_bytes": None}
    except Exception as error:  # noqa: BLE001 - each file system has errors of its own; one file hides no other
        return {**facts, "verdict": "unreadable", "found_bytes": None, "why": type(error).__name__}
    same = (length, hashed.hexdigest()) == (file.bytes, file.sha256)
    return {**facts, "verdict": "same" if same else "changed", "found_bytes": length}
