"""The operator for a whole batch: many jobs in one task."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal import metrics
from airflow_provider_uniapi_fal.batch.batch import MANIFEST_NAME, Batch, BatchSettings
from airflow_provider_uniapi_fal.batch.session import SessionSettings, files_of
from airflow_provider_uniapi_fal.exceptions import error_of
from airflow_provider_uniapi_fal.hooks.fal import DEFAULT_CONN_ID, FalHook
from airflow_provider_uniapi_fal.hooks.task_states import cancel_if_killed, marked_by_user
from airflow_provider_uniapi_fal.landing import lineage
from airflow_provider_uniapi_fal.landing.arguments import check_name_template
from airflow_provider_uniapi_fal.landing.media import PARALLEL, Limits
from airflow_provider_uniapi_fal.landing.names import DEFAULT_TEMPLATE
from airflow_provider_uniapi_fal.ledger.journal import Journal, Owner
from airflow_provider_uniapi_fal.ledger.record import ON_CHANGED_ARGUMENTS, ON_UNKNOWN_SUBMIT
from airflow_provider_uniapi_fal.ledger.rows import RowPolicy, Try
from airflow_provider_uniapi_fal.ledger.task_state import keep_batch
from airflow_provider_uniapi_fal.links.fal import MANIFEST_LINKS, push_links
from airflow_provider_uniapi_fal.mapping import CheckedWhenMapped
from airflow_provider_uniapi_fal.protocol.arguments import (
    at_least_one,
    both_clocks,
    one_of,
    seconds,
    seconds_or_none,
)
from airflow_provider_uniapi_fal.protocol.dialects import DIALECTS
from airflow_provider_uniapi_fal.protocol.errors import bad_input
from airflow_provider_uniapi_fal.protocol.streaming import WAYS, WatchBy
from airflow_provider_uniapi_fal.reporting import MANIFEST_KEY, failure_in_xcom, tell_assets
from airflow_provider_uniapi_fal.triggers.batch import (
    FalBatchTrigger,
    LandSettings,
    WatchSettings,
    began_of,
    cancel_all,
    learn_from_event,
    still_running,
)
from airflow_provider_uniapi_fal.triggers.deferring import DeferringOperator, is_deferrable
from airflow_provider_uniapi_fal.triggers.fal import BACKSTOP_SECONDS, RACE_SECONDS

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

    from airflow_provider_uniapi_fal.protocol.errors import Failure

#: Seconds that a killed task may spend on finding out whether a user has killed it, and on cancelling its jobs.
#: Airflow allows five.
ASK_SECONDS = 2.0
CANCEL_SECONDS = 2.0

ON_FLAGGED = ("keep", "fail")
ON_CLEAR = ("missing", "all")

#: Seconds before the expected end of the last job at which a worker is called to land, if it watches for so long.
LAND_AHEAD_SECONDS = 5.0

#: Where to give the destination; for messages.
_PLACE = "a path in storage is needed, such as s3://bucket/{{ ds }}"


class FalBatchOperator(CheckedWhenMapped, DeferringOperator):
    """
    Submit many jobs from one task, wait for them, land their media and write a manifest.

    **The money.** Before each wave of at most 50 posts the journal beside the manifest takes down which rows are
    going to be posted, and after it what came of them. Whatever ends a try, the next one re-attaches to the jobs
    that run, lands what has finished, and posts only what never was, or ended unbilled for a reason that may
    pass. A row whose submit has an unknown outcome is never posted again by itself; of a killed worker that is
    one wave at most. The journal belongs to this task in this DAG run: another run is refused.

    :param requests: the rows: a list of mappings, an XCom of one, or the path of a file in storage that ends in
        ``.jsonl``, ``.csv`` or ``.parquet`` (templated). A row has ``arguments``, and may have ``key`` (a unique
        plain file name; default: its place, from 0), ``model`` and ``dialect``; what else is in it travels to the
        manifest as metadata. In CSV and Parquet, columns are arguments, but for those and ``metadata.<name>``,
        unless there is a column ``arguments``; a column ``<name>:json`` is read as JSON
    :param destination: folder in storage for the media (templated; default: the manifest's)
    :param manifest_path: path of the manifest (templated; default: ``manifest.jsonl`` in the destination). One of
        the two is needed, and each run needs its own
    :param model: model id of rows that name none (templated)
    :param dialect: wire protocol of rows that name none; default ``fal``
    :param arguments_schema: JSON Schema that the arguments of rows which name no model must fit before anything is
        paid, in one of the forms that ``FalSubmitOperator`` takes (templated; default: none)
    :param fal_conn_id: Airflow connection of type ``uniapi_fal`` (templated; default ``fal_default``)
    :param storage_conn_id: Airflow connection of the storage (templated; default: none)
    :param skip_existing: path of an earlier manifest, or a list of them: rows whose key it has with media are not
        posted, and their lines are carried over (templated)
    :param name_template: names of the files, such as ``{date}/{key}`` (templated; default ``{key}``); see
        :class:`~airflow_provider_uniapi_fal.landing.names.Names`
    :param max_jobs: refuse a table with more rows to submit; default: no limit
    :param dry_run: check everything, say what would be submitted, and submit nothing; default False
    :param max_in_flight: submits under way at once, default 10
    :param rate_limit: submits a second; default: no limit. When the gateway answers one submit with 429, all wait
    :param max_unfinished: jobs that have not ended, at most; default: no limit, as the queue has none
    :param land_every: results after which a worker is called to land them, default 100
    :param land_after: seconds since the first unlanded result after which one is called, default 60. One is called
        as well once results are ready and, by all experience, the last job will end within ``defer_after``, five
        seconds at most
    :param parallel: media files fetched at once, default 8
    :param max_bytes: a longer media file is refused; default 2 GiB
    :param include_arguments: put the arguments, prompts and all, into the manifest; default False
    :param min_success_ratio: share of rows, from 0 to 1, that must be a success; default 1.0. The task fails below
        it, after everything has been landed and the manifest written
    :param fail_fast: post nothing more once a row has failed; default False. What runs by then is paid for: it is
        waited for and landed, and rows that were never posted are ``missing``. A retry posts them if it can mend
        the failed row; a clear does in any case
    :param on_flagged: ``keep`` (default) counts a row with flagged media as a success, ``fail`` does not; the media
        are landed either way
    :param on_unknown_submit: what the next try does about a submit of unknown outcome: ``fail`` (default) leaves it,
        ``resubmit`` may pay twice
    :param on_changed_arguments: what a try does about a row of which a previous try, or an earlier manifest in
        ``skip_existing``, has something else than it asks for: ``reattach`` (default) keeps that, with a warning,
        ``fail`` refuses, ``resubmit`` pays for both
    :param on_clear: what a clear makes: ``missing`` (default) rows without success only, ``all`` every row again
    :param deferrable: True (default) waits in the triggerer without a worker; False waits in the worker; None asks
        Airflow's ``[operators] default_deferrable``
    :param poke_interval: seconds between looks at a job; None (default) is adaptive
    :param watch: how to learn that a job has ended: ``poll`` (default) asks for its status; ``stream`` follows fal's
        status stream, and falls back to polls where there is none; ``auto`` lets one job find out whether the gateway
        streams. At most 400 jobs are followed at once, each over a connection of its own; the others are polled
    :param queue_timeout: seconds in which each job must have been seen running; None (default) for no limit
    :param timeout: seconds until the wait for a job fails, default one day. Both clocks count from the submit, or
        anew from the begin of a later try
    :param cancel_on_timeout: ask the gateway to cancel a job whose time is over; default True
    :param cancel_on_kill: ask the gateway to cancel all jobs when a user marks the task failed or successful while it
        runs or waits; default True. A clear cancels nothing: the next try takes up what runs
    :param defer_after: seconds to watch from the worker before deferring, default 5
    :return: ``{"manifest_path", "summary_path", "counts"}``; ``manifest_path`` is pushed to XCom as soon as the
        task begins, too, and both are the extra of the asset events of its outlets
    :raises FalInputError: rows or settings are wrong, naming all of them; nothing was posted
    :raises FalError: too few rows are a success. A retry follows only where it may help a row
    """

    template_fields: Sequence[str] = (
        "requests",
        "destination",
        "manifest_path",
        "model",
        "arguments_schema",
        "fal_conn_id",
        "storage_conn_id",
        "skip_existing",
        "name_template",
    )
    template_fields_renderers = {"requests": "json"}  # noqa: RUF012 - Airflow's own form
    operator_extra_links = MANIFEST_LINKS
    ui_color = "#ffe4e0"

    def __init__(
        self,
        *,
        requests: Sequence[Mapping[str, Any]] | str | XComArg,
        destination: str | XComArg | None = None,
        manifest_path: str | XComArg | None = None,
        model: str | XComArg | None = None,
        dialect: str = "fal",
        arguments_schema: Mapping[str, Any] | str | None = None,
        fal_conn_id: str = DEFAULT_CONN_ID,
        storage_conn_id: str | None = None,
        skip_existing: str | Sequence[str] | XComArg | None = None,
        name_template: str = DEFAULT_TEMPLATE,
        max_jobs: int | None = None,
        dry_run: bool = False,
        max_in_flight: int = 10,
        rate_limit: float | None = None,
        max_unfinished: int | None = None,
        land_every: int = 100,
        land_after: timedelta | float = 60.0,
        parallel: int = PARALLEL,
        max_bytes: int = Limits.max_bytes,
        include_arguments: bool = False,
        min_success_ratio: float = 1.0,
        fail_fast: bool = False,
        on_flagged: str = "keep",
        on_unknown_submit: str = "fail",
        on_changed_arguments: str = "reattach",
        on_clear: str = "missing",
        deferrable: bool | None = True,
        poke_interval: timedelta | float | None = None,
        watch: WatchBy = "poll",
        queue_timeout: timedelta | float | None = None,
        timeout: timedelta | float = 86400.0,
        cancel_on_timeout: bool = True,
        cancel_on_kill: bool = True,
        defer_after: timedelta | float = 5.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value, words in (
            ("dialect", dialect, tuple(DIALECTS)),
            ("on_flagged", on_flagged, ON_FLAGGED),
            ("on_unknown_submit", on_unknown_submit, ON_UNKNOWN_SUBMIT),
            ("on_changed_arguments", on_changed_arguments, ON_CHANGED_ARGUMENTS),
            ("on_clear", on_clear, ON_CLEAR),
        ):
            one_of(name, value, words)
        for name, count in (
            ("max_in_flight", max_in_flight),
            ("land_every", land_every),
            ("parallel", parallel),
            ("max_bytes", max_bytes),
            *((name, n) for name, n in (("max_unfinished", max_unfinished),) if n is not None),
            *((name, n) for name, n in (("max_jobs", max_jobs),) if n is not None),
        ):
            at_least_one(name, count)
        if isinstance(min_success_ratio, bool) or not 0 <= min_success_ratio <= 1:
            raise ValueError(f"min_success_ratio must be from 0 to 1, not {min_success_ratio!r}")
        if rate_limit is not None and (isinstance(rate_limit, bool) or not 0 < rate_limit < 1e6):
            raise ValueError(f"rate_limit must be more than 0 submits a second, not {rate_limit!r}")
        if destination is None and manifest_path is None:
            raise ValueError(
                "destination or manifest_path is needed: results stay at the gateway for minutes only"
            )
        # Templates and XComs are values by the time that execute() looks.
        self.requests: Any = requests
        self.destination: Any = destination
        self.manifest_path: Any = manifest_path
        self.model: Any = model
        self.dialect = dialect
        self.arguments_schema: Any = arguments_schema
        self.fal_conn_id = fal_conn_id
        self.storage_conn_id = storage_conn_id
        self.skip_existing: Any = skip_existing
        self.name_template = name_template
        self.max_jobs = max_jobs
        # BaseOperator has a method of that name.
        self._dry_run = dry_run
        self.max_in_flight = max_in_flight
        self.rate_limit = rate_limit
        self.max_unfinished = max_unfinished
        self.land_every = land_every
        self.land_after = seconds("land_after", land_after, or_zero=True)
        self.parallel = parallel
        self.max_bytes = max_bytes
        self.include_arguments = include_arguments
        self.min_success_ratio = min_success_ratio
        self.fail_fast = fail_fast
        self.on_flagged = on_flagged
        self.on_unknown_submit = on_unknown_submit
        self.on_changed_arguments = on_changed_arguments
        self.on_clear = on_clear
        self.deferrable = is_deferrable(deferrable)
        self.poke_interval = seconds_or_none("poke_interval", poke_interval)
        self.watch = one_of("watch", watch, WAYS)
        self.queue_timeout, self.timeout = both_clocks(queue_timeout, timeout)
        self.cancel_on_timeout = cancel_on_timeout
        self.cancel_on_kill = cancel_on_kill
        self.defer_after = seconds("defer_after", defer_after, or_zero=True)
        self._running: tuple[Any, Batch] | None = None
        self._over: tuple[Batch, Journal] | None = None

    def execute(self, context: Context) -> dict[str, Any]:
        """Begin the batch, or go on where a previous try was; return where the manifest is, and the counts."""
        with failure_in_xcom(context, metrics.batch_failed):
            return self._run(context, time.time())

    def execute_complete(self, context: Context, event: dict[str, Any] | None = None) -> dict[str, Any]:
        """Land what the trigger found ended, and wait on or come to the end."""
        with failure_in_xcom(context, metrics.batch_failed):
            began = began_of(event)
            learn_from_event(event)
            return self._run(context, began)

    def without_an_event(self, context: Context, failure: Failure) -> dict[str, Any]:
        """Raise the error of a wait that has ended without an event; the next try goes on where it was."""
        again = "takes up what runs, lands what is there and submits only what never was or ended unbilled."
        with failure_in_xcom(context, metrics.batch_failed):
            raise error_of(replace(failure, retry_does=again))

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Tell OpenLineage what was read and which folder was written, if it is installed."""
        if self._over is None:
            return None
        batch, journal = self._over
        table = self.requests
        sources = [ObjectStoragePath(table, conn_id=self.storage_conn_id)] if isinstance(table, str) else []
        files = [file for state in journal.rows.values() for file in files_of(state)]
        return lineage.facets(
            lineage.Moved(
                sources=(*sources, *batch.settings.skip_existing),
                destination=batch.settings.destination,
                manifest=batch.settings.manifest_path,
                files=len(files),
                bytes=sum(file.bytes for file in files),
            )
        )

    def on_kill(self) -> None:
        """
        Post nothing more; and cancel all jobs if a user marked the task, and only then.

        See ``FalGenerateOperator.on_kill``: Airflow calls this on clears, evictions and time-outs, too, after
        which another try goes on with the jobs.
        """
        if self._running is None:
            return
        ti, batch = self._running
        if batch.session is not None:
            batch.session.interrupt()
        if self.cancel_on_kill:
            within = ASK_SECONDS + CANCEL_SECONDS
            cancel_if_killed(
                ti,
                partial(self._cancel, batch, until=time.monotonic() + within),
                is_killed=marked_by_user,
                what="The batch's jobs are",
                say=self._say,
                within=within,
            )

    def _cancel(self, batch: Batch, *, until: float) -> None:
        cancel_all(still_running(Journal.reading(batch.folder)), self._say, until=until)

    def _run(self, context: Context, began: float) -> dict[str, Any]:
        batch = self._batch(context, began)
        batch.read(self.requests, conn_id=self.storage_conn_id, model=self.model, dialect=self.dialect)
        if self._dry_run:
            return batch.dry_run()
        journal = batch.open()
        path = str(batch.settings.manifest_path)
        self._say(f"The manifest will be {path}; the account of each row until then is in {batch.folder}.")
        keep_batch(context["task_state_store"], path)
        context["ti"].xcom_push(key=MANIFEST_KEY, value=path)
        push_links(self, context["ti"], manifest_path=path)
        self._running = (context["ti"], batch)
        batch.run(journal, linger=self.defer_after if self.deferrable else None)
        if still_running(journal):
            self._defer(batch, journal)
        self._running = None
        return self._end(context, batch, journal)

    def _defer(self, batch: Batch, journal: Journal) -> None:
        """Wait in the triggerer; does not return."""
        now = time.time()
        every = self.land_every if self.max_unfinished is None else min(self.land_every, self.max_unfinished)
        more = batch.session is not None and batch.session.waits_for_room
        longest = max((s.handle.submitted_at for s in still_running(journal) if s.handle), default=now)
        self.defer(
            trigger=FalBatchTrigger.of(
                journal,
                batch.watch,
                LandSettings(
                    every,
                    self.land_after,
                    min(self.defer_after, LAND_AHEAD_SECONDS),
                    room_below=(self.max_unfinished or 0) if more else 0,
                ),
                batch.this_try,
                cancel_on_kill=self.cancel_on_kill,
                hold_until=now + RACE_SECONDS,
            ),
            method_name="execute_complete",
            timeout=timedelta(
                seconds=max(longest, batch.watch.began)
                + self.timeout
                - now
                + BACKSTOP_SECONDS
                + self.land_after
            ),
        )

    def _end(self, context: Context, batch: Batch, journal: Journal) -> dict[str, Any]:
        made = batch.write_manifest(journal)
        self._over = (batch, journal)
        batch.count(journal)
        told = ", ".join(f"{count} {word}" for word, count in made["counts"].items() if count)
        self._say(f"The manifest is {made['manifest_path']}: {told}.")
        if made["counts"]["flagged"]:
            self.log.warning("%s rows have media that are flagged as unsafe.", made["counts"]["flagged"])
        failure = batch.shortfall(journal)
        if failure is not None:
            raise error_of(failure)
        account = {"manifest_path": made["manifest_path"], "counts": made["counts"]}
        tell_assets(context, self.outlets, account)
        return made

    def _batch(self, context: Context, began: float) -> Batch:
        destination, manifest_path = self._paths()
        check_name_template(self.name_template)
        ti = context["ti"]
        run = context.get("dag_run")
        return Batch(
            hook=FalHook(self.fal_conn_id),
            owner=Owner(ti.dag_id, ti.run_id, ti.task_id, -1 if ti.map_index is None else ti.map_index),
            this_try=Try(ti.try_number, ti.max_tries),
            settings=BatchSettings(
                destination=destination,
                manifest_path=manifest_path,
                skip_existing=self._earlier_manifests(),
                template=self.name_template,
                date=getattr(run, "run_after", None),
                max_jobs=self.max_jobs,
                with_arguments=self.include_arguments,
                min_success_ratio=self.min_success_ratio,
                on_flagged=self.on_flagged,
                schema=self.arguments_schema,
            ),
            policy=RowPolicy(self.on_unknown_submit, self.on_changed_arguments, self.on_clear),
            watch=WatchSettings(
                began=began,
                timeout=self.timeout,
                queue_timeout=self.queue_timeout,
                cancel_on_timeout=self.cancel_on_timeout,
                poke_interval=self.poke_interval,
                by=self.watch,
            ),
            work=SessionSettings(
                max_in_flight=self.max_in_flight,
                rate_limit=self.rate_limit,
                max_unfinished=self.max_unfinished,
                fail_fast=self.fail_fast,
                limits=Limits(max_bytes=self.max_bytes),
                parallel=self.parallel,
            ),
            say=self._say,
        )

    def _paths(self) -> tuple[ObjectStoragePath, ObjectStoragePath]:
        for name, value in (("destination", self.destination), ("manifest_path", self.manifest_path)):
            if value is not None and (not isinstance(value, str) or not value.strip()):
                raise error_of(bad_input(f"{name}: {_PLACE}, not {value!r}."))
        if self.manifest_path is None:
            destination = ObjectStoragePath(self.destination, conn_id=self.storage_conn_id)
            return destination, destination / MANIFEST_NAME
        manifest_path = ObjectStoragePath(self.manifest_path, conn_id=self.storage_conn_id)
        if manifest_path.suffix != ".jsonl":
            raise error_of(bad_input("manifest_path: it must end in .jsonl, for it is JSON Lines."))
        if self.destination is None:
            return manifest_path.parent, manifest_path
        return ObjectStoragePath(self.destination, conn_id=self.storage_conn_id), manifest_path

    def _earlier_manifests(self) -> list[ObjectStoragePath]:
        given = self.skip_existing
        paths = [] if given is None else [given] if isinstance(given, str) else given
        if not isinstance(paths, (list, tuple)) or not all(isinstance(path, str) for path in paths):
            raise error_of(bad_input("skip_existing: the path of a manifest, or a list of them, is needed."))
        return [ObjectStoragePath(path, conn_id=self.storage_conn_id) for path in paths]

    def _say(self, line: str) -> None:
        self.log.info("%s", line)
