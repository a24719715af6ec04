"""The verbs on one job: what they refuse before anything is sent, what they post, and how they end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.ledger.record import Phase
from tests.fakes import ARGUMENTS, KEY, MODEL, PROMPT, Start, posts, set_connection

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.ledger.command_line import CommandLineJournal
    from airflow_provider_uniapi_fal.protocol.messages import HttpRequest
    from tests.cli.conftest import Fal

INPUTS = ("-i", f"prompt={PROMPT}", "-i", 'image_size:={"width": 64, "height": 48}')


def submitted(fal: Fal, tmp_path: Path) -> str:
    """Submit a job and return the word that leads to it."""
    done = fal("submit", MODEL, *INPUTS, "-o", "json")
    assert done.code == 0, done.err
    (tmp_path / "handle.json").write_text(done.out)
    return f"@{tmp_path / 'handle.json'}"


def test_a_job_goes_from_submit_to_storage(start: Start, fal: Fal, tmp_path: Path) -> None:
    emulator = start()
    job = submitted(fal, tmp_path)
    assert fal("status", job, "-o", "json").json["state"] in ("pending", "running", "succeeded")
    result = fal("wait", job, "--poke-interval", "0.05", "-o", "json")
    assert (result.code, len(result.json["media"])) == (0, 1)
    assert fal("result", job, "-o", "json").json["data"] == result.json["data"]
    landed = fal("land", job, str(tmp_path / "media"), "--name", "lighthouse", "-o", "json").json
    assert [Path(file["path"]).name for file in landed] == ["lighthouse.jpg"]
    assert (tmp_path / "media" / "lighthouse.jpg").stat().st_size == landed[0]["bytes"]
    assert posts(emulator) == 1


def test_what_is_submitted_is_what_was_written(
    start: Start, fal: Fal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    sent: list[HttpRequest] = []
    really_post = FalHook.post

    def post(hook: FalHook, model: str, request: HttpRequest, **options: Any) -> Any:
        sent.append(request)
        return really_post(hook, model, request, **options)

    monkeypatch.setattr(FalHook, "post", post)
    (tmp_path / "input.json").write_text(json.dumps({"prompt": "from the file", "seed": 1}))
    words = ("-a", f"@{tmp_path / 'input.json'}", "-i", "prompt=from the words", "-i", "duration=5")
    assert (
        fal(
            "submit", "fal-ai/flux/dev", *words, "--input", "seed:=7", "--no-store-io", "--priority", "low"
        ).code
        == 0
    )
    [request] = sent
    assert request.path == "/flux/dev"
    assert request.json == {"prompt": "from the words", "duration": "5", "seed": 7}
    assert dict(request.headers) == {"X-Fal-Store-IO": "0", "X-Fal-Queue-Priority": "low"}


def test_a_submit_says_what_it_will_do_before_it_is_paid(start: Start, fal: Fal) -> None:
    emulator = start()
    done = fal("submit", MODEL, *INPUTS)
    assert f"Submitting one paid job: {MODEL} at {emulator.url}, connection fal_default." in done.err


def test_a_dry_run_submits_nothing_and_leaves_nothing_in_the_journal(
    start: Start, fal: Fal, journal: CommandLineJournal
) -> None:
    emulator = start()
    done = fal("submit", MODEL, *INPUTS, "--dry-run", "-o", "json")
    assert (done.code, done.json["arguments"]) == (0, ARGUMENTS)
    assert posts(emulator) == 0
    assert journal.entries() == []


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("submit", "https://fal.run/flux", "-i", "prompt=x"), "model"),
        (("submit", MODEL, "-i", "prompt"), "NAME=TEXT"),
        (("submit", MODEL, "-i", "seed:=seven"), "seed"),
        (("submit", MODEL, "-a", "[1]"), "--arguments"),
        (("submit", MODEL, "-a", "@no-such-file"), "no-such-file"),
        (("submit", MODEL, "-i", "prompt=x", "--runner-hint", " "), "runner_hint"),
        (("submit", MODEL, "-i", "image_url=not-an-address"), "arguments.image_url"),
        (("submit", MODEL, "-i", "prompt=x", "--dialect", "smoke-signals"), "smoke-signals"),
        (("submit", MODEL, "-i", "prompt=x", "--start-timeout", "-1"), "--start-timeout"),
        (("status", "req-nobody-knows"), "req-nobody-knows"),
        (("status", "../../v1/models", "-m", "flux"), "request_id"),
        (("wait", "http://elsewhere.invalid/nothing"), "status_url"),
        (("wait", "req-1", "-m", "flux", "--timeout", "soon"), "--timeout"),
        (("result", '@{"a": 1}'), "JOB"),
        (("land", "req-1", "/tmp/x", "-m", "flux", "--name", "../up"), "key"),
        (("land", "req-1", "gopher://x/y", "-m", "flux"), "gopher"),
        (("manifest", "show", "file:///x", "--outcome", "splendid"), "--outcome"),
        (("no-such-verb",), "no-such-verb"),
    ],
)
def test_bad_input_is_refused_by_name_before_anything_is_sent(
    start: Start, fal: Fal, words: tuple[str, ...], named: str
) -> None:
    emulator = start()
    done = fal(*words)
    assert done.code == 2, done.err
    assert named in done.err
    assert emulator.requests() == []


SCHEMA = {"type": "object", "properties": {"seed": {"type": "integer"}}, "required": ["prompt"]}
KONTEXT = "flux-pro/kontext/text-to-image"


@pytest.mark.parametrize("form", ["file", "address", "openapi", "shipped"])
def test_input_that_does_not_fit_a_schema_is_refused_before_anything_is_paid(
    start: Start, fal: Fal, tmp_path: Path, form: str
) -> None:
    emulator = start()
    path = tmp_path / "schema.json"
    body = {"content": {"application/json": {"schema": SCHEMA}}}
    openapi = {"openapi": "3.0.4", "paths": {"/": {"post": {"requestBody": body}}}}
    path.write_text(json.dumps(openapi if form == "openapi" else SCHEMA))
    schema = {"shipped": f"fal/{KONTEXT}", "address": path.as_uri()}.get(form, str(path))
    words = ("submit", KONTEXT, "--arguments-schema", schema, "-i")
    wrong = fal(*words, "seed=a word nobody may read")
    assert (wrong.code, emulator.requests()) == (2, [])
    assert "arguments.prompt: is needed" in wrong.err
    assert "arguments.seed: a whole number" in wrong.err
    assert "nobody may read" not in wrong.err
    assert (fal(*words, "prompt=a fox").code, posts(emulator)) == (0, 1)


@pytest.mark.parametrize("content", [None, "no JSON", "[]", '{"type": "splendid"}'])
def test_a_schema_that_is_none_is_refused_before_anything_is_paid(
    start: Start, fal: Fal, tmp_path: Path, content: str | None
) -> None:
    emulator = start()
    path = tmp_path / "schema.json"
    if content is not None:
        path.write_text(content)
    done = fal("submit", MODEL, *INPUTS, "--arguments-schema", str(path))
    assert (done.code, emulator.requests()) == (2, [])
    assert "arguments_schema" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ("submit", MODEL, "-i", "prompt=x"),
        ("status", "req-1", "-m", MODEL),
        ("wait", "req-1", "-m", MODEL),
        ("result", "req-1", "-m", MODEL),
        ("cancel", "req-1", "-m", MODEL),
        ("land", "req-1", "/tmp/x", "-m", MODEL),
        ("doctor", "--yes"),
    ],
)
def test_without_a_connection_a_verb_says_which_one_is_missing(fal: Fal, words: tuple[str, ...]) -> None:
    done = fal(*words, "-c", "fal_nowhere")
    assert done.code == 2, done.err
    assert "fal_nowhere" in done.err
    assert "Nothing was sent" in done.err


@pytest.mark.parametrize(
    "words",
    [
        ("submit", MODEL, "-i", "prompt=x"),
        ("status", "req-1", "-m", MODEL),
        ("wait", "req-1", "-m", MODEL),
        ("result", "req-1", "-m", MODEL),
        ("result", f"http://127.0.0.1/fal-ai/{MODEL}/requests/req-1/status"),
        ("cancel", "req-1", "-m", MODEL),
        ("land", "req-1", "/tmp/x", "-m", MODEL),
        ("batch", "prompts.jsonl", "/tmp/x", "--yes"),
        ("doctor", "--yes"),
    ],
)
def test_a_connection_of_another_type_is_refused_by_every_verb_before_anything_is_sent(
    start: Start,
    fal: Fal,
    monkeypatch: pytest.MonkeyPatch,
    journal: CommandLineJournal,
    words: tuple[str, ...],
) -> None:
    emulator = start()
    elastic = {"conn_type": "elasticsearch", "host": emulator.url, "password": "a-secret-of-it"}
    monkeypatch.setenv("AIRFLOW_CONN_ES", json.dumps(elastic))
    done = fal(*words, "-c", "es")
    assert (done.code, emulator.requests(), journal.entries()) == (5, [], []), done.err
    for word in ("'elasticsearch'", "'uniapi_fal'", "Nothing was sent"):
        assert word in done.err
    assert "a-secret-of-it" not in done.err


def test_a_lost_reply_is_told_honestly_and_not_posted_again(
    start: Start, fal: Fal, journal: CommandLineJournal
) -> None:
    emulator = start()
    emulator.add_fault("lost-reply on=submit times=1")
    lost = fal("submit", MODEL, *INPUTS, "-o", "json")
    assert lost.code == 3
    assert lost.json["failure"]["kind"] == "submit_outcome_unknown"
    assert "may still be running" in lost.err
    assert "may have been billed" in lost.err
    assert [entry.record.phase for entry in journal.entries()] == [Phase.INTENT]
    again = fal("submit", MODEL, *INPUTS)
    assert again.code == 3
    assert "--on-unknown-submit" in again.err
    assert posts(emulator) == 1
    other = fal("submit", MODEL, "-i", "prompt=something else")
    assert (other.code, posts(emulator)) == (0, 2)
    agreed = fal("submit", MODEL, *INPUTS, "--on-unknown-submit", "resubmit")
    assert (agreed.code, posts(emulator)) == (0, 3)
    assert fal("submit", MODEL, *INPUTS).code == 0


def test_a_submit_that_failed_and_may_have_been_billed_is_not_posted_again(start: Start, fal: Fal) -> None:
    emulator = start()
    emulator.add_fault("turned-away because=failure on=submit times=1")
    failed = fal("submit", MODEL, *INPUTS, "-o", "json")
    again = fal("submit", MODEL, *INPUTS, "-o", "json")
    assert (failed.code, again.code, posts(emulator)) == (1, 1, 1)
    for ended in (failed, again):
        assert "may have been billed" in ended.err
        assert "the same command is refused" in ended.err
        assert "--on-unknown-submit" in ended.err
        assert "clear the task" not in ended.err
        assert ended.json["failure"]["kind"] == "job_failed"
    assert "nothing was sent now" in again.err
    agreed = fal("submit", MODEL, *INPUTS, "--on-unknown-submit", "resubmit")
    assert (agreed.code, posts(emulator)) == (0, 2)
    assert (fal("submit", MODEL, *INPUTS).code, posts(emulator)) == (0, 3)


def test_a_refused_submit_is_posted_again_by_the_same_command(start: Start, fal: Fal) -> None:
    emulator = start()
    emulator.add_fault("turned-away because=locked on=submit times=1")
    assert fal("submit", MODEL, *INPUTS).code == 5
    assert (fal("submit", MODEL, *INPUTS).code, posts(emulator)) == (0, 2)


def test_an_interrupted_submit_is_unknown_and_says_so(
    start: Start, fal: Fal, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(FalHook, "post", interrupted)
    assert fal("submit", MODEL, *INPUTS).code == 3
    monkeypatch.undo()


def test_no_post_leaves_without_its_intent_in_the_journal(
    start: Start, fal: Fal, journal: CommandLineJournal
) -> None:
    emulator = start()
    journal.path.mkdir()
    done = fal("submit", MODEL, *INPUTS)
    assert (done.code, posts(emulator)) == (1, 0)
    assert "Nothing was submitted" in done.err


def test_a_journal_that_cannot_be_read_stops_the_submit(
    start: Start, fal: Fal, journal: CommandLineJournal
) -> None:
    emulator = start()
    journal.path.write_text("not a record\n")
    done = fal("submit", MODEL, *INPUTS)
    assert (done.code, posts(emulator)) == (1, 0)
    assert "Line 1" in done.err


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        ("turned-away because=bad-key", 5),
        ("turned-away because=locked", 5),
        ("rate-limit times=9 retry_after=0", 6),
    ],
)
def test_a_refused_submit_has_the_exit_code_of_its_reason(
    start: Start, fal: Fal, journal: CommandLineJournal, fault: str, code: int
) -> None:
    start().add_fault(f"{fault} on=submit")
    assert fal("submit", MODEL, *INPUTS).code == code
    assert [entry.record.phase for entry in journal.entries()] == [Phase.ENDED]


def test_a_gateway_that_is_not_there_has_its_exit_code(fal: Fal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airflow_provider_uniapi_fal.protocol.retrying.backoff", lambda attempt, jitter: 0.0)
    set_connection(monkeypatch, "http://127.0.0.1:9")
    done = fal("submit", MODEL, *INPUTS)
    assert done.code == 6
    assert "nothing was sent" in done.err


@pytest.mark.parametrize(("failure", "code"), [("refused", 1), ("result-422", 1), ("completed-error", 1)])
def test_a_job_that_failed_fails_its_wait_and_ends_in_the_journal(
    start: Start, fal: Fal, journal: CommandLineJournal, tmp_path: Path, failure: str, code: int
) -> None:
    start(failure=failure)
    done = fal("wait", submitted(fal, tmp_path), "--poke-interval", "0.05", "-o", "json")
    assert done.code == code
    assert done.json["failure"]["billed"] in ("no", "maybe")
    assert [entry.record.phase for entry in journal.entries()] == [Phase.ENDED]


def test_a_wait_whose_time_is_over_says_that_the_job_may_still_run(
    start: Start, fal: Fal, tmp_path: Path
) -> None:
    start(stuck=True)
    job = submitted(fal, tmp_path)
    done = fal("wait", job, "--timeout", "0.3", "--poke-interval", "0.1")
    assert done.code == 4
    assert "may still be running" in done.err
    cancelled = fal("wait", job, "--timeout", "0.3", "--poke-interval", "0.1", "--cancel-on-timeout")
    assert cancelled.code == 4
    assert "may still be running" not in cancelled.err


@pytest.mark.parametrize("dialect", ["fal", "kling", "luma"])
@pytest.mark.parametrize("verb", ["result", "land"])
def test_a_result_that_is_asked_for_before_the_job_has_ended_is_to_be_waited_for(
    start: Start, fal: Fal, tmp_path: Path, dialect: str, verb: str
) -> None:
    start(stuck=True)
    model = {"fal": MODEL, "kling": "videos/text2video", "luma": "generations"}[dialect]
    handle = tmp_path / "handle.json"
    prompt = "user_prompt=x" if dialect == "luma" else "prompt=x"
    handle.write_text(fal("submit", model, "-i", prompt, "--dialect", dialect, "-o", "json").out)
    done = fal(verb, f"@{handle}", *([str(tmp_path / "media")] if verb == "land" else []), "-o", "json")
    assert (done.code, done.json["failure"]["may_run"]) == (6, True)
    assert "has not ended yet" in done.err
    assert "airflow fal wait" in done.err
    for blamed in ("network", "understood"):
        assert blamed not in done.err


def test_a_cancel_says_what_it_means_for_the_money(start: Start, fal: Fal, tmp_path: Path) -> None:
    start(stuck=True)
    job = submitted(fal, tmp_path)
    removed = fal("cancel", job, "-o", "json")
    assert (removed.code, removed.json["outcome"]) == (0, "removed")
    late = fal("cancel", job, "-o", "json")
    assert (late.code, late.json["outcome"]) == (1, "already_completed")
    assert "paid" in late.json["means"]


def test_a_job_is_found_by_its_id_through_the_journal_by_its_address_and_by_its_model(
    start: Start, fal: Fal
) -> None:
    start(stuck=True)
    handle = fal("submit", MODEL, *INPUTS, "-o", "json").json
    for words in (
        (handle["request_id"],),
        (handle["request_id"], "-m", MODEL),
        (handle["status_url"],),
        (handle["status_url"].replace("127.0.0.1", "queue.fal.run"),),
    ):
        assert fal("status", *words, "-o", "json").json["state"] == "pending", words


@pytest.mark.parametrize(("dialect", "model"), [("kling", "videos/text2video"), ("luma", "generations")])
def test_a_job_of_another_protocol_is_found_by_its_id_and_by_its_address(
    start: Start, fal: Fal, dialect: str, model: str
) -> None:
    emulator = start(stuck=True)
    prompt = {"kling": "prompt=a fox", "luma": "user_prompt=a fox"}[dialect]
    job = fal("submit", model, "-i", prompt, "--dialect", dialect, "-o", "json").json
    path = job["status_url"].removeprefix(emulator.url)
    for words in (
        (job["request_id"],),
        (job["request_id"], "-m", model, "--dialect", dialect),
        (job["status_url"],),
        (job["status_url"], "--dialect", dialect),
    ):
        assert fal("status", *words, "-o", "json").json["state"] in ("pending", "running"), words
        assert emulator.requests()[-1]["path"] == path, words
    assert fal("status", job["status_url"], "--dialect", "fal").code == 2
    assert fal("status", job["status_url"], "--dialect", "smoke-signals").code == 2


def test_media_of_a_result_are_landed_although_the_gateway_has_forgotten_it(
    start: Start, fal: Fal, tmp_path: Path
) -> None:
    start(result_seconds=0.5)
    job = submitted(fal, tmp_path)
    found = fal("wait", job, "--poke-interval", "0.05", "-o", "json")
    (tmp_path / "result.json").write_text(found.out)
    while fal("result", job).code != 7:
        pass
    assert fal("land", f"@{tmp_path / 'result.json'}", str(tmp_path / "media")).code == 0


def test_landed_media_may_be_called_by_the_request_alone(start: Start, fal: Fal, tmp_path: Path) -> None:
    start()
    job = submitted(fal, tmp_path)
    assert fal("wait", job, "--poke-interval", "0.05").code == 0
    done = fal("land", job, str(tmp_path / "media"), "--name-template", "{request_id}")
    assert done.code == 0, done.err
    [file] = (tmp_path / "media").iterdir()
    assert file.stem in done.out
    assert file.stem != "request-id"


def test_neither_key_nor_prompt_is_in_the_journal_or_on_the_terminal(
    start: Start, fal: Fal, journal: CommandLineJournal, tmp_path: Path
) -> None:
    start()
    job = submitted(fal, tmp_path)
    wrote = [fal("submit", MODEL, *INPUTS), fal("status", job), fal("wait", job), fal("jobs")]
    text = journal.path.read_text() + "".join(done.out + done.err for done in wrote)
    assert KEY not in text
    assert PROMPT not in text


def test_a_terminal_does_not_obey_what_a_gateway_writes(start: Start, fal: Fal, tmp_path: Path) -> None:
    start(failure="completed-error", error_type="\x1b[2Jgone")
    job = submitted(fal, tmp_path)
    wrote = [fal("status", job), fal("wait", job, "--poke-interval", "0.05")]
    assert all("\x1b[2J" not in done.out + done.err for done in wrote)


def test_a_table_names_every_file_and_marks_the_flagged(start: Start, fal: Fal, tmp_path: Path) -> None:
    start(flagged=True)
    done = fal("wait", submitted(fal, tmp_path), "--poke-interval", "0.05")
    head, row = done.out.splitlines()
    assert head.split()[:3] == ["where", "content_type", "width"]
    assert "images[0]" in row
    assert " yes " in row
