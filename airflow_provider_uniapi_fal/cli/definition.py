"""
The command line's words: verbs and their options, and nothing that runs.

Airflow loads this module whenever ``airflow`` is started, whatever the command, so it imports nothing besides
Airflow's own description of commands, which is there by then.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from airflow.cli.cli_config import ActionCommand, Arg, GroupCommand, lazy_load_command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from airflow.cli.cli_config import CLICommand

HOURS_OF_A_CENTURY = 100 * 365.25 * 24

EPILOG = "Exit codes and examples: the page 'Command line' of the provider's documentation."


def get_fal_commands() -> list[CLICommand]:
    """Return the group ``fal``; named by the key ``cli`` of the provider's info."""
    return [
        GroupCommand(
            name="fal",
            help="Paid image and video jobs at the UniAPI gateway",
            description="Submit, watch, fetch and land generative media jobs, and find those that may be billing.",
            subcommands=(*_job_verbs(), *_batch_verbs(), _manifest_group(), *_gateway_verbs()),
            epilog=EPILOG,
        )
    ]


def above_zero(text: str) -> float:
    """Read a number above 0; named in argparse's message if it is none."""
    number = float(text)
    if not 0 < number < math.inf:
        raise ValueError(text)
    return number


def whole_above_zero(text: str) -> int:
    """Read a whole number above 0; named in argparse's message if it is none."""
    number = int(text)
    if number <= 0:
        raise ValueError(text)
    return number


def whole_or_zero(text: str) -> int:
    """Read a whole number of 0 or more; named in argparse's message if it is none."""
    return 0 if text == "0" else whole_above_zero(text)


def ratio(text: str) -> float:
    """Read a share from 0 to 1; named in argparse's message if it is none."""
    number = float(text)
    if not 0 <= number <= 1:
        raise ValueError(text)
    return number


def hours(text: str) -> float:
    """Read a number of hours above 0 that leads to a date; named in argparse's message if it is none."""
    number = above_zero(text)
    if number > HOURS_OF_A_CENTURY:
        raise ValueError(text)
    return number


above_zero.__name__ = "number above 0"
whole_above_zero.__name__ = "whole number above 0"
whole_or_zero.__name__ = "whole number of 0 or more"
ratio.__name__ = "share from 0 to 1"
hours.__name__ = "number of hours above 0, at most a century"

OUTPUT = Arg(
    ("-o", "--output"),
    choices=("table", "json"),
    default="table",
    help="what is written to standard output (default: %(default)s); all else goes to standard error",
)
CONN_ID = Arg(
    ("-c", "--conn-id"),
    default=None,
    help="Airflow connection of type uniapi_fal, from the environment, a secrets backend or the metadata database "
    "(default: the one that submitted the job, else fal_default)",
)
YES = Arg(("-y", "--yes"), action="store_true", help="do not ask; for scripts")
JOURNAL = Arg(
    ("--journal",),
    metavar="FILE",
    default=None,
    help="where the command line writes down its submits and its batches (default: uniapi_fal/jobs.jsonl in "
    "AIRFLOW_HOME)",
)
JOB = Arg(
    ("job",),
    metavar="JOB",
    help="a request id that the journal knows or that comes with --model, the address of a status, or @FILE (@- is "
    "standard input) with a handle or a result as JSON",
)
MODEL_OF_JOB = Arg(("-m", "--model"), default=None, help="model id that the request id was submitted to")
DIALECT_OF_JOB = Arg(
    ("--dialect",),
    default=None,
    help="wire protocol that the job was submitted by: of a request id with --model (default: fal), or of an address "
    "(default: the one that has such addresses)",
)
ARGUMENTS_FILE = Arg(
    ("-a", "--arguments"),
    metavar="JSON",
    default=None,
    help="the model's input as a JSON object, or @FILE (@- is standard input) that holds one",
)
NAME_TEMPLATE = Arg(
    ("--name-template",),
    default="{key}",
    metavar="TEMPLATE",
    help="how files are called, such as {date}/{key}-{index} (default: {key})",
)
STORAGE_CONN_ID = Arg(("--storage-conn-id",), default=None, help="Airflow connection of the storage")
ON_UNKNOWN_SUBMIT = Arg(
    ("--on-unknown-submit",),
    choices=("fail", "resubmit"),
    default="fail",
    help="what to do when an earlier submit of the same input has an unknown outcome, or failed and may have been "
    "billed: resubmit may pay twice (default: %(default)s)",
)
DRY_RUN = Arg(("--dry-run",), action="store_true", help="say what would be submitted, and submit nothing")

OF_ONE_JOB = (JOB, MODEL_OF_JOB, DIALECT_OF_JOB, CONN_ID, JOURNAL, OUTPUT)


class _Everything(Arg):
    """
    Leave all that follows the verb to another parser: argparse's own REMAINDER takes no leading option.

    The emulator's options are its settings. To read them here would load the emulator at each start of Airflow.
    """

    def add_to_parser(self, parser: argparse.ArgumentParser) -> None:
        defaults = parser.parse_known_args

        def take_all(args: list[str], namespace: argparse.Namespace | None = None) -> object:
            known, _ = defaults([], namespace)
            known.emulator_options = list(args)
            return known, []

        parser.parse_known_args = take_all  # type: ignore[method-assign,assignment]


EMULATOR_OPTIONS = _Everything(("emulator_options",))  # type: ignore[no-untyped-call]


def _verb(path: str) -> Callable[[argparse.Namespace], None]:
    return lazy_load_command(f"airflow_provider_uniapi_fal.cli.{path}")


def _arguments_schema(of_what: str) -> Arg:
    return Arg(
        ("--arguments-schema",),
        metavar="SCHEMA",
        default=None,
        help=f"JSON Schema that {of_what} must fit before anything is paid: a file, local or in storage, with a schema "
        "or with a model's OpenAPI description, or the name of a shipped one, such as "
        "fal/flux-pro/kontext/text-to-image",
    )


def _job_verbs() -> tuple[ActionCommand, ...]:
    return (
        ActionCommand(
            name="submit",
            help="Submit one paid job, and print its handle",
            description="Submit one job. Each submit is paid: it says what it will do, posts once, and never twice.",
            func=_verb("jobs.submit"),
            args=(
                Arg(("model",), metavar="MODEL", help="model id, with or without the leading fal-ai/"),
                Arg(
                    ("-i", "--input"),
                    action="append",
                    default=[],
                    dest="inputs",
                    metavar="NAME=TEXT",
                    help="one input of the model as text, NAME:=JSON for numbers, lists and the rest; may be given often",
                ),
                ARGUMENTS_FILE,
                _arguments_schema("the input"),
                Arg(
                    ("--dialect",), default="fal", help="wire protocol of the gateway (default: %(default)s)"
                ),
                Arg(
                    ("--start-timeout",),
                    type=above_zero,
                    metavar="S",
                    help="fal fails the job if it has not started by then",
                ),
                Arg(
                    ("--priority",),
                    choices=("normal", "low"),
                    help="place in fal's queue (default: fal's own)",
                ),
                Arg(
                    ("--runner-hint",), metavar="TEXT", help="text by which fal sends jobs to the same runner"
                ),
                Arg(("--no-retry",), action="store_true", default=None, help="turn fal's own retries off"),
                Arg(
                    ("--no-store-io",),
                    action="store_false",
                    default=None,
                    dest="store_io",
                    help="keep fal from storing input and output; the result then lasts an hour or less",
                ),
                Arg(
                    ("--object-lifetime",),
                    type=whole_above_zero,
                    metavar="S",
                    help="seconds that fal keeps the media",
                ),
                Arg(
                    ("--max-queue-length",),
                    type=whole_above_zero,
                    metavar="N",
                    help="refuse the job if the queue is longer",
                ),
                ON_UNKNOWN_SUBMIT,
                DRY_RUN,
                CONN_ID,
                JOURNAL,
                OUTPUT,
            ),
            epilog=EPILOG,
        ),
        ActionCommand(
            name="status",
            help="Ask once how a job is going; free",
            func=_verb("jobs.status"),
            args=(
                *OF_ONE_JOB,
                Arg(("--logs",), action="store_true", help="print the model's log lines, too"),
            ),
            epilog=EPILOG,
        ),
        ActionCommand(
            name="wait",
            help="Wait until a job has ended, and print its result; free",
            func=_verb("jobs.wait"),
            args=(
                *OF_ONE_JOB,
                Arg(
                    ("--timeout",),
                    type=above_zero,
                    metavar="S",
                    help="stop waiting after this; default: never",
                ),
                Arg(
                    ("--queue-timeout",),
                    type=above_zero,
                    metavar="S",
                    help="stop waiting if the job has not started by then; default: never",
                ),
                Arg(
                    ("--cancel-on-timeout",),
                    action="store_true",
                    help="ask the gateway to cancel the job when its time is over",
                ),
                Arg(
                    ("--poke-interval",),
                    type=above_zero,
                    metavar="S",
                    help="seconds between looks (default: about a third of the job's age, from 1.5 to 15)",
                ),
                Arg(("--quiet",), action="store_true", help="no progress and no log lines"),
            ),
            epilog=EPILOG,
        ),
        ActionCommand(
            name="result",
            help="Fetch the result of a finished job; free",
            func=_verb("jobs.result"),
            args=OF_ONE_JOB,
            epilog=EPILOG,
        ),
        ActionCommand(
            name="cancel",
            help="Ask the gateway to cancel a job",
            description="Ask the gateway to cancel a job. Only 'removed' means that it will not run; after 'requested' it "
            "may still finish and be billed.",
            func=_verb("jobs.cancel"),
            args=OF_ONE_JOB,
            epilog=EPILOG,
        ),
        ActionCommand(
            name="land",
            help="Copy the media files of a finished job to storage",
            func=_verb("jobs.land"),
            args=(
                *OF_ONE_JOB,
                Arg(
                    ("destination",),
                    metavar="DESTINATION",
                    help="folder, local or in object storage, such as s3://bucket/night",
                ),
                Arg(
                    ("--name",),
                    default=None,
                    help="key of the result, a file name without suffix (default: the request id)",
                ),
                Arg(
                    ("--max-bytes",),
                    type=whole_above_zero,
                    metavar="N",
                    help="refuse a longer file (default: 2 GiB)",
                ),
                NAME_TEMPLATE,
                STORAGE_CONN_ID,
            ),
            epilog=EPILOG,
        ),
    )


def _batch_verbs() -> tuple[ActionCommand, ...]:
    return (
        ActionCommand(
            name="batch",
            help="Submit a table of jobs, wait for them, land their media and write a manifest",
            description="Work through a table of requests. What it submits is paid: it says how many jobs that is, and "
            "asks. The same command again goes on where the last one ended, and pays for nothing twice.",
            func=_verb("batch.batch"),
            args=(
                Arg(("requests",), metavar="TABLE", help="table of requests: .jsonl, .csv or .parquet"),
                Arg(
                    ("destination",), metavar="DESTINATION", help="folder for the media, local or in storage"
                ),
                Arg(
                    ("--manifest",),
                    metavar="FILE",
                    default=None,
                    help="the manifest, ending in .jsonl; its journal lies beside it (default: manifest.jsonl in the "
                    "destination)",
                ),
                Arg(("-m", "--model"), default=None, help="model of rows that name none"),
                Arg(
                    ("--dialect",),
                    default="fal",
                    help="wire protocol of rows that name none (default: %(default)s)",
                ),
                _arguments_schema("the arguments of rows that name no model"),
                Arg(
                    ("--skip-existing",),
                    action="append",
                    default=[],
                    metavar="MANIFEST",
                    help="an earlier manifest: what it has media of is not submitted; may be given often",
                ),
                Arg(
                    ("--again",),
                    choices=("missing", "all"),
                    default=None,
                    help="submit rows again that ended without success, or every row (default: only those of which "
                    "that is safe)",
                ),
                Arg(
                    ("--on-unknown-submit",),
                    choices=("fail", "resubmit"),
                    default="fail",
                    help="what to do about a submit of unknown outcome: resubmit may pay twice (default: %(default)s)",
                ),
                Arg(
                    ("--on-changed-arguments",),
                    choices=("reattach", "fail", "resubmit"),
                    default="reattach",
                    help="what to do about a row of which something else was submitted (default: %(default)s)",
                ),
                Arg(
                    ("--max-jobs",),
                    type=whole_above_zero,
                    metavar="N",
                    help="refuse a table with more to submit",
                ),
                Arg(
                    ("--ask-above",),
                    type=whole_or_zero,
                    default=10,
                    metavar="N",
                    help="ask before more paid jobs than this (default: %(default)s)",
                ),
                Arg(
                    ("--max-in-flight",),
                    type=whole_above_zero,
                    default=10,
                    metavar="N",
                    help="submits under way at once (default: %(default)s)",
                ),
                Arg(
                    ("--rate-limit",),
                    type=above_zero,
                    metavar="N",
                    help="submits a second (default: no limit)",
                ),
                Arg(
                    ("--max-unfinished",),
                    type=whole_above_zero,
                    metavar="N",
                    help="jobs that have not ended, at most (default: no limit)",
                ),
                Arg(("--fail-fast",), action="store_true", help="submit nothing more once a row has failed"),
                Arg(
                    ("--min-success-ratio",),
                    type=ratio,
                    default=1.0,
                    metavar="R",
                    help="share of rows that must be a success, from 0 to 1 (default: %(default)s)",
                ),
                Arg(
                    ("--timeout",),
                    type=above_zero,
                    default=86400.0,
                    metavar="S",
                    help="stop waiting for a job after this (default: %(default)s)",
                ),
                Arg(
                    ("--queue-timeout",),
                    type=above_zero,
                    metavar="S",
                    help="stop waiting for a job that has not started by then; default: never",
                ),
                Arg(
                    ("--include-arguments",),
                    action="store_true",
                    help="put the arguments, prompts and all, into the manifest",
                ),
                NAME_TEMPLATE,
                STORAGE_CONN_ID,
                DRY_RUN,
                CONN_ID,
                JOURNAL,
                YES,
                OUTPUT,
            ),
            epilog=EPILOG,
        ),
        ActionCommand(
            name="jobs",
            help="List the jobs that are live or may be billing; free",
            description="List the jobs that this Airflow's tasks and the command line on this machine have submitted and "
            "that are live, or of which that cannot be ruled out: from Airflow's task state store, the journals of "
            "batches and the command line's journal, and, unless --offline, from what the gateway says of each. Not "
            "seen: what was submitted from other machines' command lines (name their batches with --manifest), by "
            "other tools, or by tasks whose runs were deleted from Airflow.",
            func=_verb("live.jobs"),
            args=(
                Arg(("--dag-id",), default=None, help="only this DAG's"),
                Arg(("--run-id",), default=None, help="only this run's"),
                Arg(
                    ("--hours",),
                    type=hours,
                    default=72.0,
                    metavar="N",
                    help="only those of the last N hours (default: %(default)s)",
                ),
                Arg(
                    ("--manifest",),
                    action="append",
                    default=[],
                    metavar="MANIFEST",
                    dest="manifests",
                    help="those of a batch that the command line of another machine, or with another journal, has "
                    "begun, too; may be given often",
                ),
                Arg(("--all",), action="store_true", help="those that have ended, too"),
                Arg(("--offline",), action="store_true", help="do not ask the gateway"),
                JOURNAL,
                OUTPUT,
            ),
            epilog=EPILOG,
        ),
    )


def _manifest_group() -> GroupCommand:
    path = Arg(
        ("path",), metavar="MANIFEST", help="a manifest's rows, local or in object storage: …/manifest.jsonl"
    )
    return GroupCommand(
        name="manifest",
        help="Read and verify the account of a landing or a batch",
        subcommands=(
            ActionCommand(
                name="show",
                help="Show the counts of a manifest, and its rows",
                func=_verb("manifests.show"),
                args=(
                    path,
                    Arg(("--outcome",), default=None, help="only rows with this outcome"),
                    STORAGE_CONN_ID,
                    OUTPUT,
                ),
                epilog=EPILOG,
            ),
            ActionCommand(
                name="verify",
                help="Hash every file of a manifest again",
                description="Read every file that a manifest names, and compare its length and checksum.",
                func=_verb("manifests.verify"),
                args=(path, STORAGE_CONN_ID, OUTPUT),
                epilog=EPILOG,
            ),
        ),
    )


def _gateway_verbs() -> tuple[ActionCommand, ...]:
    return (
        ActionCommand(
            name="doctor",
            help="Find out how your gateway answers, with one cheap job",
            description="Ask the gateway what its documentation leaves open: free questions first, then, after asking "
            "you, one cheap job. Prints what it found and which fields of the connection's extra to set.",
            func=_verb("doctor.doctor"),
            args=(
                Arg(
                    ("-m", "--model"),
                    default="flux/schnell",
                    help="model of the one paid job (default: %(default)s)",
                ),
                Arg(
                    ("-a", "--arguments"),
                    metavar="JSON",
                    default=None,
                    help="its input as a JSON object, or @FILE (default: one small picture of a grey square)",
                ),
                Arg(("--free",), action="store_true", help="only what can be asked without a job"),
                Arg(
                    ("--timeout",),
                    type=above_zero,
                    default=300.0,
                    metavar="S",
                    help="stop waiting for the job after this (default: %(default)s)",
                ),
                ON_UNKNOWN_SUBMIT,
                CONN_ID,
                JOURNAL,
                YES,
                OUTPUT,
            ),
            epilog=EPILOG,
        ),
        ActionCommand(
            name="emulator",
            help="Serve a local gateway that costs nothing",
            func=_verb("emulator.emulator"),
            args=(EMULATOR_OPTIONS,),
        ),
    )
