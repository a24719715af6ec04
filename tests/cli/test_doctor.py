"""The doctor against gateways of every kind: one job at most, after asking, and the right conclusions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_uniapi_fal.cli.doctor import (
    BEARER,
    CANCEL,
    LOGS,
    MEDIA,
    NO_TELLING,
    NOT_ASKED,
    OF_THE_JOB,
    PENDING,
    REFUSAL,
    RESULT_PATHS,
    RETENTION,
    STATUS_PATHS,
    STREAM,
    UNASKABLE,
    UNKNOWN,
    URLS,
    WRONG_KEY,
    Exchange,
    bearer_finding,
    cancel_finding,
    shape,
)
from airflow_provider_uniapi_fal.protocol.messages import HttpReply, HttpRequest
from tests.fakes import KEY, ScriptedServer, Start, handle, posts, set_connection
from tests.fakes import Exchange as Exchanged
from tests.transport.servers import free_port

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.ledger.command_line import CommandLineJournal
    from tests.cli.conftest import Fal


def answers(findings: list[dict[str, Any]]) -> dict[str, str]:
    return {finding["question"]: finding["answer"] for finding in findings}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {URLS: "no, they name queue.fal.run; only their paths are used", PENDING: "202", CANCEL: "yes"}),
        ({"urls": "gateway"}, {URLS: "yes, they name this gateway"}),
        ({"urls": "missing"}, {URLS: "there are none; paths are built from the id"}),
        ({"urls": "foreign"}, {URLS: "no, they name elsewhere.invalid; only their paths are used"}),
        ({"pending_code": 200}, {PENDING: "200"}),
        ({"run_seconds": 0.0}, {PENDING: "not seen: the job was too quick", CANCEL: "yes"}),
        ({"found_at": "whole"}, {STATUS_PATHS: "/flux/schnell/requests/<id>/status"}),
        (
            {"url_path": "whole", "found_at": "app"},
            {STATUS_PATHS: "/flux/requests/<id>/status", RESULT_PATHS: "/flux/requests/<id>"},
        ),
        (
            {"url_path": "whole", "found_at": "whole"},
            {
                STATUS_PATHS: "the one that the gateway named",
                RESULT_PATHS: "the one that the gateway named and 1 more",
            },
        ),
        ({"cancel": "not-allowed"}, {CANCEL: "no: what is submitted runs to its end"}),
        ({"cancel": "not-found"}, {CANCEL: "no: what is submitted runs to its end"}),
        ({"cancel_words": "detail"}, {CANCEL: "yes"}),
        ({"logs": "missing"}, {LOGS: "no, or this model writes none"}),
        (
            {},
            {
                LOGS: "yes",
                BEARER: "no",
                STREAM: "no; statuses are polled",
                MEDIA: "where they may be fetched from",
            },
        ),
        ({"stream": "offered"}, {STREAM: "yes"}),
        ({"stream": "not-allowed"}, {STREAM: "no; statuses are polled"}),
        ({}, {RETENTION: "at least an hour, as fal says of this length; not measured; fetch at once"}),
        (
            {"data_uris": True},
            {
                RETENTION: "at least six minutes, as fal says of this length; not measured; fetch at once",
                MEDIA: "where they may be fetched from",
            },
        ),
    ],
)
def test_it_finds_out_how_this_gateway_answers(
    start: Start, fal: Fal, settings: dict[str, Any], expected: dict[str, str]
) -> None:
    emulator = start(**{"run_seconds": 0.8, "urls": "fal", **settings})
    done = fal("doctor", "--yes", "-o", "json")
    assert done.code == 0, done.err
    found = answers(done.json["findings"])
    assert {question: found[question] for question in expected} == expected
    assert found["Is the key accepted?"] == "yes"
    assert posts(emulator) == 1


#: What the wire's description leaves open, and the question that each leads to.
OPEN = {
    "URLs rewritten": URLS,
    "path of a status": STATUS_PATHS,
    "path of a result": RESULT_PATHS,
    "200 or 202": PENDING,
    "cancel proxied": CANCEL,
    "401": "What does a wrong key answer?",
    "404": "What does an unknown request answer?",
    "403, 429, no channel": "What do 403, 429 and a model without a channel answer?",
    "X-Fal headers": "Are the X-Fal-… headers passed on?",
    "logs": LOGS,
    "fal_webhook": "Is fal_webhook passed on?",
    "retention": RETENTION,
    "Bearer": BEARER,
    "Luma paths": "Is there something at /luma/generations/0?",
    "Kling's external_task_id": "Does Kling honour external_task_id?",
    "refund": "Is a job that failed refunded?",
}


def test_every_open_question_is_asked_or_named_as_one_that_is_not(start: Start, fal: Fal) -> None:
    emulator = start(run_seconds=0.8)
    found = answers(fal("doctor", "--yes", "-o", "json").json["findings"])
    assert set(OPEN.values()) <= found.keys()
    assert {question for question, answer in found.items() if answer == NOT_ASKED} == UNASKABLE.keys()
    free = fal("doctor", "--free", "-o", "json").json["findings"]
    assert answers(free).keys() == found.keys()
    assert {
        finding["question"] for finding in free if finding["answer"] == NOT_ASKED
    } == UNASKABLE.keys() | set(OF_THE_JOB)
    assert all(finding["seen"] for finding in free)
    assert posts(emulator) == 1


def test_a_gateway_that_wants_another_word_before_the_key_is_told_of_with_the_extra(
    fal: Fal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(exchange: Exchanged) -> None:
        word = exchange.headers.get("Authorization", "").split()[0]
        if exchange.path.startswith("/v1/"):
            exchange.json({"data": {"balance": 5}})
        elif exchange.path.startswith("/fal-ai/"):
            exchange.json({"detail": "not here"}, 404 if word == "Bearer" else 401)
        else:
            exchange.answer(b"<html>", "text/html", 404)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        done = fal("doctor", "--free", "-o", "json")
    found = answers(done.json["findings"])
    assert found["Which word goes before the key?"] == "Bearer, not Key"
    assert found["Is there something at /luma/generations/0?"] == "it does not look like it"
    assert done.json["extra"] == {"auth_scheme": "Bearer"}


def test_the_job_is_posted_with_the_word_that_was_found(fal: Fal, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(exchange: Exchanged) -> None:
        if exchange.path.startswith("/v1/"):
            exchange.json({"data": {"balance": 5}})
        elif not exchange.headers.get("Authorization", "").startswith("Bearer "):
            exchange.json({"detail": "invalid key"}, 401)
        elif exchange.path == "/fal-ai/flux/schnell":
            exchange.json({"request_id": "req-7", "status": "IN_QUEUE"})
        elif exchange.path.endswith("/requests/req-7/status"):
            exchange.json({"status": "COMPLETED"})
        elif exchange.path.endswith("/requests/req-7"):
            exchange.json({"images": [{"url": "https://media.example/a.png"}]})
        else:
            exchange.json({"status": "NOT_FOUND"}, 404)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        done = fal("doctor", "--yes", "-o", "json")
    assert done.code == 0, done.err
    assert done.json["extra"] == {"auth_scheme": "Bearer"}
    assert answers(done.json["findings"])[MEDIA] == "where they may be fetched from"


@pytest.mark.parametrize(
    ("fault", "code", "kind", "seen"),
    [
        ("server-error on=submit status=403", 5, "balance", "HTTP 403"),
        ("server-error on=submit status=422", 2, "input", "HTTP 422"),
        ("lost-reply on=submit", 3, "submit_outcome_unknown", "no reply"),
    ],
)
def test_a_refused_submit_is_an_answer_and_loses_none_of_the_others(
    start: Start, fal: Fal, fault: str, code: int, kind: str, seen: str
) -> None:
    start(faults=[fault])
    done = fal("doctor", "--yes", "-o", "json")
    assert done.code == code
    found = {finding["question"]: finding for finding in done.json["findings"]}
    assert kind in found[REFUSAL]["answer"]
    assert found[REFUSAL]["seen"].startswith(seen)
    assert found["What does a wrong key answer?"]["answer"] == "a 401, as expected"
    assert found[CANCEL]["answer"] == NOT_ASKED
    assert done.json["failure"]["kind"] == kind
    assert done.json["failure"]["what"] in done.err


def test_a_gateway_without_a_fal_family_is_told_of(fal: Fal, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(exchange: Exchanged) -> None:
        if exchange.path.startswith("/v1/"):
            exchange.json({"data": {"balance": 5}})
        else:
            exchange.answer(b"<html>", "text/html", 404)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        done = fal("doctor", "--free", "-o", "json")
    found = answers(done.json["findings"])
    assert "is there anything at /fal-ai?" in found["What does an unknown request answer?"]
    assert found["Is the key accepted?"] == "yes"


def test_it_names_the_extras_to_set(start: Start, fal: Fal, monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = start()
    connection = f'{{"conn_type": "uniapi_fal", "host": "{emulator.url}", "password": "{KEY}"}}'
    monkeypatch.setenv("AIRFLOW_CONN_FAL_DEFAULT", connection)
    done = fal("doctor", "--yes", "-o", "json")
    assert done.json["extra"] == {"media_hosts": ["127.0.0.1"]}
    assert '{"media_hosts": ["127.0.0.1"]}' in fal("doctor", "--yes").err


def test_without_a_yes_nothing_is_submitted(start: Start, fal: Fal, monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = start()
    unasked = fal("doctor")
    assert (unasked.code, posts(emulator)) == (8, 0)
    assert "one paid job: flux/schnell" in unasked.err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("rich.console.Console.input", lambda *_, **__: "n")
    assert (fal("doctor").code, posts(emulator)) == (8, 0)
    monkeypatch.setattr("rich.console.Console.input", lambda *_, **__: "y")
    assert (fal("doctor").code, posts(emulator)) == (0, 1)


@pytest.mark.parametrize("at_a_terminal", [False, True])
def test_a_no_keeps_what_was_found_for_free(
    start: Start, fal: Fal, monkeypatch: pytest.MonkeyPatch, at_a_terminal: bool
) -> None:
    emulator = start()
    free = fal("doctor", "--free", "-o", "json").json
    monkeypatch.setattr("sys.stdin.isatty", lambda: at_a_terminal, raising=False)
    monkeypatch.setattr("rich.console.Console.input", lambda *_, **__: "n")
    declined = fal("doctor", "-o", "json")
    assert (declined.code, posts(emulator)) == (8, 0)
    assert answers(declined.json["findings"]) == answers(free["findings"])
    assert declined.json["extra"] == free["extra"]
    assert declined.json["failure"]["kind"] == "declined"
    table = fal("doctor")
    assert table.code == 8
    assert WRONG_KEY in table.out
    assert "Nothing was submitted" in table.err


def test_the_free_questions_cost_nothing(start: Start, fal: Fal) -> None:
    emulator = start()
    done = fal("doctor", "--free", "-o", "json")
    assert (done.code, posts(emulator)) == (0, 0)
    assert answers(done.json["findings"])["What does a wrong key answer?"] == "a 401, as expected"


def test_a_key_that_is_refused_ends_it_before_the_job(start: Start, fal: Fal) -> None:
    emulator = start(key="another-key")
    done = fal("doctor", "--yes", "-o", "json")
    assert (done.code, posts(emulator)) == (5, 0)


@pytest.mark.parametrize("word", ["--free", "--yes"])
def test_of_a_gateway_that_cannot_be_reached_nothing_is_concluded(
    fal: Fal, journal: CommandLineJournal, monkeypatch: pytest.MonkeyPatch, word: str
) -> None:
    set_connection(monkeypatch, f"http://127.0.0.1:{free_port()}")
    done = fal("doctor", word, "-o", "json")
    assert (done.code, journal.entries()) == (6, [])
    found = answers(done.json["findings"])
    assert found.pop("Is the key accepted?") == NO_TELLING
    assert {UNKNOWN, WRONG_KEY, "Is there something at /luma/generations/0?"} <= found.keys()
    assert set(found.values()) == {NOT_ASKED}
    assert done.json["extra"] is None
    assert done.json["failure"]["what"] in done.err
    table = fal("doctor", word)
    assert table.code == 6
    assert "cannot be reached" in table.err
    for verdict in ("did not accept", "extra of connection"):
        assert verdict not in table.err


def test_a_gateway_in_trouble_is_not_taken_for_one_that_refuses_the_key(
    fal: Fal, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ScriptedServer(lambda exchange: exchange.answer(b"<html>", "text/html", 503)) as server:
        set_connection(monkeypatch, server.url)
        done = fal("doctor", "--yes", "-o", "json")
        assert "extra of connection" not in fal("doctor", "--yes").err
    assert done.code == 6
    assert answers(done.json["findings"])["Is the key accepted?"] == NO_TELLING
    assert "HTTP 503" in done.json["failure"]["what"]


def test_from_a_question_without_a_reply_nothing_is_concluded(
    fal: Fal, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(exchange: Exchanged) -> None:
        if exchange.path.startswith("/v1/"):
            exchange.json({"data": {"balance": 5}})
        else:
            exchange.hang_up()

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        done = fal("doctor", "--free", "-o", "json")
    found = answers(done.json["findings"])
    assert found.pop("Is the key accepted?") == "yes"
    assert set(found.values()) == {NO_TELLING, NOT_ASKED}
    assert done.json["extra"] == {}


def test_a_lost_reply_is_unknown_here_as_well_and_not_posted_again(
    start: Start, fal: Fal, journal: CommandLineJournal
) -> None:
    emulator = start()
    emulator.add_fault("lost-reply on=submit times=1")
    assert fal("doctor", "--yes").code == 3
    assert posts(emulator) == 1
    assert len(journal.entries()) == 1
    again = fal("doctor", "--yes")
    assert (again.code, posts(emulator)) == (3, 1)
    assert "--on-unknown-submit=resubmit" in again.err
    assert fal("doctor", "--free").code == 0, "what costs nothing may be asked"
    assert (fal("doctor", "--yes", "--on-unknown-submit", "resubmit").code, posts(emulator)) == (0, 2)
    assert (fal("doctor", "--yes").code, posts(emulator)) == (0, 3), "none is unknown any more"


def test_a_job_that_never_ends_is_left_with_a_word(start: Start, fal: Fal) -> None:
    start(stuck=True)
    done = fal("doctor", "--yes", "--timeout", "0.5", "-o", "json")
    assert done.code == 0
    assert "had not ended" in done.err
    assert answers(done.json["findings"])[CANCEL] == NOT_ASKED


def test_an_answer_is_shown_by_its_shape_and_never_quoted() -> None:
    body = b'{"detail": [{"input": "a secret prompt"}], "code": 1, "x": null}'
    reply = HttpReply(422, {"content-type": "application/json; charset=utf-8"}, body)
    assert (
        shape(Exchange(HttpRequest("GET", "fal", "/x"), reply)) == "HTTP 422, {detail list, code int, x null}"
    )


def exchanged(status: int, body: bytes) -> Exchange:
    return Exchange(HttpRequest("GET", "fal", "/x"), HttpReply(status, {}, body))


DONE = exchanged(200, b'{"status": "COMPLETED"}')
REFUSED = exchanged(401, b'{"detail": "no"}')


@pytest.mark.parametrize(
    ("seen", "stranger", "answer"),
    [
        (DONE, REFUSED, "yes"),
        (DONE, DONE, "not proved: a status needs no key here"),
        (REFUSED, REFUSED, "no"),
        (exchanged(200, b'{"error": "no"}'), REFUSED, "no"),
    ],
)
def test_bearer_is_proved_only_where_a_wrong_key_is_refused(
    seen: Exchange, stranger: Exchange, answer: str
) -> None:
    assert bearer_finding(seen, stranger).answer == answer


@pytest.mark.parametrize(
    ("status", "body", "answer"),
    [
        (400, b'{"status": "ALREADY_COMPLETED"}', "yes"),
        (202, b'{"status": "CANCELLATION_REQUESTED"}', "yes"),
        (200, b'{"success": true}', "yes"),
        (200, b'{"success": false}', "no telling"),
        (200, b'{"error": {"message": "unsupported"}}', "no telling"),
        (202, b"<html>", "no telling"),
        (200, b"", "no telling"),
        (404, b'{"status": "NOT_FOUND"}', "no: what is submitted runs to its end"),
        (405, b"", "no: what is submitted runs to its end"),
    ],
)
def test_a_cancellation_is_passed_on_only_if_the_body_says_so(status: int, body: bytes, answer: str) -> None:
    assert cancel_finding(handle(), exchanged(status, body)).answer == answer
