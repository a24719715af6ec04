"""The verbs, called as Airflow calls them: its own parser reads the words, then the verb runs."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from airflow.cli.cli_parser import get_parser

from airflow_provider_uniapi_fal.ledger.command_line import CommandLineJournal
from tests.batch.stores import place, s3_place, s3_url
from tests.fakes import start

__all__ = ["place", "s3_place", "s3_url", "start"]


@dataclass(frozen=True)
class Ended:
    """How a verb ended, and what it wrote."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Fal = Callable[..., Ended]


@pytest.fixture
def journal(tmp_path: Path) -> CommandLineJournal:
    return CommandLineJournal(str(tmp_path / "jobs.jsonl"))


@pytest.fixture
def fal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, journal: CommandLineJournal
) -> Fal:
    """Run ``airflow fal`` with these words, with a journal of the test's own."""
    # The verb sets it for its process; after the test it is as before.
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "")
    monkeypatch.delenv("AIRFLOW_CONN_FAL_DEFAULT", raising=False)

    def run(*words: str) -> Ended:
        capsys.readouterr()
        with_journal = ["--journal", str(journal.path)] if words[0] in WITH_JOURNAL else []
        try:
            args = get_parser().parse_args(["fal", *words, *with_journal])
            args.func(args)
            code: object = 0
        except SystemExit as end:
            code = end.code
        wrote = capsys.readouterr()
        assert code is None or isinstance(code, int), code
        return Ended(code or 0, wrote.out, wrote.err)

    return run


WITH_JOURNAL = {"submit", "status", "wait", "result", "cancel", "land", "batch", "jobs", "doctor"}
