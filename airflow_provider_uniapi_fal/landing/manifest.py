"""
The manifest: the account of a landing or a batch, one line for each request, and a summary that proves it whole.

The rows are JSON Lines (``manifest.jsonl``), which pandas and DuckDB read in one line. The summary beside them
(``manifest.summary.json``) is written last and holds the rows' checksum: a manifest without a fitting summary was
never finished.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from importlib import resources
from typing import TYPE_CHECKING, Any

from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal.landing.files import LandedFile
from airflow_provider_uniapi_fal.landing.storage import json_text, put, put_bytes, sha256_of, spool
from airflow_provider_uniapi_fal.protocol.checking import check_fields

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.errors import Failure

MANIFEST_VERSION = 1

#: The last second of the year 9999: no calendar shows a later one.
LATEST = 253_402_300_799

#: Whole numbers that pandas and DuckDB read. Beyond them pandas reads no line of a file, and DuckDB rounds, so that
#: a seed from there is written as a text.
_TYPED = range(-(2**63), 2**64)

#: What became of a request; each row has exactly one.
OUTCOMES = (
    "succeeded",
    "flagged",
    "refused",
    "failed",
    "timed_out",
    "cancelled",
    "unknown",
    "missing",
)


@dataclass(frozen=True)
class RowError:
    """
    Why a row brought no media, or not all of them.

    :param kind: which of the twelve kinds of failure
    :param message: the whole message, with the fate of the job and of the money
    :param billed: ``no``, ``maybe`` or ``yes``
    :param may_run: whether a job may still be running
    :param error_type: the server's own word
    """

    kind: str
    message: str
    billed: str
    may_run: bool
    error_type: str | None = None

    @classmethod
    def of(cls, failure: Failure) -> RowError:
        """Return what the manifest says of a failure."""
        return cls(failure.kind.value, str(failure), failure.billed, failure.may_run, failure.error_type)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> RowError:
        """Read what a row says of it; fields of a later version are passed over."""
        return cls(**{name: data[name] for name in cls.__dataclass_fields__ if name in data})


@dataclass(frozen=True, slots=True)
class ManifestRow:
    """
    What became of one request.

    :param key: the user's name for it, unique in the manifest
    :param index: its place in the table of requests, from 0
    :param model: model id, or what it was submitted to in the dialect's words
    :param dialect: wire protocol
    :param fal_conn_id: connection that submitted it
    :param outcome: one of ``OUTCOMES``
    :param arguments_sha256: hash of the arguments as JSON with sorted keys; None where a landing does not know
        them
    :param arguments: the arguments themselves, if they were asked for
    :param metadata: what the table said of it besides
    :param request_id: the job, if there was one
    :param seed: the seed that the model says it has used
    :param error: what went wrong; None for a success
    :param submitted_at: seconds since the epoch, None if it never was
    :param seconds_queued: from submit to the first sight of it running
    :param seconds_running: the server's own figure, or else what was observed
    :param billable_units: what the server says was charged, as it wrote it
    :param flagged: a file in it was marked as unsafe
    :param posts: submits that were sent for it by what wrote the manifest; a landing sends none
    :param tries: Airflow's tries that worked on it
    :param files: its landed media
    """

    key: str
    index: int
    model: str
    dialect: str
    fal_conn_id: str
    outcome: str
    arguments_sha256: str | None
    arguments: Mapping[str, Any] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    request_id: str | None = None
    seed: int | None = None
    error: RowError | None = None
    submitted_at: float | None = None
    seconds_queued: float | None = None
    seconds_running: float | None = None
    billable_units: str | None = None
    flagged: bool = False
    posts: int = 0
    tries: int = 0
    files: tuple[LandedFile, ...] = ()

    def __post_init__(self) -> None:
        if self.outcome not in OUTCOMES:
            raise ValueError(f"outcome is one of {', '.join(OUTCOMES)}, not {self.outcome!r}")

    def check(self) -> None:
        """
        Check that it can be read again, with its error and its files.

        :raises ValueError: saying what is wrong with it
        """
        for part in (self, *self.files, *((self.error,) if self.error else ())):
            check_fields(part)
        if self.submitted_at is not None and not 0 <= self.submitted_at <= LATEST:
            raise ValueError(f"submitted_at is no time: {self.submitted_at!r}")

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        seed = self.seed if self.seed is None or self.seed in _TYPED else str(self.seed)
        return {
            "schema_version": MANIFEST_VERSION,
            **asdict(self),
            "seed": seed,
            "files": [f.to_json() for f in self.files],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> ManifestRow:
        """
        Read what :meth:`to_json` wrote; fields of a later version are passed over.

        :raises ValueError: if it is no row
        """
        try:
            known = {name: data[name] for name in cls.__dataclass_fields__ if name in data}
            error, seed = known.get("error"), known.get("seed")
            row = cls(
                **{
                    **known,
                    "seed": int(seed) if isinstance(seed, str) else seed,
                    "error": None if error is None else RowError.from_json(error),
                    "files": tuple(LandedFile.from_json(file) for file in known.get("files") or ()),
                }
            )
            row.check()
            return row
        except (TypeError, KeyError, ValueError) as error:
            raise ValueError(f"this is no row of a manifest: {error}") from error


@dataclass(frozen=True)
class Manifest:
    """
    The account of a landing or a batch.

    :param rows: one for each request, in the order of the table
    :param dag_id: where it was made; empty for the command line
    :param run_id: the same
    :param task_id: the same
    :param map_index: of a mapped task; else -1
    :param written_at: seconds since the epoch
    """

    rows: tuple[ManifestRow, ...]
    dag_id: str = ""
    run_id: str = ""
    task_id: str = ""
    map_index: int = -1
    written_at: float = 0.0

    @property
    def counts(self) -> dict[str, int]:
        """Requests asked for, and how many had each outcome: the outcomes add up to ``asked``."""
        outcomes = Counter(row.outcome for row in self.rows)
        return {"asked": len(self.rows), **{outcome: outcomes[outcome] for outcome in OUTCOMES}}


def summary_path(path: ObjectStoragePath) -> ObjectStoragePath:
    """Return where the summary of a manifest lies: ``manifest.summary.json`` beside ``manifest.jsonl``."""
    return path.parent / f"{path.stem}.summary.json"


def summary_of(manifest: Manifest, rows_sha256: str) -> dict[str, Any]:
    """Return the summary: whose manifest it is, the counts and totals, and the rows' checksum."""
    files = [file for row in manifest.rows for file in row.files]
    return {
        "schema_version": MANIFEST_VERSION,
        "dag_id": manifest.dag_id,
        "run_id": manifest.run_id,
        "task_id": manifest.task_id,
        "map_index": manifest.map_index,
        "written_at": manifest.written_at,
        "counts": manifest.counts,
        "posts": sum(row.posts for row in manifest.rows),
        "files": len(files),
        "bytes": sum(file.bytes for file in files),
        "seconds_queued": round(sum(row.seconds_queued or 0.0 for row in manifest.rows), 3),
        "seconds_running": round(sum(row.seconds_running or 0.0 for row in manifest.rows), 3),
        "rows_sha256": rows_sha256,
    }


def write_manifest(manifest: Manifest, path: ObjectStoragePath) -> dict[str, Any]:
    """
    Write rows and summary, each whole or not at all, and the summary last.

    :param manifest: what is written
    :param path: of the rows, ending in ``.jsonl``; the summary lies beside it
    :return: the summary
    :raises ValueError: if a field of a row is of the wrong type: nobody could read it again
    """
    with spool() as folder:
        lines, digest = folder / "rows", hashlib.sha256()
        with lines.open("wb") as writer:
            for row in manifest.rows:
                row.check()
                line = json_text(row.to_json()) + b"\n"
                digest.update(line)
                writer.write(line)
        put(lines, path)
    summary = summary_of(manifest, digest.hexdigest())
    put_bytes(json_text(summary, indent=1), summary_path(path))
    return summary


def read_manifest(path: ObjectStoragePath, summary: bytes | None = None) -> Manifest:
    """
    Read a manifest and prove it whole.

    :param path: of the rows
    :param summary: the bytes of its summary, if they were read before; None reads them from beside it
    :raises ValueError: if it is none, or rows and summary do not belong together
    :raises OSError: if it cannot be read
    """
    text = path.read_bytes()
    told = json.loads(summary_path(path).read_bytes() if summary is None else summary)
    if not isinstance(told, dict) or told.get("rows_sha256") != hashlib.sha256(text).hexdigest():
        raise ValueError(f"the manifest {path} and its summary do not belong together")
    rows = tuple(ManifestRow.from_json(json.loads(line)) for line in text.splitlines() if line.strip())
    manifest = Manifest(
        rows,
        **{name: told[name] for name in ("dag_id", "run_id", "task_id", "map_index", "written_at")},
    )
    check_fields(manifest)
    return manifest


@dataclass(frozen=True)
class FileCheck:
    """
    What became of one file since it was landed.

    :param key: of the request that it belongs to
    :param path: where it should be
    :param problem: what is wrong with it; None if it is there with the very bytes of the manifest
    """

    key: str
    path: str
    problem: str | None = None


def verify_files(manifest: Manifest, *, parallel: int = 8) -> Iterator[FileCheck]:
    """
    Read every file of a manifest again and compare its length and hash, several at once.

    :param manifest: as :func:`read_manifest` returns it
    :param parallel: files read at once
    :return: one check for each file, in the order of the manifest, as they are made
    """
    with ThreadPoolExecutor(parallel, thread_name_prefix="verifying") as threads:
        files = [(row.key, file) for row in manifest.rows for file in row.files]
        yield from threads.map(lambda pair: _checked(*pair), files)


def manifest_schema() -> dict[str, Any]:
    """
    Return the JSON Schema (2020-12) of a row; that of a summary is in it under ``$defs/summary``.

    The file is ``manifest.schema.json`` in this package.
    """
    text = resources.files(__package__).joinpath("manifest.schema.json").read_text(encoding="utf-8")
    schema: dict[str, Any] = json.loads(text)
    return schema


def _checked(key: str, file: LandedFile) -> FileCheck:
    try:
        size, sha256 = sha256_of(ObjectStoragePath(file.path))
    except FileNotFoundError:
        return FileCheck(key, file.path, "it is not there")
    except (OSError, ValueError, ImportError) as error:
        return FileCheck(key, file.path, f"it cannot be read ({type(error).__name__})")
    if size != file.bytes:
        return FileCheck(key, file.path, f"it has {size} bytes; {file.bytes} were landed")
    return FileCheck(
        key, file.path, None if sha256 == file.sha256 else "its bytes are not those that were landed"
    )
