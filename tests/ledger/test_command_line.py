"""The command line's journal: what was acknowledged is there, and what cannot be read is an error."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_provider_uniapi_fal.ledger.command_line import CommandLineJournal, JournalError, SubmitEntry
from airflow_provider_uniapi_fal.ledger.record import Phase
from airflow_provider_uniapi_fal.protocol.errors import unknown_outcome
from tests.fakes import ARGUMENTS, MODEL, PROMPT, handle


@pytest.fixture
def journal(tmp_path: Path) -> CommandLineJournal:
    return CommandLineJournal(str(tmp_path / "jobs.jsonl"))


def intent() -> SubmitEntry:
    return SubmitEntry.intent(MODEL, ARGUMENTS, "fal_default")


def test_the_last_state_of_each_submit_holds(journal: CommandLineJournal) -> None:
    one, other, third = intent(), intent(), intent()
    for entry in (one, other, one.submitted(handle()), third, other.ended(unknown_outcome("a reason"))):
        journal.write(entry)
    journal.write(one.submitted(handle()).delivered())
    phases = [entry.record.phase for entry in journal.entries()]
    assert phases == [Phase.DELIVERED, Phase.ENDED, Phase.INTENT]
    found = journal.entry_of("req-1")
    assert found is not None
    assert found.id == one.id
    assert journal.entry_of("req-2") is None


def test_batches_lie_beside_the_submits_and_are_told_apart(journal: CommandLineJournal) -> None:
    journal.write(intent())
    for path in ("s3://bucket/a.jsonl", "s3://bucket/b.jsonl", "s3://bucket/a.jsonl"):
        journal.write_batch(path)
    assert len(journal.entries()) == 1
    assert [entry.batch for entry in journal.batches()] == ["s3://bucket/a.jsonl", "s3://bucket/b.jsonl"]
    assert journal.batches()[0].written_at > journal.batches()[1].written_at


def test_what_a_killed_writer_left_of_a_line_is_passed_over_and_cut_off(journal: CommandLineJournal) -> None:
    journal.write(intent())
    with journal.path.open("ab") as file:
        file.write(b'{"id": "torn", "rec')
    assert len(journal.entries()) == 1
    journal.write(intent())
    assert len(journal.entries()) == 2
    assert b"torn" not in journal.path.read_bytes()


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"{}",
        b"[]",
        b'{"batch": 1, "written_at": 1}',
        b'{"batch": "x"}',
        b'{"id": "x"}',
        b"\xff\xfe",
        b"null",
    ],
)
def test_a_line_that_cannot_be_read_is_an_error_with_its_number(
    journal: CommandLineJournal, line: bytes
) -> None:
    journal.write(intent())
    journal.path.write_bytes(journal.path.read_bytes() + line + b"\n")
    with pytest.raises(JournalError, match="Line 2"):
        journal.entries()


def test_a_journal_that_is_not_there_is_empty_and_one_that_is_no_file_is_an_error(
    journal: CommandLineJournal, tmp_path: Path
) -> None:
    assert journal.entries() == []
    with pytest.raises(JournalError):
        CommandLineJournal(str(tmp_path)).entries()
    with pytest.raises(JournalError):
        CommandLineJournal(str(tmp_path)).write(intent())


def test_writers_at_once_lose_no_line(journal: CommandLineJournal) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: journal.write(intent()), range(64)))
    assert len(journal.entries()) == 64


def test_it_lies_in_airflows_home_and_holds_no_input() -> None:
    usual = CommandLineJournal()
    assert usual.path == Path(os.environ["AIRFLOW_HOME"], "uniapi_fal", "jobs.jsonl")
    usual.write(intent())
    try:
        assert PROMPT not in usual.path.read_text()
    finally:
        usual.path.unlink()
