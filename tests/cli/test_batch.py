"""``airflow fal batch``: asks before many jobs, pays for each once, goes on where it ended."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console
from rich.progress import Progress

from tests.fakes import PROMPT, Start, posts, wait_until

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.ledger.command_line import CommandLineJournal
    from tests.cli.conftest import Fal


def table(folder: Path, *prompts: str) -> str:
    path = folder / "prompts.jsonl"
    rows = [
        {
            "key": f"row-{index}",
            "model": "flux/dev",
            "arguments": {"prompt": prompt, "image_size": {"width": 64, "height": 48}},
        }
        for index, prompt in enumerate(prompts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_table_becomes_media_and_a_manifest_that_verifies(start: Start, fal: Fal, tmp_path: Path) -> None:
    emulator = start()
    words = ("batch", table(tmp_path, "a fox", "a crow"), str(tmp_path / "night"))
    done = fal(*words, "-o", "json")
    assert done.code == 0, done.err
    assert "2 paid jobs to submit (2 of flux/dev)" in done.err
    counts = done.json["counts"]
    assert (counts["asked"], counts["succeeded"]) == (2, 2)
    assert sorted(path.name for path in (tmp_path / "night").glob("*.jpg")) == ["row-0.jpg", "row-1.jpg"]
    assert fal("manifest", "verify", str(tmp_path / "night" / "manifest.jsonl")).code == 0
    again = fal(*words, "-o", "json")
    assert (again.code, again.json["counts"]) == (0, counts)
    assert posts(emulator) == 2


def test_more_jobs_than_a_few_are_asked_about(start: Start, fal: Fal, tmp_path: Path) -> None:
    emulator = start()
    words = ("batch", table(tmp_path, "a fox", "a crow"), str(tmp_path / "night"), "--ask-above", "1")
    unasked = fal(*words)
    assert (unasked.code, posts(emulator)) == (8, 0)
    assert "2 paid jobs" in unasked.err
    assert not (tmp_path / "night").exists()
    assert (fal(*words, "--yes").code, posts(emulator)) == (0, 2)
    assert fal(*words).code == 0


def test_a_dry_run_submits_nothing(start: Start, fal: Fal, tmp_path: Path) -> None:
    emulator = start()
    done = fal("batch", table(tmp_path, "a fox"), str(tmp_path / "night"), "--dry-run", "-o", "json")
    assert (done.code, done.json["would_submit"], posts(emulator)) == (0, 1, 0)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--manifest", "account.csv"), ".jsonl"),
        (("--dialect", "smoke-signals"), "smoke-signals"),
        (("--name-template", "{nothing}"), "--name-template"),
        (("--max-jobs", "1"), "max_jobs"),
        (("--min-success-ratio", "2"), "--min-success-ratio"),
        (("--skip-existing", "no-such-manifest.jsonl"), "no-such-manifest.jsonl"),
        (("-c", "fal_nowhere"), "fal_nowhere"),
    ],
)
def test_wrong_words_are_refused_before_anything_is_paid(
    start: Start, fal: Fal, tmp_path: Path, words: tuple[str, ...], named: str
) -> None:
    emulator = start()
    done = fal("batch", table(tmp_path, "a fox", "a crow"), str(tmp_path / "night"), *words)
    assert done.code == 2, done.err
    assert named in done.err
    assert posts(emulator) == 0


def test_a_wrong_table_is_refused_with_every_wrong_row(start: Start, fal: Fal, tmp_path: Path) -> None:
    emulator = start()
    (tmp_path / "wrong.jsonl").write_text('{"arguments": 1}\n{"arguments": {}, "model": "://"}\n')
    done = fal("batch", str(tmp_path / "wrong.jsonl"), str(tmp_path / "night"))
    assert (done.code, posts(emulator)) == (2, 0)
    absent = fal("batch", str(tmp_path / "absent.jsonl"), str(tmp_path / "night"))
    assert absent.code == 2


def test_nothing_is_posted_if_the_batch_could_not_be_found_again(
    start: Start, fal: Fal, tmp_path: Path, journal: CommandLineJournal
) -> None:
    emulator = start()
    journal.path.mkdir()
    done = fal("batch", table(tmp_path, "a fox"), str(tmp_path / "night"))
    assert (done.code, posts(emulator)) == (1, 0)
    assert "Nothing was submitted" in done.err


def test_rows_that_do_not_fit_a_schema_are_refused_before_anything_is_paid(
    start: Start, fal: Fal, tmp_path: Path
) -> None:
    emulator = start()
    schema = tmp_path / "schema.json"
    schema.write_text('{"properties": {"prompt": {"maxLength": 5}}}')
    rows = [{"key": key, "arguments": {"prompt": key}} for key in ("a fox", "a badger")]
    other = {"key": "an otter", "model": "flux/dev", "arguments": {"prompt": "an otter"}}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, other]))
    words = ("batch", str(path), str(tmp_path / "night"), "-m", "flux/schnell")
    done = fal(*words, "--arguments-schema", str(schema))
    assert (done.code, emulator.requests()) == (2, [])
    assert "row 'a badger': arguments.prompt: at most 5 characters" in done.err
    assert "1 problems" in done.err
    assert (fal(*words).code, posts(emulator)) == (0, 3)


def test_a_row_that_fails_fails_the_verb_and_only_again_pays_for_it_again(
    start: Start, fal: Fal, tmp_path: Path
) -> None:
    emulator = start(faults=["job match=crow failure=refused times=1"])
    words = ("batch", table(tmp_path, "a fox", "a crow"), str(tmp_path / "night"), "-o", "json")
    first = fal(*words)
    assert first.code == 1
    assert (first.json["counts"]["succeeded"], first.json["counts"]["refused"]) == (1, 1)
    assert (fal(*words).code, posts(emulator)) == (1, 2)
    mended = fal(*words, "--again", "missing")
    assert (mended.code, posts(emulator)) == (0, 3)
    assert (fal(*words).code, posts(emulator)) == (0, 3)
    assert (fal(*words, "--again", "all").code, posts(emulator)) == (0, 5)


@pytest.mark.parametrize(
    "fault",
    ["job match=crow failure=refused", "job match=crow failure=completed-error", "lost-reply on=submit"],
)
def test_what_is_said_of_a_batch_that_fell_short_is_about_the_command_and_not_about_a_task(
    start: Start, fal: Fal, tmp_path: Path, fault: str
) -> None:
    start(faults=[fault])
    done = fal("batch", table(tmp_path, "a fox", "a crow"), str(tmp_path / "night"), "-o", "json")
    assert done.code in (1, 3)
    assert "A retry of the same command" in done.err
    assert "--again missing" in done.json["failure"]["retry_does"]
    assert not {"Airflow", "cleared", "task"} & set(done.err.replace(".", " ").split())


def test_a_lost_reply_is_one_unknown_row_and_never_posted_again(
    start: Start, fal: Fal, tmp_path: Path
) -> None:
    emulator = start(faults=["lost-reply on=submit match=crow times=1"])
    words = ("batch", table(tmp_path, "a fox", "a crow"), str(tmp_path / "night"), "-o", "json")
    done = fal(*words)
    assert (done.code, done.json["counts"]["unknown"]) == (3, 1)
    assert (fal(*words).code, posts(emulator)) == (3, 2)
    manifest = str(tmp_path / "night" / "manifest.jsonl")
    listed = fal("jobs", "--manifest", manifest, "-o", "json").json
    assert [(row["phase"], row["may_bill"]) for row in listed] == [("intent", "unknown")]


def test_an_interrupted_batch_says_so_and_the_same_command_goes_on(
    start: Start, fal: Fal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(run_seconds=1.5)
    words = ("batch", table(tmp_path, "a fox", "a crow"), str(tmp_path / "night"), "-o", "json")

    def interrupt() -> None:
        wait_until(lambda: posts(emulator) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    stopped = fal(*words)
    thread.join()
    assert stopped.code == 130
    assert "Run the same command again" in stopped.err
    assert (fal(*words).code, posts(emulator)) == (0, 2)


def test_the_progress_bar_counts_the_rows_that_are_over(
    start: Start, fal: Fal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(faults=["job match=crow failure=refused"])
    shown = Progress(console=Console(file=io.StringIO(), force_terminal=True))
    monkeypatch.setattr("airflow_provider_uniapi_fal.cli.batch.progress", lambda: shown)
    fal("batch", table(tmp_path, "a fox", "a crow", "an owl"), str(tmp_path / "night"))
    [task] = shown.tasks
    assert (task.completed, task.total) == (3, 3)
    assert task.description.startswith("3 of 3 rows are over")


def test_no_prompt_is_on_the_terminal_or_in_the_manifest_unasked(
    start: Start, fal: Fal, tmp_path: Path
) -> None:
    start()
    done = fal("batch", table(tmp_path, PROMPT), str(tmp_path / "night"))
    assert PROMPT not in done.out + done.err + (tmp_path / "night" / "manifest.jsonl").read_text()
    kept = fal("batch", table(tmp_path, PROMPT), str(tmp_path / "other"), "--include-arguments")
    assert kept.code == 0
    assert PROMPT in (tmp_path / "other" / "manifest.jsonl").read_text()
