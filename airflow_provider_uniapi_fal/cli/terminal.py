"""What all verbs have in common: exit codes, what is written where, questions, and errors in words."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from enum import IntEnum
from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk.exceptions import AirflowNotFoundException
from airflow.utils.cli import suppress_logs_and_warning
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table
from rich.text import Text

from airflow_provider_uniapi_fal.exceptions import FalError, error_of
from airflow_provider_uniapi_fal.ledger.command_line import JournalError
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, bad_input
from airflow_provider_uniapi_fal.protocol.messages import excerpt

if TYPE_CHECKING:
    import argparse


class ExitCode(IntEnum):
    """How a verb ended, for scripts. ``docs/cli.md`` has the same table."""

    OK = 0
    FAILED = 1
    REFUSED = 2
    UNKNOWN_SUBMIT = 3
    TIMED_OUT = 4
    ACCOUNT = 5
    GATEWAY = 6
    EXPIRED = 7
    DECLINED = 8
    STORAGE = 9
    INTERRUPTED = 130


_CODES = {
    FailureKind.INPUT: ExitCode.REFUSED,
    FailureKind.SUBMIT_OUTCOME_UNKNOWN: ExitCode.UNKNOWN_SUBMIT,
    FailureKind.QUEUE_TIMEOUT: ExitCode.TIMED_OUT,
    FailureKind.TIMEOUT: ExitCode.TIMED_OUT,
    FailureKind.AUTH: ExitCode.ACCOUNT,
    FailureKind.BALANCE: ExitCode.ACCOUNT,
    FailureKind.PROTOCOL: ExitCode.GATEWAY,
    FailureKind.RATE_LIMITED: ExitCode.GATEWAY,
    FailureKind.RESULT_EXPIRED: ExitCode.EXPIRED,
}


def exit_code_of(failure: Failure) -> ExitCode:
    """Return the exit code for a failure; input that the model refused is the job's failure, not the caller's."""
    if failure.kind is FailureKind.INPUT and failure.request_id is not None:
        return ExitCode.FAILED
    return _CODES.get(failure.kind, ExitCode.FAILED)


def verb(run: Callable[[argparse.Namespace], ExitCode | None]) -> Callable[[argparse.Namespace], None]:
    """Make a function a verb: connections from everywhere, errors in words, an exit code for how it ended."""

    @suppress_logs_and_warning
    def quietly(args: argparse.Namespace) -> NoReturn:
        sys.exit(run(args) or ExitCode.OK)

    @functools.wraps(run)
    def command(args: argparse.Namespace) -> None:
        # Airflow's own commands say by this that they may read the metadata database.
        os.environ["_AIRFLOW_PROCESS_CONTEXT"] = "server"
        # Airflow writes log lines to standard output, where what was asked for goes.
        args.verbose = False
        try:
            quietly(args)
        except (Exception, KeyboardInterrupt) as error:
            stopped = _in_words(error, again=getattr(args, "again_does", None))
            if stopped is None:
                raise
            say(str(stopped))
            if getattr(args, "output", None) == "json":
                # It may be standard output itself that failed.
                with suppress(OSError):
                    _write_json({"failure": stopped.facts})
            sys.exit(stopped.code)

    return command


class Stopped(Exception):
    """
    A verb that has come to an end without what was asked for.

    :param message: for a human
    :param code: for a script
    :param facts: the failure as JSON values, if there is one with a fate of its own
    :param again: jobs may have been submitted, and this is what the same command does about them
    """

    def __init__(
        self,
        message: str,
        code: ExitCode,
        facts: Mapping[str, Any] | None = None,
        *,
        again: str | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.facts = facts or {
            "kind": code.name.lower(),
            "what": message,
            "billed": "no" if again is None else "maybe",
            "may_run": again is not None,
            "retry_does": again or "begins anew; nothing was submitted.",
        }


def submitting(args: argparse.Namespace, again: str) -> None:
    """
    Take note that from here on jobs may have been submitted, whatever ends the verb.

    :param again: what the same command does then
    """
    args.again_does = again


def _in_words(error: BaseException, *, again: str | None) -> Stopped | None:
    """
    Return how the verb ends because of what was raised; None if that is a defect, whose traceback says the most.

    :param again: what the same command does, if the verb may have submitted
    """
    if isinstance(error, Stopped):
        return error
    if isinstance(error, KeyboardInterrupt):
        goes_on = "Interrupted. A job that was submitted goes on; see 'airflow fal jobs'."
        return Stopped(goes_on, ExitCode.INTERRUPTED, again=again or "begins anew.")
    if isinstance(error, FalError):
        facts = error.failure.to_json()
        if error.kind is FailureKind.PROTOCOL and _is_of_storage(_first_cause(error)):
            return Stopped(str(error), ExitCode.STORAGE, {**facts, "kind": "storage"})
        return Stopped(str(error), exit_code_of(error.failure), facts)
    if isinstance(error, JournalError):
        # Something may have been sent: the doctor asks what is free before it writes.
        return Stopped(f"{error} Nothing was submitted.", ExitCode.FAILED)
    if isinstance(error, AirflowNotFoundException):
        return Stopped(f"{str(error).rstrip('.')}. Nothing was sent.", ExitCode.REFUSED)
    if _is_of_storage(error):
        said = getattr(error, "strerror", None) or str(error)
        where = f" at {error.filename}" if isinstance(error, OSError) and error.filename else ""
        goes_on = (
            "Nothing was submitted."
            if again is None
            else f"What was submitted goes on: 'airflow fal jobs' lists it. The same command {again}"
        )
        what = excerpt(f"{type(error).__name__}{where}: {said}")
        return Stopped(f"Storage failed ({what}). {goes_on}", ExitCode.STORAGE, again=again)
    return None


#: The libraries behind Airflow's storage, whose errors are not all ``OSError``.
_STORAGE = {"adlfs", "aiobotocore", "azure", "boto3", "botocore", "fsspec", "gcsfs", "google", "s3fs"}


def _is_of_storage(error: BaseException | None) -> bool:
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _STORAGE


def _first_cause(error: BaseException) -> BaseException | None:
    """Return what an error of ours was made of."""
    cause: BaseException | None = error
    while isinstance(cause, FalError):
        cause = cause.__cause__
    return cause


def fail(message: str, code: ExitCode) -> NoReturn:
    """End the verb with a message and an exit code."""
    raise Stopped(message, code)


def refuse(what: str) -> NoReturn:
    """End the verb because of what it was given, before anything is sent."""
    raise error_of(bad_input(what))


def say(message: str) -> None:
    """Write a line for a human to standard error."""
    _human().print(printable(message), markup=False, highlight=False, soft_wrap=True)


def show(value: Mapping[str, Any], output: str) -> None:
    """Write one thing to standard output: JSON, or a table of its fields."""
    if output == "json":
        _write_json(value)
        return
    table = Table(show_header=False, box=None, pad_edge=False)
    for name, field in value.items():
        table.add_row(Text(name, style="bold"), _cell(field))
    _console().print(table)


def show_rows(rows: Sequence[Mapping[str, Any]], columns: Iterable[str], output: str) -> None:
    """Write a list to standard output: JSON with all fields, or a table of some."""
    if output == "json":
        _write_json(list(rows))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    names = list(columns)
    for name in names:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(_cell(row.get(name)) for name in names))
    _console().print(table)


def confirm(question: str, *, yes: bool) -> None:
    """Ask before money is spent; without a terminal, ``--yes`` must have been given."""
    say(question)
    if yes:
        return
    if not sys.stdin.isatty():
        fail("Nothing was submitted: there is nobody to ask. Say --yes.", ExitCode.DECLINED)
    if _human().input("Go on? [y/N] ").strip().lower() not in ("y", "yes"):
        fail("Nothing was submitted.", ExitCode.DECLINED)


def progress(*, quiet: bool = False) -> Progress:
    """Return a progress display on standard error; nothing of it is seen where there is no terminal."""
    console = _human()
    return Progress(
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=quiet or not console.is_terminal,
    )


def json_object(text: str, what: str) -> dict[str, Any]:
    """
    Read a JSON object from a text, from a file (``@name``) or from standard input (``@-``).

    :raises FalInputError: if it is none
    """
    try:
        if text == "@-":
            text = sys.stdin.read()
        elif text.startswith("@"):
            with open(text[1:], encoding="utf-8") as file:  # noqa: PTH123 - /dev/fd/… is opened as it is
                text = file.read()
        value = json.loads(text)
    except OSError as error:
        refuse(f"{what}: {text[1:]} cannot be read ({error.strerror}).")
    except (ValueError, RecursionError) as error:
        refuse(f"{what}: this is no JSON ({_why_no_json(error)}).")
    if not isinstance(value, dict):
        refuse(f"{what}: a JSON object is needed, not a {type(value).__name__}.")
    return value


def json_value(text: str, what: str) -> Any:
    """
    Read a JSON value from a text.

    :raises FalInputError: if it is none
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        refuse(f"{what}: {excerpt(text)!r} is no JSON ({_why_no_json(error)}).")


def _why_no_json(error: ValueError | RecursionError) -> str:
    return "it is nested too deeply" if isinstance(error, RecursionError) else str(error)


def printable(text: str) -> str:
    """Return foreign text without the control characters that a terminal would obey."""
    return "".join(c if c.isprintable() or c == "\n" else " " for c in text)


def _cell(value: Any) -> Text:
    if value is None:
        return Text("-", style="dim")
    if isinstance(value, bool):
        return Text("yes" if value else "no")
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return Text(printable(text), overflow="fold")


def _write_json(value: Any) -> None:
    sys.stdout.write(json.dumps(value, ensure_ascii=False, default=str) + "\n")
    sys.stdout.flush()


def _console() -> Console:
    # What is piped or kept in a file is not broken into the width of a terminal that is not there.
    return Console() if sys.stdout.isatty() else Console(width=250)


def _human() -> Console:
    return Console(stderr=True)
