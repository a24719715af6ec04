"""``airflow fal jobs``: what is live, or may be, and so may be billing."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pendulum
from airflow.models.dagrun import DagRun
from airflow.models.task_state_store import TaskStateStoreModel
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from airflow_provider_uniapi_fal.cli.jobs import storage_path
from airflow_provider_uniapi_fal.cli.journal import Journal
from airflow_provider_uniapi_fal.cli.terminal import ExitCode, progress, say, show_rows, verb
from airflow_provider_uniapi_fal.exceptions import FalError, FalResultExpired
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.ledger.journal import Journal as BatchJournal
from airflow_provider_uniapi_fal.ledger.journal import journal_folder
from airflow_provider_uniapi_fal.ledger.record import JobRecord, Phase
from airflow_provider_uniapi_fal.ledger.rows import Step, record_of
from airflow_provider_uniapi_fal.ledger.task_state import KEY
from airflow_provider_uniapi_fal.protocol.job import JobState

if TYPE_CHECKING:
    import argparse

    from airflow_provider_uniapi_fal.protocol.job import JobHandle

#: Statuses asked for at once.
PARALLEL = 8

#: XCom that every task pushes that is going to write a manifest.
MANIFEST_KEY = "manifest_path"

_SUCCEEDED = {Step.SUCCEEDED, Step.UNLANDED, Step.DELIVERED}

COLUMNS = (
    "dag_id",
    "run_id",
    "task_id",
    "map_index",
    "model",
    "request_id",
    "phase",
    "state",
    "may_bill",
    "written_at",
)


@dataclass(frozen=True)
class Found:
    """
    One submit, and what is known of its job.

    :param dag_id: where it was submitted; empty for the command line. So are ``run_id`` and ``task_id``
    :param record: what the ledger or the journal says; None if that cannot be read
    :param model: model id, where it is known
    :param state: what the gateway says: a state, ``gone``, ``no answer`` or ``not asked``
    """

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    written_at: float
    record: JobRecord | None
    model: str | None = None
    state: str = "not asked"

    @property
    def handle(self) -> JobHandle | None:
        """The job, if there is a record of one."""
        return None if self.record is None else self.record.handle

    @property
    def may_bill(self) -> str:
        """Whether it may be running or be billed anew: ``yes``, ``no`` or ``unknown``."""
        if self.state in (JobState.PENDING.value, JobState.RUNNING.value):
            return "yes"
        if self.record is None:
            return "unknown"
        failure = self.record.failure
        if failure is not None and not failure.may_run:
            return "no"
        if self.state in (JobState.SUCCEEDED.value, JobState.FAILED.value, JobState.CANCELLED.value):
            return "no"
        handed_on = self.record.phase in (Phase.DELIVERED, Phase.ENDED)
        return "no" if self.state == "gone" and handed_on else "unknown"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        handle = self.handle
        return {
            "dag_id": self.dag_id,
            "run_id": self.run_id,
            "task_id": self.task_id,
            "map_index": self.map_index,
            "model": self.model or (handle and handle.model),
            "request_id": handle and handle.request_id,
            "fal_conn_id": handle and handle.fal_conn_id,
            "phase": "unreadable" if self.record is None else self.record.phase.value,
            "state": self.state,
            "may_bill": self.may_bill,
            "submitted_at": handle and handle.submitted_at,
            "written_at": pendulum.from_timestamp(self.written_at).to_iso8601_string(),
            "handle": handle and handle.to_json(),
        }


@verb
def jobs(args: argparse.Namespace) -> ExitCode | None:
    """List the jobs that are live or may be."""
    since = pendulum.now("UTC") - timedelta(hours=args.hours)
    whole = True
    found: list[Found] = []
    try:
        found += in_airflow(since, dag_id=args.dag_id, run_id=args.run_id)
        for batch in batches_in_airflow(since, dag_id=args.dag_id, run_id=args.run_id):
            found += in_batch(batch)
    except SQLAlchemyError as error:
        say(
            f"Airflow's metadata database cannot be read ({type(error).__name__}): jobs of tasks are not listed."
        )
        whole = False
    if args.dag_id is None and args.run_id is None:
        found += in_journal(Journal(args.journal), since.timestamp())
        for path in args.manifests:
            found += in_batch(Batch(path))
    if not args.offline:
        found = asked(found)
    listed = found if args.all else [each for each in found if each.may_bill != "no"]
    show_rows([each.to_json() for each in listed], COLUMNS, args.output)
    live = sum(each.may_bill == "yes" for each in found)
    unknown = sum(each.may_bill == "unknown" for each in found)
    say(
        f"{len(found)} submits in {args.hours:g} hours: {live} live, {unknown} of which that cannot be ruled out."
    )
    whole = whole and all(each.record is not None for each in found)
    return ExitCode.OK if whole else ExitCode.FAILED


def in_airflow(
    since: pendulum.DateTime, *, dag_id: str | None = None, run_id: str | None = None
) -> Iterator[Found]:
    """
    Return what tasks have written into Airflow's task state store, run by run.

    A record that cannot be read is returned as such: it never means that there is no job.
    """
    rows = TaskStateStoreModel
    wanted = (
        select(rows)
        .join(DagRun, DagRun.id == rows.dag_run_id)
        .where(rows.key == KEY, rows.updated_at >= since)
        .order_by(DagRun.run_after, rows.dag_id, rows.run_id, rows.task_id, rows.map_index)
    )
    if dag_id is not None:
        wanted = wanted.where(rows.dag_id == dag_id)
    if run_id is not None:
        wanted = wanted.where(rows.run_id == run_id)
    with create_session() as session:
        for row in session.scalars(wanted):
            try:
                record = JobRecord.from_json(json.loads(row.value))
            except ValueError:
                record = None
            written = row.updated_at.timestamp()
            yield Found(row.dag_id, row.run_id, row.task_id, row.map_index, written, record)


@dataclass(frozen=True)
class Batch:
    """
    A batch, and where its manifest is or will be.

    :param dag_id: where it was submitted; empty for the command line. So are ``run_id`` and ``task_id``
    """

    manifest_path: str
    dag_id: str = ""
    run_id: str = ""
    task_id: str = ""
    map_index: int = -1


def batches_in_airflow(
    since: pendulum.DateTime, *, dag_id: str | None = None, run_id: str | None = None
) -> list[Batch]:
    """Return the batches of tasks, by the XCom that they push before they begin."""
    rows = XComModel
    wanted = (
        select(rows)
        .join(DagRun, DagRun.id == rows.dag_run_id)
        .where(rows.key == MANIFEST_KEY, rows.timestamp >= since)
        .order_by(DagRun.run_after, rows.dag_id, rows.run_id, rows.task_id, rows.map_index)
    )
    if dag_id is not None:
        wanted = wanted.where(rows.dag_id == dag_id)
    if run_id is not None:
        wanted = wanted.where(rows.run_id == run_id)
    found = []
    with create_session() as session:
        for row in session.scalars(wanted):
            value = XComModel.deserialize_value(row)
            if isinstance(value, str):
                found.append(Batch(value, row.dag_id, row.run_id, row.task_id, row.map_index))
    return found


def in_batch(batch: Batch) -> Iterator[Found]:
    """
    Return the rows of a batch by its journal; none if the manifest is that of a landing, which has no journal.

    A journal that cannot be read is returned as one record that cannot be.
    """

    def found(written_at: float, record: JobRecord | None, model: str | None, state: str) -> Found:
        return Found(
            batch.dag_id, batch.run_id, batch.task_id, batch.map_index, written_at, record, model, state
        )

    try:
        journal = BatchJournal.reading(journal_folder(storage_path(batch.manifest_path, None)))
    except Exception as error:  # noqa: BLE001 - each file system has errors of its own; one batch hides no other
        say(f"The journal of {batch.manifest_path} cannot be read: {error}")
        yield found(pendulum.now("UTC").timestamp(), None, None, "no answer")
        return
    for row in journal.rows.values():
        if row.step is not Step.NOT_TAKEN:
            state = JobState.SUCCEEDED.value if row.step in _SUCCEEDED else "not asked"
            yield found(row.entry.written_at, record_of(row), None, state)


def in_journal(journal: Journal, since: float) -> Iterator[Found]:
    """Return what the command line has submitted on this machine."""
    for entry in journal.entries():
        if entry.record.written_at >= since:
            # Delivered here means that the result was there; a task's may only have been handed on.
            ended = entry.record.phase is Phase.DELIVERED
            state = JobState.SUCCEEDED.value if ended else "not asked"
            yield Found("", "", "", -1, entry.record.written_at, entry.record, entry.model, state)


def asked(found: Sequence[Found]) -> list[Found]:
    """Return the same jobs with what the gateway says of those that may be live."""
    to_ask = {
        each.handle.request_id: each.handle
        for each in found
        if each.handle is not None and each.may_bill != "no"
    }
    states = states_of(to_ask.values())
    return [
        each if each.handle is None else replace(each, state=states.get(each.handle.request_id, each.state))
        for each in found
    ]


def states_of(handles: Iterable[JobHandle]) -> Mapping[str, str]:
    """Ask the gateway how each job stands; free. Where there is no answer, that is what is said."""
    asked_for = list(handles)
    hooks = {handle.fal_conn_id: FalHook(handle.fal_conn_id) for handle in asked_for}
    usable = {}
    for conn_id, hook in hooks.items():
        try:
            _ = hook.account
            usable[conn_id] = hook
        except Exception as error:  # noqa: BLE001 - a connection that is gone hides no jobs
            say(f"Jobs of connection {conn_id} cannot be asked about: {error}")
    with progress() as shown, ThreadPoolExecutor(PARALLEL) as pool:
        task = shown.add_task("Asking the gateway", total=len(asked_for))

        def ask(handle: JobHandle) -> tuple[str, str]:
            hook = usable.get(handle.fal_conn_id)
            state = "no answer" if hook is None else _state(hook, handle)
            shown.advance(task)
            return handle.request_id, state

        return dict(pool.map(ask, asked_for))


def _state(hook: FalHook, handle: JobHandle) -> str:
    try:
        return hook.status(handle).state.value
    except FalResultExpired:
        return "gone"
    except FalError:
        return "no answer"
