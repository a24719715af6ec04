"""The doctor against gateways of every kind: one job at most, after asking, and the right conclusions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_uniapi_fal.cli.doctor import Exchange, shape
from airflow_provider_uniapi_fal.protocol.messages import HttpReply, HttpRequest
from tests.fakes import KEY, Start, posts

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.cli.journal import Journal
    from tests.cli.conftest import Fal

URLS = "Are the URLs in a reply rewritten?"
STATUS = "Which paths lead to a status?"
RESULT = "Which paths lead to a result?"
PENDING = "200 or 202 while pending?"
CANCEL = "Are cancellations passed on?"
LOGS = "Do log lines come with logs=1?"
BEARER = "Does /fal-ai accept Bearer, too?"


def answers(findings: list[dict[str, Any]]) -> dict[str, str]:
    return {finding["question"]: finding["answer"] for finding in findings}


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {URLS: "no, they name queue.fal.run; only their paths are used", PENDING: "202", CANCEL: "yes"}),
        ({"urls": "gateway"}, {URLS: "yes, they name this gateway"}),
        ({"urls": "missing"}, {URLS: "there are none; paths are built from the id"}),
        ({"pending_code": 200}, {PENDING: "200"}),
        ({"found_at": "whole"}, {STATUS: "/flux/schnell/requests/<id>/status"}),
        ({"cancel": "not-allowed"}, {CANCEL: "no: what is submitted runs to its end"}),
        ({"logs": "missing"}, {LOGS: "no, or this model writes none"}),
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


def test_the_free_questions_cost_nothing(start: Start, fal: Fal) -> None:
    emulator = start()
    done = fal("doctor", "--free", "-o", "json")
    assert (done.code, posts(emulator)) == (0, 0)
    assert answers(done.json["findings"])["What does a wrong key answer?"] == "a 401, as expected"


def test_a_key_that_is_refused_ends_it_before_the_job(start: Start, fal: Fal) -> None:
    emulator = start(key="another-key")
    done = fal("doctor", "--yes", "-o", "json")
    assert (done.code, posts(emulator)) == (5, 0)


def test_a_lost_reply_is_unknown_here_as_well_and_not_posted_again(
    start: Start, fal: Fal, journal: Journal
) -> None:
    emulator = start()
    emulator.add_fault("lost-reply on=submit times=1")
    assert fal("doctor", "--yes").code == 3
    assert posts(emulator) == 1
    assert len(journal.entries()) == 1


def test_a_job_that_never_ends_is_left_with_a_word(start: Start, fal: Fal) -> None:
    start(stuck=True)
    done = fal("doctor", "--yes", "--timeout", "0.5", "-o", "json")
    assert done.code == 0
    assert "had not ended" in done.err
    assert CANCEL not in answers(done.json["findings"])


def test_an_answer_is_shown_by_its_shape_and_never_quoted() -> None:
    body = b'{"detail": [{"input": "a secret prompt"}], "code": 1, "x": null}'
    reply = HttpReply(422, {"content-type": "application/json; charset=utf-8"}, body)
    assert (
        shape(Exchange(HttpRequest("GET", "fal", "/x"), reply)) == "HTTP 422, {detail list, code int, x null}"
    )
