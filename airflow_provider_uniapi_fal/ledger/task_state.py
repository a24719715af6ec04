"""The ledger of one job in Airflow's task state store, which outlives retries and killed workers."""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from typing import Any, Protocol

from airflow_provider_uniapi_fal.exceptions import error_of
from airflow_provider_uniapi_fal.ledger.record import JobRecord, Phase
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, unknown_outcome

KEY = "uniapi_fal:job"

#: Where the task's batch is: ``{"manifest_path"}``. Its own journal, beside the manifest, is the ledger of its rows.
BATCH_KEY = "uniapi_fal:batch"

#: Longer than any retry is waited for, and than fal keeps a result.
RETENTION = timedelta(days=60)


class TaskStateStore(Protocol):
    """The part of Airflow's ``context["task_state_store"]`` that is used."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return a value or the default."""
        ...

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        """Write a value; it is durable when this returns."""
        ...

    def delete(self, key: str) -> None:
        """Remove a value."""
        ...


class TaskLedger:
    """
    The record of one task's job. It is scoped by DAG run, task and map index, and shared by all tries.

    :param store: ``context["task_state_store"]``
    """

    def __init__(self, store: TaskStateStore) -> None:
        self._store = store

    def read(self) -> JobRecord | None:
        """
        Return the record, or None if nothing was ever submitted.

        :raises FalSubmitOutcomeUnknown: if there is a record that cannot be read
        :raises Exception: whatever Airflow raises if its store cannot be reached; that is an error and never
            means that there is no record
        """
        data = self._store.get(KEY)
        if data is None:
            return None
        try:
            return JobRecord.from_json(data)
        except ValueError as error:
            raise error_of(
                unknown_outcome(f"the record of this task's submit cannot be read ({error})")
            ) from error

    def write(self, record: JobRecord) -> None:
        """
        Write the record; an intent is read again, because no submit must go out without it.

        What is written later rests on the answer to the write, which Airflow gives when the record is committed.
        Were it lost all the same, to find that out would not help: the next try would see the record before it
        in either case, an intent or a job to be looked at again.

        :raises FalProtocolError: if the store took an intent and does not have it; nothing was sent
        :raises Exception: whatever Airflow raises if its store did not take the record
        """
        data = record.to_json()
        self._store.set(KEY, data, retention=RETENTION)
        if record.phase is Phase.INTENT and self._store.get(KEY) != data:
            raise error_of(_not_kept())

    def intend(self, intent: JobRecord, before: JobRecord | None) -> None:
        """
        Write down that a submit is about to be posted; raises as :meth:`write` does.

        :param before: what is there. It is put back if the store does not take the intent, for the store may have
            taken it and only its answer be lost
        """
        try:
            self.write(intent)
        except Exception:
            with suppress(Exception):
                self.put_back(before)
            raise

    def put_back(self, before: JobRecord | None) -> None:
        """Leave what was there before an intent of which provably nothing came."""
        if before is None:
            self._store.delete(KEY)
        else:
            self._store.set(KEY, before.to_json(), retention=RETENTION)


def _not_kept() -> Failure:
    return Failure(
        FailureKind.PROTOCOL,
        what="Airflow's task state store did not keep the intent. Nothing was sent.",
        retry_does="submits, if the store keeps the intent then.",
        advice="Look at [workers] state_store_backend and [state_store] backend in Airflow's configuration.",
    )


def keep_batch(store: TaskStateStore, manifest_path: str) -> None:
    """
    Let it be known where the task's batch is, before anything is posted.

    XCom says so, too, but a new try begins without it, and may fail before it has pushed anything.
    """
    store.set(BATCH_KEY, {"manifest_path": manifest_path}, retention=RETENTION)
