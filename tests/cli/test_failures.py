"""However a verb ends badly: in words, with its code, as JSON if that was asked for, and true about the money."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_uniapi_fal.ledger.command_line import CommandLineJournal, JournalError, SubmitEntry
from tests.batch.stores import s3_connection
from tests.fakes import MODEL, Start, posts
from tests.transport.servers import free_port

if TYPE_CHECKING:
    from tests.cli.conftest import Fal

FIELDS = {"kind", "what", "billed", "may_run", "retry_does"}


@pytest.fixture
def finished(start: Start, fal: Fal, tmp_path: Path) -> str:
    """Return a finished job, as a verb takes it."""
    start()
    handle = tmp_path / "handle.json"
    handle.write_text(fal("submit", MODEL, "-i", "prompt=x", "-o", "json").out)
    return f"@{handle}"


@pytest.fixture
def nowhere(tmp_path: Path) -> str:
    """Return a place that cannot be written, because it is below a file."""
    (tmp_path / "file").write_text("")
    return str(tmp_path / "file" / "below")


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> str:
    """Return a place in a store where nobody answers, which S3's client tells of by an error of its own."""
    monkeypatch.setenv("AIRFLOW_CONN_UNREACHABLE", s3_connection(f"http://127.0.0.1:{free_port()}"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return "s3://unreachable@bucket/x.jsonl"


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "table.jsonl"
    path.write_text(json.dumps({"key": "a", "model": MODEL, "arguments": {"prompt": "p"}}) + "\n")
    return str(path)


def failure_of(out: str) -> dict[str, Any]:
    failure: dict[str, Any] = json.loads(out)["failure"]
    assert failure.keys() >= FIELDS
    return failure


def test_a_place_that_cannot_be_written_is_storage_and_not_the_gateway(
    fal: Fal, finished: str, nowhere: str
) -> None:
    done = fal("land", finished, nowhere, "-o", "json")
    assert done.code == 9
    failure = failure_of(done.out)
    assert (failure["kind"], failure["billed"]) == ("storage", "maybe")
    assert "NotADirectoryError" in done.err
    assert "XCom" not in done.err


def test_a_file_that_its_server_refuses_is_still_the_gateway(start: Start, fal: Fal, tmp_path: Path) -> None:
    start(faults=["server-error on=media status=400"])
    handle = tmp_path / "handle.json"
    handle.write_text(fal("submit", MODEL, "-i", "prompt=x", "-o", "json").out)
    assert fal("land", f"@{handle}", str(tmp_path / "media")).code == 6


@pytest.mark.parametrize("verb", ["land", "show", "verify", "batch"])
def test_storage_that_cannot_be_reached_is_told_of_in_words(
    fal: Fal, finished: str, table: str, unreachable: str, verb: str
) -> None:
    words = {
        "land": ("land", finished, unreachable),
        "show": ("manifest", "show", unreachable),
        "verify": ("manifest", "verify", unreachable),
        "batch": ("batch", table, unreachable),
    }[verb]
    done = fal(*words, "-o", "json")
    assert (done.code, failure_of(done.out)["kind"]) == (9, "storage")
    if verb == "land":
        assert "storage says EndpointConnectionError" in done.err
        assert "nothing is submitted" in done.err
    else:
        assert "Storage failed" in done.err
        assert "Nothing was submitted" in done.err


@pytest.mark.parametrize("verb", ["land", "show", "batch"])
def test_a_storage_connection_that_is_not_there_is_refused_at_once(
    fal: Fal, finished: str, table: str, verb: str
) -> None:
    words = {
        "land": ("land", finished, "s3://bucket/x"),
        "show": ("manifest", "show", "s3://bucket/x.jsonl"),
        "batch": ("batch", table, "s3://bucket/x"),
    }[verb]
    done = fal(*words, "--storage-conn-id", "not_there", "-o", "json")
    assert (done.code, failure_of(done.out)["kind"]) == (2, "refused")
    assert "not_there" in done.err


def test_a_batch_into_a_place_that_cannot_be_read_asks_and_posts_nothing(
    start: Start, fal: Fal, table: str, nowhere: str
) -> None:
    emulator = start()
    done = fal("batch", table, nowhere, "--ask-above", "0", "-o", "json")
    assert (done.code, posts(emulator)) == (9, 0)
    failure = failure_of(done.out)
    assert (failure["kind"], failure["billed"], failure["may_run"]) == ("storage", "no", False)
    assert "paid jobs" not in done.err


def test_what_fails_after_the_post_never_says_that_nothing_was_submitted(
    start: Start, fal: Fal, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start()

    def no_room(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("airflow_provider_uniapi_fal.cli.jobs.show", no_room)
    done = fal("submit", MODEL, "-i", "prompt=x", "-o", "json")
    assert posts(emulator) == 1
    failure = failure_of(done.out)
    assert (failure["billed"], failure["may_run"]) == ("maybe", True)
    assert "Nothing was submitted" not in done.err
    assert "airflow fal jobs" in done.err
    assert "submits one more job" in done.err


def test_the_fate_of_the_money_is_told_even_where_standard_output_takes_nothing(
    start: Start, fal: Fal, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start()

    def broken(*_: object) -> None:
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")

    monkeypatch.setattr("airflow_provider_uniapi_fal.cli.terminal._write_json", broken)
    done = fal("submit", MODEL, "-i", "prompt=x", "-o", "json")
    assert (done.code, posts(emulator)) == (9, 1)
    assert "'airflow fal jobs' lists it" in done.err
    assert "Nothing was submitted" not in done.err


def full_after(monkeypatch: pytest.MonkeyPatch, writes: int) -> None:
    """Let there be no room for the journal after so many states of submits."""
    really_write = CommandLineJournal.write
    left = iter(range(writes))

    def write(journal: CommandLineJournal, entry: SubmitEntry) -> None:
        if next(left, None) is None:
            raise JournalError("The journal cannot be written (No space left on device).")
        really_write(journal, entry)

    monkeypatch.setattr(CommandLineJournal, "write", write)


def test_a_refusal_that_the_journal_does_not_take_is_told_and_does_not_pass_for_nothing_sent(
    start: Start, fal: Fal, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(faults=["turned-away because=locked on=submit times=1"])
    full_after(monkeypatch, 1)
    done = fal("submit", MODEL, "-i", "prompt=x", "-o", "json")
    assert (done.code, posts(emulator), failure_of(done.out)["kind"]) == (5, 1, "balance")
    assert "No space left on device" in done.err
    assert "The same command is refused" in done.err
    assert "Nothing was s" not in done.err
    assert (fal("submit", MODEL, "-i", "prompt=x").code, posts(emulator)) == (3, 1)


def test_a_doctor_without_room_for_the_journal_claims_no_more_than_that_it_submitted_nothing(
    start: Start, fal: Fal, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start()
    full_after(monkeypatch, 0)
    done = fal("doctor", "--yes")
    assert (done.code, posts(emulator)) == (1, 0)
    assert emulator.requests() != []
    assert "Nothing was submitted" in done.err
    assert "Nothing was sent" not in done.err


def test_a_defect_keeps_its_traceback(start: Start, fal: Fal, monkeypatch: pytest.MonkeyPatch) -> None:
    start()

    def defect(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("airflow_provider_uniapi_fal.cli.jobs.CommandLineJournal", defect)
    with pytest.raises(ZeroDivisionError):
        fal("submit", MODEL, "-i", "prompt=x")


def test_an_unknown_request_has_one_code_whoever_asks(start: Start, fal: Fal, tmp_path: Path) -> None:
    start()
    job = ("4b1f5a5e-0000-4000-8000-000000000000", "--model", MODEL)
    ends = {
        "status": fal("status", *job).code,
        "wait": fal("wait", *job, "--quiet", "--poke-interval", "0.1").code,
        "result": fal("result", *job).code,
        "cancel": fal("cancel", *job).code,
        "land": fal("land", job[0], str(tmp_path / "media"), *job[1:]).code,
    }
    assert ends == dict.fromkeys(ends, 7)


@pytest.mark.parametrize("hours", ["1e9", "1e300", "0", "-1", "nan"])
def test_hours_lead_to_a_date(fal: Fal, hours: str) -> None:
    done = fal("jobs", "--offline", "--hours", hours)
    assert (done.code, "number of hours" in done.err) == (2, True)


@pytest.mark.parametrize(
    "words", [("-i", "x:=" + "[" * 100_000), ("-a", '{"x":' + "[" * 100_000), ("-i", 'x:={"a"')]
)
def test_json_that_cannot_be_read_is_refused_and_not_repeated(
    start: Start, fal: Fal, words: tuple[str, ...]
) -> None:
    emulator = start()
    done = fal("submit", MODEL, *words)
    assert (done.code, posts(emulator)) == (2, 0)
    assert "no JSON" in done.err
    assert len(done.err) < 1000


def test_every_end_is_printed_as_json(
    start: Start, fal: Fal, journal: CommandLineJournal, tmp_path: Path
) -> None:
    start()
    ends = {
        "refused": fal("land", "req-1", str(tmp_path), "-m", MODEL, "--storage-conn-id", "x", "-o", "json"),
        "declined": fal("doctor", "-o", "json"),
        "failed": fal("manifest", "show", str(tmp_path / "none.jsonl"), "-o", "json"),
        "input": fal("submit", MODEL, "-i", "x:={", "-o", "json"),
    }
    journal.path.write_text("broken\n")
    ends["failed "] = fal("submit", MODEL, "-i", "prompt=x", "-o", "json")
    for kind, done in ends.items():
        failure = failure_of(done.out)
        assert failure["kind"] == kind.strip()
        assert (failure["billed"], failure["may_run"]) == ("no", False)
        assert failure["what"] in done.err
