"""``airflow fal manifest``: read the account of a landing or a batch, and prove its files."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

from airflow_provider_uniapi_fal.cli.jobs import storage_path
from airflow_provider_uniapi_fal.cli.terminal import ExitCode, fail, progress, refuse, say, show_rows, verb
from airflow_provider_uniapi_fal.landing.manifest import OUTCOMES, Manifest, read_manifest, verify_files

if TYPE_CHECKING:
    import argparse

ROW_COLUMNS = ("key", "outcome", "model", "request_id", "files", "seconds_running", "billable_units", "error")
FILE_COLUMNS = ("key", "path", "problem")


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
    with progress() as shown:
        task = shown.add_task("Hashing", total=sum(len(row.files) for row in manifest.rows))
        checks = []
        for check in verify_files(manifest):
            checks.append(asdict(check))
            shown.advance(task)
    bad = [check for check in checks if check["problem"]]
    show_rows(checks if args.output == "json" else bad, FILE_COLUMNS, args.output)
    say(f"{len(checks)} files: {len(checks) - len(bad)} are as they were landed, {len(bad)} are not.")
    return ExitCode.FAILED if bad else ExitCode.OK


def _read(args: argparse.Namespace) -> Manifest:
    path = storage_path(args.path, args.storage_conn_id)
    try:
        return read_manifest(path)
    except (FileNotFoundError, IsADirectoryError) as error:
        fail(f"The manifest {args.path} cannot be read ({type(error).__name__}).", ExitCode.FAILED)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        fail(f"This is no whole manifest: {error}.", ExitCode.FAILED)
