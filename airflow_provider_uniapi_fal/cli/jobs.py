"""The verbs on one job: submit, status, wait, result, cancel, land."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pendulum
from airflow.sdk import BaseHook, ObjectStoragePath

from airflow_provider_uniapi_fal.cli.terminal import (
    ExitCode,
    json_object,
    json_value,
    progress,
    refuse,
    say,
    show,
    show_rows,
    submitting,
    verb,
)
from airflow_provider_uniapi_fal.exceptions import FalError, FalInputError, FalSubmitOutcomeUnknown, error_of
from airflow_provider_uniapi_fal.hooks.fal import DEFAULT_CONN_ID, FalHook
from airflow_provider_uniapi_fal.landing.inputs import check_schema, with_files
from airflow_provider_uniapi_fal.landing.media import Limits
from airflow_provider_uniapi_fal.landing.media import land as land_media
from airflow_provider_uniapi_fal.landing.names import Names
from airflow_provider_uniapi_fal.ledger.command_line import CommandLineJournal, JournalError, SubmitEntry
from airflow_provider_uniapi_fal.ledger.record import Phase, ends_the_job, fingerprint
from airflow_provider_uniapi_fal.protocol.dialects import DIALECTS, dialect_named
from airflow_provider_uniapi_fal.protocol.dialects.base import CancelOutcome, Finished
from airflow_provider_uniapi_fal.protocol.dialects.fal import SubmitOptions
from airflow_provider_uniapi_fal.protocol.errors import FailureKind, unknown_outcome
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult
from airflow_provider_uniapi_fal.protocol.schemas import shipped
from airflow_provider_uniapi_fal.protocol.watching import Watch
from airflow_provider_uniapi_fal.reporting import summary

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Mapping, Sequence

    from airflow_provider_uniapi_fal.protocol.errors import Failure
    from airflow_provider_uniapi_fal.protocol.messages import HttpRequest

FILE_COLUMNS = ("where", "content_type", "width", "height", "flagged", "url")
LANDED_COLUMNS = ("path", "bytes", "content_type", "flagged", "sha256")


@verb
def submit(args: argparse.Namespace) -> ExitCode | None:
    """Submit one job: check everything, say what it will do, write the intent down, post once."""
    arguments = arguments_of(args.arguments, args.inputs)
    check_dialect(args.dialect)
    conn_id = args.conn_id or DEFAULT_CONN_ID
    hook = FalHook(conn_id)
    options: dict[str, Any] = {name: getattr(args, name) for name in SubmitOptions.__annotations__}
    options = {name: value for name, value in options.items() if value is not None}
    hook.prepare(args.model, arguments, dialect=args.dialect, **options)
    if args.arguments_schema is not None:
        check_schema(schema_place(args.arguments_schema), arguments)
    dialect = dialect_named(args.dialect)
    for remark in dialect.remarks(args.model, arguments):
        say(remark)
    request = hook.prepare(
        args.model, with_files(arguments, dialect.media_inputs), dialect=args.dialect, **options
    )
    model = dialect.model_id(args.model)
    journal = CommandLineJournal(args.journal)
    unknown = unknown_before(
        journal, model, arguments, conn_id, args.dialect, resubmit=args.on_unknown_submit == "resubmit"
    )
    say(f"Submitting one paid job: {model} at {hook.account.base_url}, connection {conn_id}.")
    if args.dry_run:
        say("Not submitted: --dry-run.")
        show(
            {"model": model, "path": request.path, "arguments": arguments, **options},
            args.output,
        )
        return None
    entry = SubmitEntry.intent(model, arguments, conn_id, args.dialect)
    intend(journal, entry, unknown)
    submitting(args, "submits one more job.")
    accepted = post(hook, journal, entry, args.model, request, args.dialect)
    if isinstance(accepted, JobResult):
        # Whole, and in one form: it cannot be fetched again, and the media may be in it.
        show(accepted.to_json(whole=True), "json")
        return None
    say(f"Submitted request {accepted.request_id}.")
    show(
        {**accepted.to_json(), **hook.urls(accepted)} if args.output == "json" else _brief(accepted),
        args.output,
    )
    return None


def unknown_before(
    journal: CommandLineJournal,
    model: str,
    arguments: Mapping[str, Any],
    conn_id: str,
    dialect: str,
    *,
    resubmit: bool,
) -> list[SubmitEntry]:
    """
    Return the submits of the same input that may have been billed and left no job to look at.

    :param resubmit: the user has said to pay for them again
    :raises FalSubmitOutcomeUnknown: if nobody knows what came of one, and nobody has said so
    :raises FalError: how one failed that may have been billed, if nobody has said so
    """
    asked = fingerprint(model, arguments, conn_id, dialect=dialect)
    found = [entry for entry in journal.entries() if entry.is_open and entry.record.fingerprint == asked]
    if found and not resubmit:
        failed = found[-1].record.failure
        if failed is None:
            lost = unknown_outcome("an earlier submit of the same input left no trace of what came of it")
            raise error_of(_for_the_terminal(lost))
        what = f"{failed.what} That was an earlier submit of the same input; nothing was sent now."
        raise error_of(_for_the_terminal(replace(failed, what=what)))
    return found


def intend(journal: CommandLineJournal, entry: SubmitEntry, instead_of: Sequence[SubmitEntry]) -> None:
    """
    Write the intent of a submit down, which must be done before the post.

    :param instead_of: earlier ones that the user has said to submit again
    """
    for earlier in instead_of:
        journal.write(earlier.submitted_again())
    journal.write(entry)


def post(
    hook: FalHook,
    journal: CommandLineJournal,
    entry: SubmitEntry,
    model: str,
    request: HttpRequest,
    dialect: str,
) -> JobHandle | JobResult:
    """
    Post a submit whose intent is in the journal, and write down what came of it.

    :raises FalSubmitOutcomeUnknown: the reply was lost, or the wait for it was interrupted; the intent stays
    """
    try:
        accepted = hook.post(model, request, dialect=dialect)
    except FalSubmitOutcomeUnknown as error:
        raise error_of(_for_the_terminal(error.failure)) from error
    except KeyboardInterrupt as error:
        lost = unknown_outcome("it was interrupted before the reply came")
        raise error_of(_for_the_terminal(lost)) from error
    except FalError as error:
        try:
            journal.write(entry.ended(error.failure))
        except JournalError as unwritten:
            # The intent stays: that is the safe side.
            say(
                f"{unwritten} The same command is refused, until --on-unknown-submit=resubmit says to submit again."
            )
        if error.failure.billed != "no":
            raise error_of(_for_the_terminal(error.failure)) from error
        raise
    result = accepted.result if isinstance(accepted, Finished) else None
    handle = accepted.handle if result is None else result.handle  # type: ignore[union-attr]
    entry = entry.submitted(handle)
    try:
        journal.write(entry if result is None else entry.delivered())
    except JournalError as error:
        # Not an error of the verb's: a script that took it for one might submit again.
        say(f"{error} Keep the handle of request {handle.request_id}: the job was submitted.")
    return handle if result is None else result


@verb
def status(args: argparse.Namespace) -> ExitCode | None:
    """Ask once how a job is going."""
    job = _job(args)
    seen = job.hook.status(job.handle, logs=args.logs)
    for line in seen.logs if args.output == "table" else ():
        say(f"{line.timestamp or ''} {line.message}".strip())
    facts = {**asdict(seen), "state": seen.state.value, "request_id": job.handle.request_id}
    if args.output == "table" or not args.logs:
        del facts["logs"]
    show(facts, args.output)
    return None


@verb
def wait(args: argparse.Namespace) -> ExitCode | None:
    """Wait until a job has ended, and print its result."""
    job = _job(args)
    now = time.time()
    watch = Watch(
        job.handle,
        deadline=None if args.timeout is None else now + args.timeout,
        queue_deadline=None if args.queue_timeout is None else now + args.queue_timeout,
        cancel_on_timeout=args.cancel_on_timeout,
        poke_interval=args.poke_interval,
        logs=not args.quiet,
    )
    with progress(quiet=args.quiet) as shown, job.accounted():
        task = shown.add_task(f"Request {job.handle.request_id}", total=1)

        def say_line(line: str) -> None:
            if not args.quiet:
                say(line)
            shown.update(task, description=line[:100])

        result = job.hook.delivered(watch, job.hook.watch_for(watch, None, say_line))
    print_result(result, args.output)
    return None


@verb
def result(args: argparse.Namespace) -> ExitCode | None:
    """Fetch the result of a finished job."""
    job = _job(args)
    with job.accounted():
        found = job.hook.result(job.handle)
    print_result(found, args.output)
    return None


@verb
def cancel(args: argparse.Namespace) -> ExitCode | None:
    """Ask the gateway to cancel a job."""
    job = _job(args)
    outcome = job.hook.cancel(job.handle)
    show(
        {"request_id": job.handle.request_id, "outcome": outcome.value, "means": _MEANS[outcome]}, args.output
    )
    if outcome is CancelOutcome.NOT_FOUND:
        return ExitCode.EXPIRED
    return ExitCode.OK if outcome in (CancelOutcome.REMOVED, CancelOutcome.REQUESTED) else ExitCode.FAILED


_MEANS = {
    CancelOutcome.REMOVED: "It was taken from the queue and will not run.",
    CancelOutcome.REQUESTED: "Its runner was told. It may still finish and be billed.",
    CancelOutcome.ALREADY_COMPLETED: "It had finished. Its result is paid for: fetch it.",
    CancelOutcome.NOT_FOUND: "The gateway does not know this request.",
    CancelOutcome.UNSUPPORTED: "The gateway passes no cancellations on. It goes on, and may be billed.",
    CancelOutcome.UNCLEAR: "No telling. It may go on and be billed.",
}


@verb
def land(args: argparse.Namespace) -> ExitCode | None:
    """Copy the media files of a finished job to storage."""
    destination = storage_path(args.destination, args.storage_conn_id)
    names = Names(key=args.name or "request-id", template=args.name_template, date=pendulum.today("UTC"))
    names.check_ahead()
    job = _job(args)
    with job.accounted(), progress() as shown:
        shown.add_task(f"Landing request {job.handle.request_id}", total=1)
        found = job.result or job.hook.result(job.handle)
        landed = land_media(
            found,
            destination,
            replace(
                names,
                key=args.name or job.handle.request_id,
                model=job.handle.model,
                seed=found.seed,
                request_id=job.handle.request_id,
            ),
            account=job.hook.account,
            limits=Limits(max_bytes=args.max_bytes or Limits.max_bytes),
        )
    if not landed:
        say(f"Request {job.handle.request_id} has no media files in its result.")
    show_rows([file.to_json() for file in landed], LANDED_COLUMNS, args.output)
    return None


def storage_path(text: str, conn_id: str | None) -> ObjectStoragePath:
    """
    Return a place in storage; one without a scheme is on this machine.

    :raises AirflowNotFoundException: if there is no such connection, which some kinds of storage would pass over
    """
    if conn_id is not None:
        BaseHook.get_connection(conn_id)
    address = text if "://" in text else f"file://{Path(text).expanduser().absolute()}"
    try:
        return ObjectStoragePath(address, conn_id=conn_id)
    except (ValueError, ImportError) as error:
        refuse(f"{text}: this is no place in storage ({error}).")


def check_dialect(name: str) -> None:
    """
    Refuse a wire protocol that there is not.

    :raises FalInputError: naming those that there are
    """
    if name not in DIALECTS:
        refuse(f"--dialect: one of {', '.join(DIALECTS)} is needed, not {name!r}.")


def schema_place(text: str) -> str:
    """Return what ``--arguments-schema`` names: a shipped schema, or the address of a file."""
    return text if text in shipped() else str(storage_path(text, None))


def print_result(found: JobResult, output: str) -> None:
    """Print a result: all of it as JSON, or what it brought as a table."""
    if output == "json":
        show(found.to_json(), output)
        return
    say(summary(found))
    show_rows([asdict(file) for file in found.media], FILE_COLUMNS, output)


@dataclass(frozen=True)
class _Job:
    """
    The job that a verb was pointed at.

    :param result: its result, if that is what the user has
    """

    hook: FalHook
    handle: JobHandle
    journal: CommandLineJournal
    result: JobResult | None = None

    def accounted(self) -> Accounted:
        """Write into the journal how the job ended, if the journal knows it."""
        return Accounted(self.journal, self.handle.request_id)


class Accounted:
    """Around a wait, a fetch or a landing: the journal learns how the job ended."""

    def __init__(self, journal: CommandLineJournal, request_id: str) -> None:
        self._journal = journal
        self._request_id = request_id

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is not None and not (isinstance(error, FalError) and ends_the_job(error.failure)):
            return
        try:
            entry = self._journal.entry_of(self._request_id)
            if entry is not None and entry.record.phase is not Phase.DELIVERED:
                ended = entry.ended(error.failure) if isinstance(error, FalError) else entry.delivered()
                self._journal.write(ended)
        except JournalError as unwritten:
            say(str(unwritten))


def _job(args: argparse.Namespace) -> _Job:
    """
    Find the job that a verb was pointed at; nothing is sent.

    :raises FalInputError: if the words lead to no job
    """
    if args.dialect is not None:
        check_dialect(args.dialect)
    journal = CommandLineJournal(args.journal)
    conn_id = args.conn_id or DEFAULT_CONN_ID
    found: JobResult | None = None
    if args.job.startswith("@"):
        data = json_object(args.job, "JOB")
        try:
            found = JobResult.from_json(data) if "media" in data else None
            handle = found.handle if found is not None else JobHandle.from_json(data)
        except ValueError as error:
            refuse(f"JOB: {error}.")
        if found is not None and any(file.url is None for file in found.media):
            found = None
    elif "://" in args.job:
        handle = _handle_at(FalHook(conn_id), args.job, args.dialect)
    else:
        entry = None if args.model else journal.entry_of(args.job)
        if entry is not None and entry.record.handle is not None:
            handle = entry.record.handle
        elif args.model:
            handle = FalHook(conn_id).handle_of(
                request_id=args.job, model=args.model, dialect=args.dialect or "fal"
            )
        else:
            refuse(
                f"JOB: the journal {journal.path} does not know request {args.job!r}. Give its --model, the address "
                "of its status, or @FILE with its handle."
            )
    if args.conn_id is not None:
        handle = replace(handle, fal_conn_id=args.conn_id)
    hook = FalHook(handle.fal_conn_id)
    _ = hook.account  # a connection that is missing or wrong is told of before anything else
    return _Job(hook, handle, journal, found)


def _handle_at(hook: FalHook, address: str, dialect: str | None) -> JobHandle:
    """
    Return the job with this address of a status.

    :param dialect: wire protocol; None: the one that has addresses of this form, for no two have the same
    :raises FalInputError: if it is the address of none
    """
    _ = hook.account  # a wrong connection is not to be taken for a wrong address
    for name in DIALECTS if dialect is None else ():
        with suppress(FalInputError):
            return hook.handle_of(status_url=address, dialect=name)
    return hook.handle_of(status_url=address, dialect=dialect or "fal")


def arguments_of(given: str | None, inputs: Sequence[str]) -> dict[str, Any]:
    """Return the model's input from ``--arguments`` and each ``--input``."""
    arguments = {} if given is None else json_object(given, "--arguments")
    return {**arguments, **dict(_inputs(inputs))}


def _inputs(words: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for word in words:
        name, equals, text = word.partition("=")
        as_json = name.endswith(":")
        name = name.removesuffix(":")
        if not equals or not name:
            refuse(f"{word!r}: an input is written NAME=TEXT or NAME:=JSON.")
        yield name, json_value(text, name) if as_json else text


def _for_the_terminal(failure: Failure) -> Failure:
    """Return a submit's failure that may have been billed, with what the same command does in the place of a task."""
    if failure.kind is FailureKind.SUBMIT_OUTCOME_UNKNOWN:
        advice = "Look for the request at the gateway. If it has none, give --on-unknown-submit=resubmit."
    else:
        advice = (
            f"{failure.advice} To pay for the same input again, give --on-unknown-submit=resubmit.".strip()
        )
    return replace(
        failure,
        retry_does="of the same command is refused, so that nothing is paid twice.",
        advice=advice,
    )


def _brief(handle: JobHandle) -> dict[str, Any]:
    return {"request_id": handle.request_id, "model": handle.model, "fal_conn_id": handle.fal_conn_id}
