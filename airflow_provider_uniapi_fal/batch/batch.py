"""A batch from its table to its manifest, for whoever runs it: the operator in Airflow, or a command line."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from airflow_provider_uniapi_fal.batch.accounting import (
    carried_over,
    count_row,
    differs,
    failure_of,
    manifest_row,
    shortfall,
)
from airflow_provider_uniapi_fal.batch.planning import OWED, Plan, plan
from airflow_provider_uniapi_fal.batch.requests import MAX_NAMED, Row, checked_rows, named, read_rows
from airflow_provider_uniapi_fal.batch.session import Session, SessionSettings
from airflow_provider_uniapi_fal.exceptions import FalError, FalResultExpired, error_of
from airflow_provider_uniapi_fal.landing.inputs import schema_of, unread
from airflow_provider_uniapi_fal.landing.manifest import (
    Manifest,
    ManifestRow,
    read_manifest,
    summary_path,
    write_manifest,
)
from airflow_provider_uniapi_fal.landing.names import DEFAULT_TEMPLATE, Names
from airflow_provider_uniapi_fal.ledger.journal import Journal, Owner, journal_folder
from airflow_provider_uniapi_fal.ledger.record import GONE
from airflow_provider_uniapi_fal.ledger.rows import Step, is_to_be_looked_for
from airflow_provider_uniapi_fal.protocol.dialects import dialect_named
from airflow_provider_uniapi_fal.protocol.errors import Failure, bad_input
from airflow_provider_uniapi_fal.triggers.batch import WatchSettings, still_running, waiting_to_land

if TYPE_CHECKING:
    from datetime import date

    from airflow.sdk import ObjectStoragePath

    from airflow_provider_uniapi_fal.hooks.fal import FalHook
    from airflow_provider_uniapi_fal.landing.files import LandedFile
    from airflow_provider_uniapi_fal.ledger.record import Seen
    from airflow_provider_uniapi_fal.ledger.rows import RowPolicy, RowState, Try
    from airflow_provider_uniapi_fal.protocol.job import JobResult

MANIFEST_NAME = "manifest.jsonl"

#: Jobs that were not found and are asked for at once, before a clear posts their rows again.
LOOKS_AT_ONCE = 8


@dataclass(frozen=True, kw_only=True)
class BatchSettings:
    """
    Where a batch's media go, and the policies that are not about a single row.

    :param destination: folder for the media
    :param manifest_path: path of the manifest; the journal lies beside it
    :param skip_existing: earlier manifests: rows whose key one of them has with media are not submitted
    :param template: names of the files, see :class:`~airflow_provider_uniapi_fal.landing.names.Names`
    :param date: what ``{date}`` stands for in it
    :param max_jobs: refuse a batch of more rows that are to be submitted
    :param with_arguments: put the arguments, prompts and all, into the manifest
    :param min_success_ratio: share of the rows that must be a success
    :param on_flagged: ``keep`` counts a flagged row as a success, ``fail`` does not
    :param schema: JSON Schema for the arguments of rows that name no model, in a form that
        :func:`~airflow_provider_uniapi_fal.landing.inputs.schema_of` takes
    """

    destination: ObjectStoragePath
    manifest_path: ObjectStoragePath
    skip_existing: Sequence[ObjectStoragePath] = ()
    template: str = DEFAULT_TEMPLATE
    date: date | None = None
    max_jobs: int | None = None
    with_arguments: bool = False
    min_success_ratio: float = 1.0
    on_flagged: str = "keep"
    schema: Any = None


@dataclass
class Batch:
    """
    A batch, as one try works on it.

    :param hook: the account that submits
    :param owner: whose batch it is
    :param this_try: which try this is
    :param say: takes each line for the log
    """

    hook: FalHook
    owner: Owner
    this_try: Try
    settings: BatchSettings
    policy: RowPolicy
    watch: WatchSettings
    work: SessionSettings
    say: Callable[[str], None]
    rows: list[Row] = field(default_factory=list)
    earlier: dict[str, ManifestRow] = field(default_factory=dict)
    session: Session | None = None
    stopped: Failure | None = None
    _seen: dict[str, Seen] = field(default_factory=dict)
    _files_of_others: list[LandedFile] = field(default_factory=list)

    @property
    def to_make(self) -> dict[str, Row]:
        """The rows that are not taken from an earlier manifest, by key."""
        return {row.key: row for row in self.rows if row.key not in self.earlier}

    @property
    def folder(self) -> ObjectStoragePath:
        """Where the journal lies."""
        return journal_folder(self.settings.manifest_path)

    def read(self, requests: object, *, conn_id: str | None, model: str | None, dialect: str) -> None:
        """
        Read and check the table, and the earlier manifests.

        :raises FalInputError: if anything in it is wrong, naming all of it; nothing was submitted by this try
        :raises FalProtocolError: if storage does not give it now; nothing was submitted by this try
        """
        try:
            self._read(requests, conn_id=conn_id, model=model, dialect=dialect)
        except FalError as error:
            raise error_of(self._with_the_fate_of_jobs(error.failure, self._states)) from error

    def _read(self, requests: object, *, conn_id: str | None, model: str | None, dialect: str) -> None:
        given = read_rows(requests, conn_id=conn_id)
        schema = self.settings.schema
        self.rows = checked_rows(
            given,
            self.hook,
            model=model,
            dialect=dialect,
            schema=None if schema is None else schema_of(schema),
            check_name=lambda row: self.names_of(row, None).check_ahead(),
            say=self.say,
        )
        remarks = Counter(
            remark
            for row in self.rows
            for remark in dialect_named(row.dialect).remarks(row.model, row.arguments)
        )
        for remark, rows in remarks.items():
            self.say(f"{remark} ({rows} rows)")
        self.earlier = _landed_before(self.settings.skip_existing)
        self._keep_what_is_this_batchs()
        self._look_at_changed_rows()
        count = len(self.to_make)
        if self.settings.max_jobs is not None and count > self.settings.max_jobs:
            raise error_of(
                bad_input(
                    f"requests: there are {count} rows to submit, and max_jobs={self.settings.max_jobs} allows fewer.",
                    "Nothing was submitted. Look at the table, or raise max_jobs.",
                )
            )

    def _keep_what_is_this_batchs(self) -> None:
        """Leave rows out of the earlier manifests that this batch has a job or media of: one may have grown since."""
        if not any(row.key in self.earlier for row in self.rows):
            return
        for key, state in Journal.reading(self.folder).rows.items():
            if state.step in OWED or state.step is Step.DELIVERED:
                found = self.earlier.pop(key, None)
                if found and (state.handle is None or found.request_id != state.handle.request_id):
                    self._files_of_others += found.files

    def _look_at_changed_rows(self) -> None:
        """Do with rows that ask for something else than what the earlier manifests have of them as the policy says."""
        changed = [row for row in self.rows if row.key in self.earlier]
        changed = [row for row in changed if differs(row, self.earlier[row.key])]
        if self.policy.on_changed_arguments == "resubmit":
            for row in changed:
                del self.earlier[row.key]
        elif self.policy.on_changed_arguments == "fail" and changed:
            problems = [
                f"row {row.key!r} asks for something else than what made its media" for row in changed
            ]
            raise error_of(
                bad_input(
                    f"skip_existing: {named(problems, self.say)}.",
                    "Nothing was submitted. Put these rows back as they were, or give them keys of their own.",
                )
            )
        else:
            self._warn(
                f"Row {row.key!r} asks for something else than what made its media in the earlier manifest: its line "
                "is carried over as it is; on_changed_arguments decides this."
                for row in changed
            )

    def _warn(self, lines: Iterable[str]) -> None:
        """Say some of many lines of one kind, and count the others."""
        told = list(lines)
        for line in told[:MAX_NAMED]:
            self.say(line)
        if len(told) > MAX_NAMED:
            self.say(f"There are {len(told) - MAX_NAMED} more rows of which this is to be said.")

    def _states(self) -> Mapping[str, RowState]:
        return Journal.reading(self.folder).rows

    def _with_the_fate_of_jobs(
        self, failure: Failure, read_states: Callable[[], Mapping[str, RowState]]
    ) -> Failure:
        """
        Return what keeps a try from beginning, with what it means for the jobs of the tries before it.

        A task reads its table again each time that it wakes: it may go wrong when all is paid for.
        """
        try:
            states = read_states().values()
            jobs = sum(state.posts > 0 for state in states)
            live = any(state.step in OWED for state in states)
        except Exception:  # noqa: BLE001 - the journal is not to be had: then nobody knows, and that is said
            jobs, live = -1, True
        if not jobs:
            return failure
        known = f"{jobs} rows were" if jobs > 0 else "Rows may have been"
        return replace(
            failure,
            billed="maybe",
            may_run=live,
            retry_does="takes up what was submitted, once this can be read and is right again.",
            advice=f"Nothing was submitted now. {known} submitted before: their jobs are not affected, and the journal "
            f"at {self.folder} keeps them.",
        )

    def names_of(self, row: Row, result: JobResult | None) -> Names:
        """Return how the files of a row are called."""
        return Names(
            key=row.key,
            template=self.settings.template,
            model=dialect_named(row.dialect).model_id(row.model),
            date=self.settings.date,
            seed=None if result is None else result.seed,
            request_id="" if result is None else result.handle.request_id,
        )

    def dry_run(self) -> dict[str, Any]:
        """Say what would be done, and do nothing; return the counts."""
        states = Journal.reading(self.folder).rows
        made = self._planned(states)
        models = Counter(row.model for row in made.post)
        counts = {
            "rows": len(self.rows),
            "would_submit": len(made.post),
            "would_watch": len(made.watch),
            "would_land": len(made.land),
            "in_earlier_manifests": len(self.rows) - len(self.to_make),
        }
        told = ", ".join(f"{count} of {model}" for model, count in sorted(models.items()))
        self.say(f"Dry run, nothing is submitted: {counts}. Of each model: {told or 'none'}.")
        return {"dry_run": True, **counts, "models": dict(models)}

    def open(self) -> Journal:
        """
        Open the journal, to post.

        :raises FalInputError: if it belongs to another run, or the table does not fit to it; nothing was submitted
        """
        self._refuse_a_lost_journal()
        journal = Journal.opened(self.folder, self.owner)
        self._planned(journal.rows)
        return journal

    def run(self, journal: Journal, *, linger: float | None) -> None:
        """
        Work until all has ended, or until there is nothing left to do but wait: jobs may still run after it.

        :param linger: see :meth:`~airflow_provider_uniapi_fal.batch.session.Session.run`
        """
        while True:
            made = self._planned(journal.rows)
            self._warn(made.warnings)
            self.say(
                f"{len(self.rows)} rows: {len(made.post)} to submit, {len(made.watch)} to watch, "
                f"{len(made.land)} to land, {len(self.rows) - len(self.to_make)} in earlier manifests."
            )
            running = asyncio.run(self._work(journal, made, linger))
            journal.refresh()
            # What a try that was taken for dead wrote down late is gone after, too.
            left = still_running(journal) or waiting_to_land(journal, self.this_try)
            # The last job of a stretch may have ended so late that the row that waited for its place was not posted.
            waits = self.session is not None and self.session.waits_for_room
            if running or not (left or waits):
                return

    def write_manifest(self, journal: Journal) -> dict[str, Any]:
        """
        Write the manifest.

        :return: ``{"manifest_path", "summary_path", "counts"}``
        :raises FalProtocolError: if another try has taken the batch over
        """
        journal.stop_if_superseded()
        path = self.settings.manifest_path
        manifest = Manifest(
            self._account(journal.rows),
            dag_id=self.owner.dag_id,
            run_id=self.owner.run_id,
            task_id=self.owner.task_id,
            map_index=self.owner.map_index,
            written_at=time.time(),
        )
        summary = write_manifest(manifest, path)
        return {
            "manifest_path": str(path),
            "summary_path": str(summary_path(path)),
            "counts": summary["counts"],
        }

    def count(self, journal: Journal) -> None:
        """Count for the metrics what this try has brought to an end, here or in the triggerer."""
        for state in journal.rows.values():
            if state.entry.try_number == self.this_try.number:
                count_row(state)

    def shortfall(self, journal: Journal) -> Failure | None:
        """Return the failure of the batch if it has too few successes."""
        found = (failure_of(journal.rows.get(key)) for key in self.to_make)
        return shortfall(
            self._account(journal.rows),
            [failure for failure in found if failure is not None],
            min_success_ratio=self.settings.min_success_ratio,
            on_flagged=self.settings.on_flagged,
            on_unknown_submit=self.policy.on_unknown_submit,
            stopped=self.stopped,
        )

    def _account(self, states: Mapping[str, RowState]) -> tuple[ManifestRow, ...]:
        return tuple(
            carried_over(row, self.earlier[row.key], with_arguments=self.settings.with_arguments)
            if row.key in self.earlier
            else manifest_row(row, states.get(row.key), with_arguments=self.settings.with_arguments)
            for row in self.rows
        )

    def _planned(self, states: Mapping[str, RowState]) -> Plan:
        self._look_for(states)
        made = plan(list(self.to_make.values()), states, self.this_try, self.policy, self._seen)
        if made.problems:
            listed = named(made.problems, self.say)
            wrong = bad_input(
                f"requests: the table does not fit to what was submitted: {listed}. Put these rows back as they were."
            )
            raise error_of(self._with_the_fate_of_jobs(wrong, lambda: states))
        return made

    def _look_for(self, states: Mapping[str, RowState]) -> None:
        """Ask once for each job that a clear would pay for again although it may run."""
        lost = [
            state
            for key, state in states.items()
            if key not in self._seen and is_to_be_looked_for(state, self.this_try)
        ]
        if not lost:
            return
        for hook in {self.hook.of(state.handle) for state in lost if state.handle is not None}:
            with suppress(Exception):  # who asks says what is wrong with it
                _ = hook.account  # read once, not in each thread
        with ThreadPoolExecutor(LOOKS_AT_ONCE) as pool:
            self._seen.update(pool.map(self._look, lost))

    def _look(self, state: RowState) -> tuple[str, Seen]:
        key = state.entry.key
        try:
            return key, None if state.handle is None else self.hook.of(state.handle).status(
                state.handle
            ).state
        except FalResultExpired:
            return key, GONE
        except Exception as error:  # noqa: BLE001 - its connection may be gone, which is no word of the gateway's
            self.say(f"Where the job of row {key!r} stands is not known: {error}")
            return key, None

    async def _work(self, journal: Journal, made: Plan, linger: float | None) -> int:
        self.session = Session(
            rows=self.to_make,
            plan=made,
            journal=journal,
            hook=self.hook,
            this_try=self.this_try,
            watch=self.watch,
            settings=self.work,
            destination=self.settings.destination,
            names_of=self.names_of,
            say=self.say,
            kept=[*self._files_of_others, *(file for row in self.earlier.values() for file in row.files)],
        )
        running = await self.session.run(linger=linger)
        self.stopped = self.session.stopped
        self.say(self.session.tally.line(time.monotonic()))
        return running

    def _refuse_a_lost_journal(self) -> None:
        """Refuse a manifest without its journal: nobody could tell what was already paid for."""
        if self.settings.manifest_path.exists() and not self.folder.exists():
            raise error_of(
                bad_input(
                    f"manifest_path: there is a manifest at {self.settings.manifest_path}, but not its journal.",
                    "Nothing was submitted. Give each run a manifest of its own, or take the old one away.",
                )
            )


def _landed_before(paths: Sequence[ObjectStoragePath]) -> dict[str, ManifestRow]:
    """Return the rows of earlier manifests that brought media, by key; a later manifest goes before."""
    found: dict[str, ManifestRow] = {}
    for path in paths:
        try:
            manifest = read_manifest(path)
        except Exception as error:
            why = f"{path} cannot be read as a manifest ({type(error).__name__}: {error})"
            raise unread("skip_existing:", why, error) from error
        found.update({row.key: row for row in manifest.rows if row.files and row.error is None})
    return found
