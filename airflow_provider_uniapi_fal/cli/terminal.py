"""What all verbs have in common: exit codes, what is written where, questions, and errors in words."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
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

from airflow_provider_uniapi_fal.cli.journal import JournalError
from airflow_provider_uniapi_fal.exceptions import FalError, error_of
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, bad_input

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
        except FalError as error:
            if getattr(args, "output", None) == "json":
                _write_json({"failure": error.failure.to_json()})
            fail(str(error), exit_code_of(error.failure))
        except JournalError as error:
            fail(f"{error} Nothing was sent.", ExitCode.FAILED)
        except AirflowNotFoundException as error:
            fail(f"{error} Nothing was sent.", ExitCode.REFUSED)
        except KeyboardInterrupt:
            fail(
                "Interrupted. A job that was submitted goes on; see 'airflow fal jobs'.", ExitCode.INTERRUPTED
            )

    return command


def fail(message: str, code: ExitCode) -> NoReturn:
    """End the verb with a message and an exit code."""
    say(message)
    sys.exit(code)


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
    except ValueError as error:
        refuse(f"{what}: this is no JSON ({error}).")
    if not isinstance(value, dict):
        refuse(f"{what}: a JSON object is needed, not a {type(value).__name__}.")
    return value


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
