"""The command line, built from the settings: every field is an option of the same name."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from airflow_provider_uniapi_fal.emulator.faults import FAMILIES, FAULTS, OPERATIONS, Rule
from airflow_provider_uniapi_fal.emulator.settings import FAILURES, Settings

PROGRAM = "python -m airflow_provider_uniapi_fal.emulator"

EXAMPLES = f"""\
examples:
  {PROGRAM} --port 8188
      serve on http://127.0.0.1:8188; point a connection there, with any key
  {PROGRAM} --queue-seconds 2 --run-seconds 5 --concurrency 4 --model-seconds kling-video=20
      a busy queue: positions fall as jobs end, videos take longer
  {PROGRAM} --fault 'lost-reply on=submit match=storm times=1'
      the first job whose prompt has "storm" in it is accepted, and its answer lost
  {PROGRAM} --fault 'rate-limit on=submit times=3 retry_after=2' --fault 'job match=cat failure=refused'
      three posts are turned away; jobs about cats are refused
  {PROGRAM} --fault 'body on=status status=PAUSED times=3' --fault 'turned-away because=locked match=rich'
      three statuses say a word that nobody knows; posts about the rich meet a locked account
  {PROGRAM} --kling-slots 5 --kling-success succeeded --luma-submit id --luma-download-url empty
      Kling turns the sixth parallel task away and spells success differently; Luma is sparing with its answers
  {PROGRAM} --fault 'turned-away family=kling because=kling-1102 times=1' --fault 'body on=status data.task_status=odd'
      Kling's resource pack is exhausted once; queries answer a state that nobody knows
  {PROGRAM} --tls --ca-file ca.pem --state jobs.jsonl --time-scale 60
      https, for clients that trust ca.pem; jobs survive a restart; an hour passes in a minute

one request may bring rules of its own, in a header:
  curl -H 'X-Emulator-Fault: lost-reply reset=true' -H 'Authorization: Key x' -d '{{"prompt": "a fox"}}' ADDRESS

the emulator's own endpoints (no key):
  GET  /_emulator/health     GET  /_emulator/account    GET  /_emulator/requests
  GET|POST|DELETE /_emulator/faults                     POST /_emulator/reset
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=PROGRAM,
        description="A local server that speaks the gateway's wire: no network, no key, real pictures and videos.",
        epilog=f"{_explained('faults', {name: fault.says for name, fault in FAULTS.items()})}\n"
        f"  a rule is a fault and on=({'|'.join(OPERATIONS)}), match=TEXT, times=N,\n"
        f"  family=({'|'.join(FAMILIES)}), and options of the fault:\n"
        f"{_options_of_faults()}\n"
        f"{_explained('failures, as fal words them (the others: docs/emulator.md)', FAILURES)}\n{EXAMPLES}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for each in dataclasses.fields(Settings):
        if each.name not in ("model_seconds", "faults"):
            _add_option(parser, each)
    parser.add_argument(
        "--model-seconds",
        action="append",
        default=[],
        metavar="PART=SECONDS",
        help="time that jobs run whose model id has PART in it; may be given often",
    )
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="RULE",
        help="a rule, in words or as JSON (see below); may be given often",
    )
    parser.add_argument(
        "--address-file", type=Path, metavar="FILE", help="write the address to this file, too"
    )
    parser.add_argument(
        "--verbose", action="store_true", help="log every request to stderr; never prompts or keys"
    )
    return parser


def read_settings(options: argparse.Namespace) -> Settings:
    """Return the settings that a command line says; ValueError says what is wrong with it."""
    given = {
        each.name: getattr(options, each.name)
        for each in dataclasses.fields(Settings)
        if each.name in options
    }
    return Settings(
        **{
            **given,
            "model_seconds": dict(_read_model_seconds(text) for text in options.model_seconds),
            "faults": tuple(Rule.read(text) for text in options.fault),
        }
    )


def as_arguments(settings: Mapping[str, Any]) -> list[str]:
    """Return the command line that says these settings; wrong ones raise as they do for ``Settings``."""
    checked = Settings(**settings)
    arguments = []
    for name in settings:
        value, option = getattr(checked, name), "--" + name.replace("_", "-")
        if name == "faults":
            arguments += [f"--fault={json.dumps(rule.as_mapping())}" for rule in value]
        elif name == "model_seconds":
            arguments += [f"{option}={part}={seconds}" for part, seconds in value.items()]
        elif isinstance(value, bool):
            arguments += [option] if value else []
        else:
            arguments.append(f"{option}={value}")
    return arguments


def _add_option(parser: argparse.ArgumentParser, each: dataclasses.Field[Any]) -> None:
    option, help_text = "--" + each.name.replace("_", "-"), each.metadata["help"]
    if isinstance(each.default, bool):
        parser.add_argument(option, action="store_true", help=help_text)
        return
    shown = "" if each.default == "" else " (default: %(default)s)"
    kind, choices = type(each.default), each.metadata["choices"] or None
    metavar = None if choices else {int: "N", float: "X"}.get(kind, "TEXT")
    parser.add_argument(
        option, type=kind, choices=choices, default=each.default, metavar=metavar, help=help_text + shown
    )


def _read_model_seconds(text: str) -> tuple[str, float]:
    part, equals, seconds = text.rpartition("=")
    try:
        if part and equals:
            return part, float(seconds)
    except ValueError:
        pass
    raise ValueError(f"--model-seconds is of the form kling-video=4, not {text!r}.")


def _explained(title: str, words: Mapping[str, str]) -> str:
    return f"{title}:\n" + "".join(f"  {word:<16} {says}\n" for word, says in words.items())


def _options_of_faults() -> str:
    lines = [
        f"    {name:<14} {' '.join(f'{key}={json.dumps(value)}' for key, value in fault.options.items())}\n"
        for name, fault in FAULTS.items()
        if fault.options
    ]
    return "".join(lines)
