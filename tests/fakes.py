"""
Stand-ins for Airflow's side of a task, and real servers for the gateway's and the media's.

Nothing of the provider is replaced: its requests go over real sockets, to the emulator or to a scripted server.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, cast

import pytest
from airflow.sdk._shared.module_loading import import_string
from airflow.sdk.serde import deserialize, serialize

from airflow_provider_uniapi_fal.emulator.running import Emulator, running_emulator
from airflow_provider_uniapi_fal.hooks import fal as hooks
from airflow_provider_uniapi_fal.protocol.cadence import Experience
from airflow_provider_uniapi_fal.protocol.job import JobHandle
from airflow_provider_uniapi_fal.triggers import hub

if TYPE_CHECKING:
    from datetime import datetime, timedelta

    from airflow.sdk.exceptions import TaskDeferred

KEY = "sk-a-very-secret-key"
PROMPT = "a lighthouse nobody may read about"
MODEL = "flux/dev"
ARGUMENTS = {"prompt": PROMPT, "image_size": {"width": 64, "height": 48}}


class StateStore:
    """Airflow's task state store: JSON values that outlive tries; None cannot be written."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}

    def get(self, key: str, default: Any = None) -> Any:
        return json.loads(self.texts[key]) if key in self.texts else default

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        if value is None:
            raise ValueError("Cannot set value as None")
        self.texts[key] = json.dumps(value)
        if json.loads(self.texts[key]) != value:
            raise ValueError("input was not a valid JSON value")

    def delete(self, key: str) -> None:
        self.texts.pop(key, None)


class ForgetfulStore(StateStore):
    """A store that says that it has written, and has not."""

    def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
        return


class TaskInstance:
    """The part of a running task instance that the provider uses."""

    def __init__(self, max_tries: int, try_number: int = 1) -> None:
        self.max_tries = max_tries
        self.try_number = try_number
        self.dag_id, self.run_id, self.task_id, self.map_index = "night", "a run", "submit", -1
        self.xcoms: dict[str, Any] = {}
        #: Where the task's buttons lead, by the XCom that Airflow keeps each in.
        self.links: dict[str, str] = {}
        self.first_reschedule: datetime | None = None

    def xcom_push(self, key: str, value: Any) -> None:
        kept = self.links if key.startswith("_link_") else self.xcoms
        kept[key] = json.loads(json.dumps(value))

    def get_first_reschedule_date(self, context: Any) -> datetime | None:
        return self.first_reschedule


class Task:
    """One task over its tries: the state store stays, XComs go at each new try, a clear raises max_tries."""

    def __init__(self, retries: int = 2, store: StateStore | None = None) -> None:
        self.store = store or StateStore()
        self.ti = TaskInstance(max_tries=retries)

    def next_try(self, *, cleared: bool = False) -> Task:
        self.ti = TaskInstance(self.ti.max_tries + (3 if cleared else 0), self.ti.try_number + 1)
        return self

    @property
    def context(self) -> Any:
        return {"ti": self.ti, "task_instance": self.ti, "task_state_store": self.store}

    @property
    def xcoms(self) -> dict[str, Any]:
        return self.ti.xcoms


def set_connection(
    monkeypatch: pytest.MonkeyPatch,
    url: str,
    *,
    key: str = KEY,
    conn_id: str = "fal_default",
    **extra: Any,
) -> None:
    """Put a connection into the environment; of its gateway nothing is known yet."""
    hub._gateways.pop(conn_id, None)
    extra = {"media_hosts": ["127.0.0.1"], **extra}
    value = {"conn_type": "uniapi_fal", "host": url, "password": key, "extra": extra}
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(value))


Start = Callable[..., Emulator]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Iterator[Start]:
    """
    Start emulators whose jobs end at once unless said otherwise; the connections lead to the last one.

    What other tests taught this process is forgotten: how long jobs take, and how the gateway is. Nobody waits for a
    new key.
    """
    monkeypatch.setattr(hub, "NEW_KEY_SECONDS", 0.0)
    monkeypatch.setattr(hooks, "EXPERIENCE", Experience())
    with contextlib.ExitStack() as stack:

        def begin(**settings: Any) -> Emulator:
            at_once = {"queue_seconds": 0.0, "run_seconds": 0.0, "key": KEY}
            emulator = stack.enter_context(running_emulator(**{**at_once, **settings}))
            for conn_id in ("fal_default", "fal_other"):
                set_connection(monkeypatch, emulator.url, conn_id=conn_id)
            return emulator

        yield begin


def posts(emulator: Emulator) -> int:
    """Return how many submits arrived, accepted or not."""
    return int(emulator.account()["totals"]["posts_received"])


def calls(emulator: Emulator, operation: str) -> list[dict[str, Any]]:
    """Return the requests of one kind."""
    return [each for each in emulator.requests() if each["operation"] == operation]


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    """Return as soon as a condition holds; fail if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        time.sleep(0.01)


def handle(**changes: Any) -> JobHandle:
    """Return a handle of a job that need not exist."""
    values: dict[str, Any] = {
        "dialect": "fal",
        "model": MODEL,
        "request_id": "req-1",
        "status_path": "/flux/requests/req-1/status",
        "response_path": "/flux/requests/req-1",
        "cancel_path": None,
        "fal_conn_id": "fal_default",
        "submitted_at": time.time(),
    }
    return JobHandle(**{**values, **changes})


class Exchange:
    """One request to a scripted server, and the means to answer it well or badly."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler
        self.path = handler.path
        self.headers: Mapping[str, str] = dict(handler.headers.items())

    def json(self, value: Any, status: int = 200) -> None:
        self.answer(json.dumps(value).encode(), "application/json", status)

    def answer(self, body: bytes, content_type: str = "", status: int = 200, **headers: str) -> None:
        self.head(len(body), content_type, status, **headers)
        self.write(body)

    def head(self, length: int | None, content_type: str = "", status: int = 200, **headers: str) -> None:
        self._handler.send_response(status)
        named = {
            "Content-Type": content_type,
            "Content-Length": "" if length is None else str(length),
            **headers,
        }
        for name, value in named.items():
            if value:
                self._handler.send_header(name.replace("_", "-"), value)
        self._handler.end_headers()

    def write(self, body: bytes) -> None:
        self._handler.wfile.write(body)

    def hang_up(self) -> None:
        self._handler.close_connection = True


class ScriptedServer:
    """A server that answers as a function says, and knows its requests and connections."""

    def __init__(self, answer: Callable[[Exchange], None]) -> None:
        self.seen: list[Exchange] = []
        self.connections = 0
        self.open_connections = 0
        lock = threading.Lock()
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                with lock:
                    script.connections += 1
                    script.open_connections += 1
                super().setup()

            def finish(self) -> None:
                with contextlib.suppress(OSError):
                    super().finish()
                with lock:
                    script.open_connections -= 1

            def do_GET(self) -> None:
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                exchange = Exchange(self)
                script.seen.append(exchange)
                with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                    answer(exchange)

            do_POST = do_PUT = do_GET  # noqa: N815 - the names that the base class calls

            def log_message(self, format: str, *args: Any) -> None:
                return

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            request_queue_size = 128

        self._server = Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )

    def __enter__(self) -> ScriptedServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(10)


def as_json(value: Any) -> Any:
    """Return what is left of a value after its way through Airflow's database."""
    return json.loads(json.dumps(value))


def fired(deferral: TaskDeferred) -> Any:
    """Return the event of a deferral's trigger; both go through the database."""
    path, kwargs = cast("Any", deferral.trigger).serialize()
    assert KEY not in json.dumps(kwargs)
    assert PROMPT not in json.dumps(kwargs)
    restored = import_string(path)(**cast("Any", deserialize(as_json(serialize(kwargs)))))

    async def run() -> list[Any]:
        return [event.payload async for event in restored.run()]

    [payload] = asyncio.run(run())
    return deserialize(as_json(serialize(payload)))


def change_key(key: str, conn_id: str = "fal_default") -> None:
    """Change the key of a connection that :func:`set_connection` made, as a user would while a job runs."""
    name = f"AIRFLOW_CONN_{conn_id.upper()}"
    value = cast("dict[str, Any]", json.loads(os.environ[name]))
    os.environ[name] = json.dumps({**value, "password": key})
