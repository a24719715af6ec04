"""The key reaches the configured origin only, whatever the gateway answers."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from airflow_provider_uniapi_fal.exceptions import FalAuthError, FalError
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.protocol.dialects.base import Submitted
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult
from tests.transport.servers import Answer, Seen, Server, serving

KEY = "sk-test-0123456789"
SECRET = "tenant-s3cret"


@pytest.fixture
def foreign() -> Iterator[Server]:
    with serving() as server:
        yield server


@pytest.fixture
def hook_at(monkeypatch: pytest.MonkeyPatch) -> Callable[[Server], FalHook]:
    def at(server: Server) -> FalHook:
        connection = {
            "conn_type": "uniapi_fal",
            "host": server.url,
            "password": KEY,
            "extra": {"headers": {"X-Tenant": SECRET}},
        }
        monkeypatch.setenv("AIRFLOW_CONN_FAL_DEFAULT", json.dumps(connection))
        monkeypatch.setattr(
            "airflow_provider_uniapi_fal.protocol.retrying.backoff", lambda attempt, jitter: 0.0
        )
        return FalHook()

    return at


def gateway(reply: Callable[[Seen], tuple[str, dict[str, str], Any]]) -> Answer:
    """Return an answer that looks at the request first."""

    def send(connection: Any, seen: Seen) -> bool:
        status, headers, body = reply(seen)
        written = json.dumps(body).encode()
        head = {"Content-Length": str(len(written)), "Content-Type": "application/json", **headers}
        lines = [f"HTTP/1.1 {status}", *(f"{name}: {value}" for name, value in head.items())]
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode() + written)
        return True

    return send


def everything(hook: FalHook, twin: bool) -> list[object]:
    """Use every verb that can send the key, and return all that comes back, errors included."""
    got: list[object] = []

    def call(verb: str, *args: Any) -> Any:
        method = getattr(hook, f"a{verb}" if twin else verb)
        try:
            found = asyncio.run(method(*args)) if twin else method(*args)
        except FalError as error:
            found = error
        got.append(found)
        return found

    submitted = call("submit", "flux/dev", {"prompt": "p"})
    handle = submitted.handle if isinstance(submitted, Submitted) else None
    if handle is None:
        handle = JobHandle(
            "fal", "flux/dev", "r-1", "/f/requests/r-1/status", "/f/requests/r-1", None, "c", 0.0
        )
    else:
        got += hook.urls(handle).values()
    for verb in ("status", "result", "cancel"):
        call(verb, handle)
    got.append(hook.test_connection())
    return got


def addresses(foreign: Server) -> list[str]:
    base = f"127.0.0.1:{foreign.port}"
    return [
        f"http://{base}/fal-ai/flux/requests/r-1",
        f"http://api.uniapi.io@{base}/fal-ai/flux/requests/r-1",
        f"//{base}/fal-ai/flux/requests/r-1",
        f"http://{base}\\@127.0.0.1/fal-ai/flux/requests/r-1",
        f"http://{base}/fal-ai/../../requests/r-1",
        f"@{base}/requests/r-1",
        f".{base}/requests/r-1",
        f":x@{base}/fal-ai/flux/requests/r-1",
        f"/fal-ai//{base}/requests/r-1",
    ]


@pytest.mark.parametrize("number", range(9))
@pytest.mark.parametrize("twin", [False, True])
def test_a_reply_that_names_another_host_in_each_url_gets_nothing_sent_there(
    hook_at: Callable[[Server], FalHook], foreign: Server, twin: bool, number: int
) -> None:
    named = addresses(foreign)[number]

    def reply(seen: Seen) -> tuple[str, dict[str, str], Any]:
        body = {
            "status": "COMPLETED",
            "request_id": "r-1",
            "status_url": f"{named}/status",
            "response_url": named,
            "cancel_url": f"{named}/cancel",
            "images": [{"url": f"http://127.0.0.1:{foreign.port}/a.png"}],
        }
        return "200 OK", {"Link": f"<{named}>; rel=next"}, body

    with serving(gateway(reply)) as server:
        hook = hook_at(server)
        got = everything(hook, twin)
        assert foreign.connections == 0
        assert {seen.header("authorization") for seen in server.seen} <= {f"Key {KEY}", f"Bearer {KEY}"}
        assert len(server.seen) >= 5
        assert isinstance(got[4], JobResult)
        for url in hook.urls(got[0].handle).values() if isinstance(got[0], Submitted) else []:
            assert url.startswith(f"{server.url}/fal-ai/")


@pytest.mark.parametrize("code", ["301 Moved", "302 Found", "303 See", "307 Temporary", "308 Permanent"])
@pytest.mark.parametrize("twin", [False, True])
def test_a_redirect_to_another_host_gets_nothing_sent_there(
    hook_at: Callable[[Server], FalHook], foreign: Server, twin: bool, code: str
) -> None:
    def reply(seen: Seen) -> tuple[str, dict[str, str], Any]:
        headers = {
            "Location": f"{foreign.url}{seen.target}",
            "Refresh": f"0; url={foreign.url}",
            "Content-Location": foreign.url,
        }
        return code, headers, {"status": "IN_QUEUE", "request_id": "r-1"}

    with serving(gateway(reply)) as server:
        everything(hook_at(server), twin)
        assert len(server.seen) >= 5
    assert foreign.connections == 0


@pytest.mark.parametrize("twin", [False, True])
def test_a_gateway_that_quotes_the_key_does_not_bring_it_into_a_value_an_error_or_a_log(
    hook_at: Callable[[Server], FalHook], twin: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    def reply(seen: Seen) -> tuple[str, dict[str, str], Any]:
        quoted = seen.header("authorization")
        body = {
            "detail": [{"msg": f"bad key {quoted}", "type": str(quoted)}],
            "error": quoted,
            "message": quoted,
        }
        code = {"POST": "401 No", "PUT": "500 Oops"}.get(seen.method, "422 No")
        return code, {"X-Fal-Error-Type": str(quoted), "X-Fal-Billable-Units": str(quoted)}, body

    with serving(gateway(reply)) as server:
        got = everything(hook_at(server), twin)
    told = [*map(repr, got), *map(str, got), *(repr(e.failure) for e in got if isinstance(e, FalError))]
    assert len(got) == 5
    assert not [text for text in [*told, caplog.text] if KEY in text or SECRET in text]


def test_neither_the_hook_nor_its_account_shows_the_key(hook_at: Callable[[Server], FalHook]) -> None:
    with serving() as server:
        hook = hook_at(server)
        shown = f"{hook!r} {hook.account!r} {hook.account} {vars(hook)}"
    assert KEY not in shown
    assert SECRET not in shown


OTHER: dict[str, Any] = {"host": "http://127.0.0.1:{port}", "password": KEY}
FORMS = [
    (json.dumps({"conn_type": "aws", "login": "AKIA", **OTHER}), "of type 'aws'"),
    (json.dumps({"conn_type": "", **OTHER}), "of no type"),
    (json.dumps(OTHER), "of no type"),
    ("elasticsearch://elastic:" + KEY + "@127.0.0.1:{port}/http", "of type 'elasticsearch'"),
]


@pytest.mark.parametrize(("form", "told"), FORMS)
@pytest.mark.parametrize("twin", [False, True])
def test_the_password_of_a_connection_of_another_type_is_sent_nowhere(
    monkeypatch: pytest.MonkeyPatch, form: str, told: str, twin: bool
) -> None:
    with serving() as server:
        monkeypatch.setenv("AIRFLOW_CONN_OTHER", form.replace("{port}", str(server.port)))
        got = everything(FalHook("other"), twin)
        assert server.connections == 0
    errors = [error for error in got if isinstance(error, FalAuthError)]
    assert len(errors) == 4
    assert got[4] == (False, str(errors[0]))
    for error in errors:
        for word in ("'other'", told, "'uniapi_fal'", "Nothing was sent"):
            assert word in str(error)
        assert KEY not in str(error)
