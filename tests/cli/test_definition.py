"""The words of the command line: loaded at every start of Airflow, so light; and each leads to code."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from airflow.cli.cli_config import ActionCommand, GroupCommand
from airflow.models.connection import Connection
from airflow.utils.session import create_session

from airflow_provider_uniapi_fal.cli.definition import get_fal_commands
from airflow_provider_uniapi_fal.cli.terminal import ExitCode
from airflow_provider_uniapi_fal.emulator.running import EmulatorProcess
from airflow_provider_uniapi_fal.protocol.cadence import LONGEST, SHARE_OF_AGE, SHORTEST

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

PROJECT = Path(__file__).resolve().parents[2]
AIRFLOW = [sys.executable, "-m", "airflow"]


def actions(
    commands: Iterable[ActionCommand | GroupCommand], before: str = ""
) -> Iterator[tuple[str, ActionCommand]]:
    for command in commands:
        name = f"{before} {command.name}".strip()
        if isinstance(command, GroupCommand):
            yield from actions(command.subcommands, name)
        else:
            yield name, command


VERBS = dict(actions(get_fal_commands()))


def airflow(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*AIRFLOW, *words],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_the_words_load_nothing_that_airflow_has_not_loaded() -> None:
    script = (
        "import sys, airflow.cli.cli_config\n"
        "before = set(sys.modules)\n"
        "from airflow_provider_uniapi_fal.cli.definition import get_fal_commands\n"
        "get_fal_commands()\n"
        "print(*sorted(set(sys.modules) - before))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    own = "airflow_provider_uniapi_fal"
    assert set(done.stdout.split()) <= {own, f"{own}.cli", f"{own}.cli.definition"}


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_leads_to_code_and_has_a_help(name: str) -> None:
    command = VERBS[name]
    assert command.help
    [path] = [cell.cell_contents for cell in command.func.__closure__ or ()]
    module, _, function = path.rpartition(".")
    assert callable(getattr(__import__(module, fromlist=[function]), function))


def test_the_default_cadence_is_the_one_that_the_help_tells() -> None:
    [poke_interval] = [arg for arg in VERBS["fal wait"].args if "--poke-interval" in arg.flags]
    assert f"from {SHORTEST:g} to {LONGEST:g}" in poke_interval.kwargs["help"]
    assert "about a third of the job's age" in poke_interval.kwargs["help"]
    assert pytest.approx(SHARE_OF_AGE, abs=0.05) == 1 / 3


def test_the_page_has_every_verb_and_the_very_exit_codes() -> None:
    page = (PROJECT / "docs" / "cli.md").read_text()
    for name in VERBS:
        assert f"`airflow {name}`" in page or f"airflow {name} " in page, name
    rows = [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")]
    codes = [int(row) for row in rows if row.isdigit()]
    assert codes == [code.value for code in ExitCode]


def test_a_job_goes_through_the_real_entry_with_a_connection_from_the_metadata_database(
    airflow_database: Path, tmp_path: Path
) -> None:
    with EmulatorProcess(queue_seconds=0.0, run_seconds=0.0) as emulator, create_session() as session:
        connection = Connection("fal_in_database", "uniapi_fal", host=emulator.url, password="any-key")
        session.add(connection)
        session.commit()
        try:
            words = ("fal", "submit", "flux/dev", "-i", "prompt=a fox", "-c", "fal_in_database", "-o", "json")
            done = airflow(*words, "--journal", str(tmp_path / "jobs.jsonl"))
        finally:
            session.delete(connection)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["fal_conn_id"] == "fal_in_database"
        assert emulator.account()["totals"]["posts_received"] == 1


def test_the_emulators_options_are_its_own() -> None:
    done = airflow("fal", "emulator", "--port", "not-a-port")
    assert done.returncode == 2
    assert "argument --port" in done.stderr
