"""
The command line's journal: what it submitted, on this machine.

A file of JSON lines. Most are each one state of one submit, the last of which holds: an intent before the post, the
handle after it, how it ended. The others say where batches are, which have journals of their own. It holds no prompt
and no input, only their fingerprint.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
import uuid
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.configuration import AIRFLOW_HOME

from airflow_provider_uniapi_fal.ledger.record import JobRecord, Phase, fingerprint
from airflow_provider_uniapi_fal.protocol.errors import FailureKind, unknown_outcome

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from airflow_provider_uniapi_fal.protocol.errors import Failure
    from airflow_provider_uniapi_fal.protocol.job import JobHandle


class JournalError(Exception):
    """The journal cannot be read or written, which never means that there is nothing in it."""


@dataclass(frozen=True)
class SubmitEntry:
    """
    One submit of the command line's.

    :param id: its own name, from before there is a request id
    :param model: model id
    :param fal_conn_id: connection that it was submitted with
    :param record: how far it has come
    """

    id: str
    model: str
    fal_conn_id: str
    record: JobRecord

    @classmethod
    def intent(
        cls, model: str, arguments: Mapping[str, Any], fal_conn_id: str, dialect: str = "fal"
    ) -> SubmitEntry:
        """Return the entry for a submit that is about to be posted."""
        asked = fingerprint(model, arguments, fal_conn_id, dialect=dialect)
        record = JobRecord(Phase.INTENT, asked, 0, time.time())
        return cls(uuid.uuid4().hex, model, fal_conn_id, record)

    def submitted(self, handle: JobHandle) -> SubmitEntry:
        """Return the entry once its job has an id."""
        return self._in(Phase.SUBMITTED, handle=handle)

    def delivered(self) -> SubmitEntry:
        """Return the entry once its result has been printed or landed."""
        return self._in(Phase.DELIVERED, handle=self.record.handle)

    def ended(self, failure: Failure) -> SubmitEntry:
        """Return the entry once its submit was refused or its job has ended in a failure."""
        return self._in(Phase.ENDED, handle=self.record.handle, failure=failure)

    def submitted_again(self) -> SubmitEntry:
        """Return the entry once the user has said to submit the same input again, whatever came of this submit."""
        unknown = unknown_outcome("submitted again, as --on-unknown-submit=resubmit said")
        known = self.record.failure
        return self.ended(unknown if known is None else replace(unknown, may_run=known.may_run))

    @property
    def is_open(self) -> bool:
        """
        Whether the submit may have been billed without a job that could be looked at, and so must not be repeated.

        One whose outcome is known to be unknown is not: that is how one ends that was submitted again.
        """
        failure = self.record.failure
        if self.record.handle is not None:
            return False
        return failure is None or (
            failure.billed != "no" and failure.kind is not FailureKind.SUBMIT_OUTCOME_UNKNOWN
        )

    def _in(self, phase: Phase, **fields: Any) -> SubmitEntry:
        return replace(self, record=JobRecord(phase, self.record.fingerprint, 0, time.time(), **fields))


@dataclass(frozen=True)
class BegunBatch:
    """
    A batch that the command line has begun, or has gone on with.

    :param batch: path of its manifest; its own journal lies beside that
    :param written_at: seconds since the epoch
    """

    batch: str
    written_at: float

    def __post_init__(self) -> None:
        if not isinstance(self.batch, str) or not isinstance(self.written_at, (int, float)):
            raise TypeError("a batch has a path and a time")


class CommandLineJournal:
    """
    The file.

    :param path: where it is; None for its usual place in Airflow's home
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = Path(path) if path else Path(AIRFLOW_HOME, "uniapi_fal", "jobs.jsonl")

    def write(self, entry: SubmitEntry) -> None:
        """
        Add a state; it is on the disk when this returns.

        :raises JournalError: if it cannot be written; a post must not go out then
        """
        self._append({**vars(entry), "record": entry.record.to_json()})

    def write_batch(self, manifest_path: str) -> None:
        """
        Add where a batch is; it is on the disk when this returns.

        :raises JournalError: if it cannot be written; nothing of the batch must be posted then
        """
        self._append(vars(BegunBatch(manifest_path, time.time())))

    def _append(self, data: Mapping[str, Any]) -> None:
        line = json.dumps(data) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                _drop_torn_end(file.fileno())
                file.write(line.encode())
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise JournalError(f"The journal {self.path} cannot be written ({error.strerror}).") from error

    def entries(self) -> list[SubmitEntry]:
        """
        Return the last state of each submit, oldest first.

        :raises JournalError: if anything in the journal cannot be read
        """
        found = {each.id: each for each in self._lines() if isinstance(each, SubmitEntry)}
        return list(found.values())

    def batches(self) -> list[BegunBatch]:
        """
        Return each batch, with the time at which it was last gone on with.

        :raises JournalError: if anything in the journal cannot be read
        """
        found = {each.batch: each for each in self._lines() if isinstance(each, BegunBatch)}
        return list(found.values())

    def _lines(self) -> Iterator[SubmitEntry | BegunBatch]:
        try:
            text = self.path.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise JournalError(f"The journal {self.path} cannot be read ({error.strerror}).") from error
        # A last line without its end was never acknowledged: nothing was posted on its strength.
        for number, line in enumerate(text.split(b"\n")[:-1], 1):
            try:
                yield _read(json.loads(line))
            except (ValueError, TypeError, KeyError) as error:
                why = f"Line {number} of the journal {self.path} cannot be read ({error})."
                raise JournalError(f"{why} Mend that line, or name another file with --journal.") from error

    def entry_of(self, request_id: str) -> SubmitEntry | None:
        """Return the submit that brought a request id, if it is one of this journal's."""
        for entry in self.entries():
            if entry.record.handle is not None and entry.record.handle.request_id == request_id:
                return entry
        return None


def _read(data: Any) -> SubmitEntry | BegunBatch:
    if "batch" in data:
        return BegunBatch(**data)
    return SubmitEntry(**{**data, "record": JobRecord.from_json(data["record"])})


def _drop_torn_end(descriptor: int) -> None:
    """Cut off what a killed writer left of a line."""
    length = os.fstat(descriptor).st_size
    end = length
    while end and os.pread(descriptor, 1, end - 1) != b"\n":
        end -= 1
    if end != length:
        os.ftruncate(descriptor, end)
