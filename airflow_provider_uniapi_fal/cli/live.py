"""``airflow fal jobs``: what is live, or may be, and so may be billing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pendulum
from airflow.configuration import conf
from airflow.models.dag import DagModel
from airflow.models.dagrun import DagRun
from airflow.models.task_state_store import TaskStateStoreModel
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from airflow_provider_uniapi_fal.cli.jobs import storage_path
from airflow_provider_uniapi_fal.cli.terminal import ExitCode, progress, refuse, say, show_rows, verb
from airflow_provider_uniapi_fal.exceptions import FalError, FalResultExpired
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.ledger.command_line import CommandLineJournal
from airflow_provider_uniapi_fal.ledger.journal import Journal, journal_folder
from airflow_provider_uniapi_fal.ledger.record import JobRecord, Phase
from airflow_provider_uniapi_fal.ledger.rows import Step, record_of
from airflow_provider_uniapi_fal.ledger.task_state import BATCH_KEY, KEY
from airflow_provider_uniapi_fal.protocol.dialects import DIALECTS
from airflow_provider_uniapi_fal.protocol.job import JobState
from airflow_provider_uniapi_fal.reporting import MANIFEST_KEY

if TYPE_CHECKING:
    import argparse

    from sqlalchemy.orm import Session

    from airflow_provider_uniapi_fal.protocol.job import JobHandle

#: Statuses asked for at once.
PARALLEL = 8

_SUCCEEDED = {Step.SUCCEEDED, Step.UNLANDED, Step.DELIVERED}

COLUMNS = (
    "dag_id",
    "run_id",
    "task_id",
    "map_index",
    "key",
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
    :param manifest_path: the manifest of the batch that it belongs to, and ``key`` its row there
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
    manifest_path: str | None = None
    key: str | None = None

    @property
    def whose(self) -> str:
        """Where it comes from, for a reader."""
        if self.dag_id:
            return f"DAG {self.dag_id}, run {self.run_id}"
        return "Command line" if self.manifest_path is None else f"Batch {self.manifest_path}"

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
        # That a gateway does not know a job is no proof: whoever gave a wait up because of it said that it may run.
        handed_on = self.record.phase is Phase.DELIVERED
        return "no" if self.state == "gone" and handed_on else "unknown"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        handle = self.handle
        return {
            "dag_id": self.dag_id,
            "run_id": self.run_id,
            "task_id": self.task_id,
            "map_index": self.map_index,
            "manifest_path": self.manifest_path,
            "key": self.key,
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

    def in_a_table(self) -> dict[str, Any]:
        """Return it for a reader, who is to see where it comes from if not from a DAG."""
        row = self.to_json()
        if not self.dag_id:
            row |= {"dag_id": "(command line)", "run_id": self.manifest_path, "task_id": None}
        return {**row, "map_index": None if self.map_index < 0 else self.map_index}


@verb
def jobs(args: argparse.Namespace) -> ExitCode | None:
    """List the jobs that are live or may be."""
    since = pendulum.now("UTC") - timedelta(hours=args.hours)
    unseen = list(_blind_spots())
    found: list[Found] = []
    batches: list[FoundBatch] = []
    try:
        with create_session() as session:
            _check_known(session, args.dag_id, args.run_id)
            found += in_airflow(session, since, dag_id=args.dag_id, run_id=args.run_id)
            batches += batches_in_airflow(session, since, dag_id=args.dag_id, run_id=args.run_id)
    except SQLAlchemyError as error:
        unseen.append(
            f"Airflow's metadata database cannot be read ({type(error).__name__}): jobs of tasks are not listed."
        )
    if args.dag_id is None and args.run_id is None:
        journal = CommandLineJournal(args.journal)
        batches += [
            FoundBatch(each.batch) for each in journal.batches() if each.written_at >= since.timestamp()
        ]
        batches += [FoundBatch(str(storage_path(path, None))) for path in args.manifests]
        found += in_journal(journal, since.timestamp())
    for batch in _once_each(batches):
        found += in_batch(batch)
    if not args.offline:
        found = asked(found)
    by_place = grouped(found)
    listed = [each for group in by_place.values() for each in group if args.all or each.may_bill != "no"]
    show_rows(
        [each.to_json() if args.output == "json" else each.in_a_table() for each in listed],
        COLUMNS,
        args.output,
    )
    for line in (*told_of(by_place), *unseen):
        say(line)
    live = sum(each.may_bill == "yes" for each in found)
    unknown = sum(each.may_bill == "unknown" for each in found)
    say(
        f"{len(found)} submits in {args.hours:g} hours: {live} live, {unknown} of which that cannot be ruled out."
    )
    whole = not unseen and all(each.record is not None for each in found)
    return ExitCode.OK if whole else ExitCode.FAILED


def grouped(found: Iterable[Found]) -> dict[str, list[Found]]:
    """Return the submits by where they come from: runs of DAGs, the command line, and batches of the command line."""
    groups: dict[str, list[Found]] = {}
    for each in sorted(found, key=lambda each: not each.dag_id):
        groups.setdefault(each.whose, []).append(each)
    return groups


def told_of(groups: Mapping[str, Sequence[Found]]) -> Iterator[str]:
    """Say of each run and each batch that has any how many jobs are live or may be."""
    for whose, group in groups.items():
        count = Counter(each.may_bill for each in group)
        if count["yes"] or count["unknown"]:
            yield f"{whose}: {count['yes']} live, {count['unknown']} of which that cannot be ruled out."


def _blind_spots() -> Iterator[str]:
    """Say what the settings of this Airflow keep from being seen."""
    if conf.getboolean("state_store", "clear_on_success", fallback=False):
        yield (
            "[state_store] clear_on_success is on: Airflow forgets what a task has submitted once the task has "
            "succeeded, so that jobs of FalSubmitOperator whose results are still waited for are not listed."
        )
    if not conf.get("state_store", "backend", fallback="").endswith(".MetastoreBackend"):
        yield (
            "[state_store] backend keeps what tasks have submitted outside of Airflow's database, where this command "
            "does not read it: jobs of tasks are not listed, batches as far as XCom names them."
        )
    if conf.get("workers", "state_store_backend", fallback=""):
        yield (
            "[workers] state_store_backend keeps what tasks have submitted outside of Airflow's database, where this "
            "command does not read it: such jobs are listed as unreadable."
        )


def _check_known(session: Session, dag_id: str | None, run_id: str | None) -> None:
    """
    Refuse a DAG or a run that Airflow does not know: of a misspelt one, no jobs would read as "nothing is billing".

    :raises FalInputError: naming it
    """
    if run_id is not None:
        of_dag = () if dag_id is None else (DagRun.dag_id == dag_id,)
        if session.scalar(select(DagRun.id).where(DagRun.run_id == run_id, *of_dag).limit(1)) is None:
            refuse(f"--run-id: Airflow knows no run {run_id!r}{f' of DAG {dag_id!r}' if dag_id else ''}.")
    elif dag_id is not None and session.get(DagModel, dag_id) is None:
        refuse(f"--dag-id: Airflow knows no DAG {dag_id!r}.")


def in_airflow(
    session: Session, since: pendulum.DateTime, *, dag_id: str | None = None, run_id: str | None = None
) -> Iterator[Found]:
    """
    Return what tasks have written into Airflow's task state store, run by run.

    A record that cannot be read is returned as such: it never means that there is no job.
    """
    for row in _of_runs(session, TaskStateStoreModel, KEY, since, dag_id, run_id):
        try:
            record = JobRecord.from_json(json.loads(row.value))
        except ValueError:
            record = None
        written = row.updated_at.timestamp()
        state = "not asked" if record is None else _known(record)
        yield Found(row.dag_id, row.run_id, row.task_id, row.map_index, written, record, state=state)


def _known(record: JobRecord) -> str:
    """Return the state of a job as far as it follows from its record."""
    dialect = None if record.handle is None else DIALECTS.get(record.handle.dialect)
    # There is nobody to ask: its request id came with the result.
    return JobState.SUCCEEDED.value if dialect is not None and dialect.answers_at_once else "not asked"


@dataclass(frozen=True)
class FoundBatch:
    """
    A batch, and where its manifest is or will be.

    :param manifest_path: None if what a task has left of it cannot be read
    :param dag_id: where it was submitted; empty for the command line. So are ``run_id`` and ``task_id``
    :param certain: it is one; else it may be the manifest of a landing, which has no journal
    """

    manifest_path: str | None
    dag_id: str = ""
    run_id: str = ""
    task_id: str = ""
    map_index: int = -1
    certain: bool = True


def batches_in_airflow(
    session: Session, since: pendulum.DateTime, *, dag_id: str | None = None, run_id: str | None = None
) -> Iterator[FoundBatch]:
    """
    Return the batches of tasks, by what they say of themselves before they post.

    That is in the task state store, which lasts over retries, and in XCom, which lasts over a clear until the next
    try begins.
    """
    for row in _of_runs(session, TaskStateStoreModel, BATCH_KEY, since, dag_id, run_id):
        try:
            place = str(json.loads(row.value)["manifest_path"])
        except (ValueError, KeyError, TypeError):
            place = None
        yield FoundBatch(place, row.dag_id, row.run_id, row.task_id, row.map_index)
    for row in _of_runs(session, XComModel, MANIFEST_KEY, since, dag_id, run_id):
        value = XComModel.deserialize_value(row)
        if isinstance(value, str):
            yield FoundBatch(value, row.dag_id, row.run_id, row.task_id, row.map_index, certain=False)


def _once_each(batches: Iterable[FoundBatch]) -> Iterable[FoundBatch]:
    """Return each batch once: tasks that read its manifest may name it after the one that it is of."""
    first: dict[object, FoundBatch] = {}
    for batch in batches:
        first.setdefault(batch.manifest_path or batch, batch)
    return first.values()


def _of_runs(
    session: Session,
    rows: type[TaskStateStoreModel] | type[XComModel],
    key: str,
    since: pendulum.DateTime,
    dag_id: str | None,
    run_id: str | None,
) -> Iterable[Any]:
    """Return what tasks have left under a key since then, run by run."""
    at = rows.updated_at if rows is TaskStateStoreModel else rows.timestamp
    wanted = (
        select(rows)
        .join(DagRun, DagRun.id == rows.dag_run_id)
        .where(rows.key == key, at >= since)
        .order_by(DagRun.run_after, rows.dag_id, rows.run_id, at, rows.task_id, rows.map_index)
    )
    if dag_id is not None:
        wanted = wanted.where(rows.dag_id == dag_id)
    if run_id is not None:
        wanted = wanted.where(rows.run_id == run_id)
    return session.scalars(wanted)


def in_batch(batch: FoundBatch) -> Iterator[Found]:
    """
    Return the rows of a batch by its journal.

    A journal that cannot be read is returned as one record that cannot be.
    """

    def found(written_at: float, record: JobRecord | None, state: str, key: str | None = None) -> Found:
        return Found(
            dag_id=batch.dag_id,
            run_id=batch.run_id,
            task_id=batch.task_id,
            map_index=batch.map_index,
            written_at=written_at,
            record=record,
            state=state,
            manifest_path=batch.manifest_path,
            key=key,
        )

    try:
        if batch.manifest_path is None:
            raise ValueError("where it is cannot be read")
        folder = journal_folder(storage_path(batch.manifest_path, None))
        if batch.certain and not folder.exists():
            raise ValueError("it was deleted, or lies on another machine's disk")
        journal = Journal.reading(folder)
    except Exception as error:  # noqa: BLE001 - each file system has errors of its own; one batch hides no other
        say(f"The journal of {batch.manifest_path or f'a batch of {batch.task_id}'} cannot be read: {error}")
        yield found(pendulum.now("UTC").timestamp(), None, "no answer")
        return
    for row in journal.rows.values():
        if row.step is not Step.NOT_TAKEN:
            state = JobState.SUCCEEDED.value if row.step in _SUCCEEDED else "not asked"
            yield found(row.entry.written_at, record_of(row), state, row.entry.key)


def in_journal(journal: CommandLineJournal, since: float) -> Iterator[Found]:
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
