"""``airflow fal batch``: a batch from a terminal, by the same steps and the same journal as the operator's."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pendulum

from airflow_provider_uniapi_fal.batch.batch import MANIFEST_NAME, Batch, BatchSettings
from airflow_provider_uniapi_fal.batch.session import SessionSettings
from airflow_provider_uniapi_fal.cli.jobs import check_dialect, schema_place, storage_path
from airflow_provider_uniapi_fal.cli.terminal import (
    ExitCode,
    Stopped,
    confirm,
    exit_code_of,
    progress,
    refuse,
    say,
    show,
    submitting,
    verb,
)
from airflow_provider_uniapi_fal.exceptions import FalError
from airflow_provider_uniapi_fal.hooks.fal import DEFAULT_CONN_ID, FalHook
from airflow_provider_uniapi_fal.landing.inputs import schema_of
from airflow_provider_uniapi_fal.landing.media import Limits
from airflow_provider_uniapi_fal.landing.names import check_template
from airflow_provider_uniapi_fal.ledger.command_line import CommandLineJournal
from airflow_provider_uniapi_fal.ledger.journal import Journal, Owner
from airflow_provider_uniapi_fal.ledger.rows import RowPolicy, RowState, Step, Try
from airflow_provider_uniapi_fal.triggers.batch import WatchSettings

if TYPE_CHECKING:
    import argparse

    from airflow_provider_uniapi_fal.protocol.errors import Failure

#: Whose the journal is: it lies beside its manifest, so the place alone tells one batch from another.
OWNER = Owner(dag_id="", run_id="airflow fal batch", task_id="")

#: Seconds between two looks at how far the batch is.
SHOW_EVERY = 0.5


@verb
def batch(args: argparse.Namespace) -> ExitCode | None:
    """Check the table, say what will be paid, ask, and work until every row is accounted for."""
    batch = _batch(args)
    requests = str(storage_path(args.requests, None))
    batch.read(requests, conn_id=args.storage_conn_id, model=args.model, dialect=args.dialect)
    counts = replace(batch, say=_unsaid).dry_run()
    paid = counts["would_submit"]
    models = ", ".join(f"{count} of {model}" for model, count in sorted(counts["models"].items()))
    plan = (
        f"{counts['rows']} rows at {batch.hook.account.base_url}: {paid} paid jobs to submit"
        f"{f' ({models})' if models else ''}, {counts['would_watch']} to watch, {counts['would_land']} to land."
    )
    if args.dry_run:
        say(f"{plan} Not submitted: --dry-run.")
        show(counts, args.output)
        return None
    if paid > args.ask_above:
        confirm(plan, yes=args.yes)
    else:
        say(plan)
    journal = batch.open()
    CommandLineJournal(args.journal).write_batch(str(batch.settings.manifest_path))
    submitting(args, "takes it up, and pays for nothing twice.")
    with _interruptible(batch) as interrupted, _progress(batch, journal):
        try:
            batch.run(journal, linger=None)
        except FalError as error:
            if interrupted.is_set():
                said = f"{error} Run the same command again to go on."
                raise Stopped(said, ExitCode.INTERRUPTED, error.failure.to_json()) from error
            raise
    made = batch.write_manifest(journal)
    shortfall = batch.shortfall(journal)
    failure = None if shortfall is None else _for_the_terminal(shortfall)
    if args.output == "json":
        made = {**made, "failure": None if failure is None else failure.to_json()}
    show(made, args.output)
    if failure is None:
        return ExitCode.OK
    say(str(failure))
    code = exit_code_of(failure)
    # The table itself was fine, or nothing would have been submitted.
    return ExitCode.FAILED if code is ExitCode.REFUSED else code


def _for_the_terminal(shortfall: Failure) -> Failure:
    """Return a batch's shortfall with what the same command does: nobody retries it, and there is no task to clear."""
    again = (
        "of the same command takes up what runs, lands what is there and submits only what never was or ended "
        "unbilled. With --again missing it submits the other rows without success, too, but unknown ones only with "
        "--on-unknown-submit resubmit."
    )
    return replace(shortfall, retry_does=again)


def _batch(args: argparse.Namespace) -> Batch:
    check_dialect(args.dialect)
    try:
        check_template(args.name_template)
    except ValueError as error:
        refuse(f"--name-template: {error}.")
    destination = storage_path(args.destination, args.storage_conn_id)
    manifest_path = (
        storage_path(args.manifest, args.storage_conn_id) if args.manifest else destination / MANIFEST_NAME
    )
    if manifest_path.suffix != ".jsonl":
        refuse("--manifest: it must end in .jsonl, for it is JSON Lines.")
    batch = Batch(
        hook=FalHook(args.conn_id or DEFAULT_CONN_ID),
        owner=OWNER,
        this_try=Try(),
        settings=BatchSettings(
            destination=destination,
            manifest_path=manifest_path,
            skip_existing=[storage_path(path, args.storage_conn_id) for path in args.skip_existing],
            template=args.name_template,
            date=pendulum.today("UTC"),
            max_jobs=args.max_jobs,
            with_arguments=args.include_arguments,
            min_success_ratio=args.min_success_ratio,
            schema=None if args.arguments_schema is None else schema_of(schema_place(args.arguments_schema)),
        ),
        policy=RowPolicy(args.on_unknown_submit, args.on_changed_arguments, args.again or "missing"),
        watch=WatchSettings(began=time.time(), timeout=args.timeout, queue_timeout=args.queue_timeout),
        work=SessionSettings(
            max_in_flight=args.max_in_flight,
            rate_limit=args.rate_limit,
            max_unfinished=args.max_unfinished,
            fail_fast=args.fail_fast,
            limits=Limits(),
        ),
        say=say,
    )
    _ = batch.hook.account  # a connection that is missing or wrong is told of before the table is read
    batch.this_try = _this_try(batch, again=args.again is not None)
    return batch


def _this_try(batch: Batch, *, again: bool) -> Try:
    """
    Return a number for this run of the command.

    The operator's rows tell a retry from a clear by Airflow's number of allowed tries. Here each run of the command
    is a retry of the one before, and ``--again`` is the clear.
    """
    known = [state.entry.max_tries for state in Journal.reading(batch.folder).rows.values()]
    return Try(number=int(time.time()), max_tries=max(known, default=0) + again)


@contextmanager
def _interruptible(batch: Batch) -> Iterator[threading.Event]:
    """Let the first Ctrl-C stop the submits and write down what came of them; a second one ends at once."""
    interrupted = threading.Event()

    def stop(*_: Any) -> None:
        if interrupted.is_set() or batch.session is None:
            raise KeyboardInterrupt
        interrupted.set()
        batch.session.interrupt()

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _progress(batch: Batch, journal: Journal) -> Iterator[None]:
    """Show how far the batch is, while it is worked on."""
    over = threading.Event()

    def look() -> None:
        # It is counted by another thread meanwhile.
        with suppress(RuntimeError):
            if batch.session is not None:
                shown.update(task, description=batch.session.tally.line(time.monotonic()))
            ended = sum(_is_over(state) for key, state in journal.rows.items() if key in rows)
            shown.update(task, completed=ended)

    def watch() -> None:
        while not over.wait(SHOW_EVERY):
            look()

    rows = batch.to_make
    with progress() as shown:
        task = shown.add_task("Submitting", total=len(rows))
        thread = threading.Thread(target=watch, daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            look()


def _is_over(state: RowState) -> bool:
    failed = state.entry.failure is not None and state.step is not Step.NOT_TAKEN
    return failed or state.step is Step.DELIVERED


def _unsaid(line: str) -> None:
    return
