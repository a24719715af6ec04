"""A dialect is one class: nothing else has to learn its words, from the operator to the landing."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import TaskDeferred

from airflow_provider_uniapi_fal.operators import generating
from airflow_provider_uniapi_fal.operators.generating import GeneratingOperator
from airflow_provider_uniapi_fal.protocol import origin
from airflow_provider_uniapi_fal.protocol.dialects import DIALECTS
from airflow_provider_uniapi_fal.protocol.dialects.tasks import TaskDialect
from airflow_provider_uniapi_fal.protocol.job import JobState
from airflow_provider_uniapi_fal.sensors.fal import FalQueueSensor
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator
from tests.fakes import PROMPT, Task, fired, set_connection
from tests.operators.vendors import picture

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


class ToyDialect(TaskDialect):
    """``POST /toy/paint`` makes a painting, ``GET /toy/paint/<id>`` tells how it is drying."""

    name = "toy"
    family = "toy"
    keeps = "A toy keeps its paintings for ever."
    states = {"WET": JobState.RUNNING, "DRY": JobState.SUCCEEDED}  # noqa: RUF012

    def submit_path(self, model: str) -> str:
        return f"/{model}"

    def task_path(self, model: str, request_id: str) -> str:
        return f"/{model}/{request_id}"

    def model_of_task(self, path: str) -> tuple[str, str] | None:
        head, _, request_id = path.removeprefix("/").rpartition("/")
        return (head, request_id) if head == "paint" else None

    def model_problem(self, model: object) -> str | None:
        return None if model == "paint" else "model: a toy can paint and nothing else"

    def schema(self, model: str) -> dict[str, Any]:
        return {"properties": {"prompt": {"type": "string"}}, "required": ["prompt"]}


class PaintOperator(GeneratingOperator):
    dialect = "toy"


@pytest.fixture
def gateway(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Serve the toy's wire; yield how often each thing was asked for."""
    asked: Counter[str] = Counter()

    class Toy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked["post"] += 1
            self.rfile.read(int(self.headers["Content-Length"]))
            self.reply(json.dumps({"id": f"p{asked['post']}"}).encode())

        def do_GET(self) -> None:
            if self.path.endswith(".png"):
                assert "Authorization" not in self.headers
                return self.reply(picture())
            asked["look"] += 1
            dry = asked["look"] > 2
            url = f"http://{self.headers['Host']}/p.png"
            self.reply(
                json.dumps({"state": "dry", "art": {"url": url}} if dry else {"state": "wet"}).encode()
            )
            return None

        def reply(self, body: bytes) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Toy)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setitem(DIALECTS, "toy", ToyDialect())
    monkeypatch.setitem(origin.FAMILY_PATHS, "toy", "/toy")
    monkeypatch.setitem(origin.AUTH_SCHEMES, "toy", "Bearer")
    monkeypatch.setattr(generating, "RACE_SECONDS", 0.0)
    set_connection(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield asked
    server.shutdown()
    server.server_close()


def paint(**options: Any) -> PaintOperator:
    arguments = {"prompt": PROMPT}
    return PaintOperator(task_id="paint", model="paint", arguments=arguments, poke_interval=0.05, **options)


def land(result: Any, folder: Path) -> None:
    operator = FalToObjectStorageOperator(task_id="land", result=result, destination=folder.as_uri())
    [file] = operator.execute(Task().context)
    assert file["content_type"] == "image/png"


def test_it_goes_through_operator_trigger_and_landing(gateway: Counter[str], tmp_path: Path) -> None:
    task = Task()
    with pytest.raises(TaskDeferred) as deferral:
        paint(defer_after=0.0).execute(task.context)
    event = {"event": fired(deferral.value)}
    result = paint().resume_execution(deferral.value.method_name, event, task.context)
    land(result, tmp_path)
    assert gateway["post"] == 1


def test_it_goes_through_operator_sensor_and_landing(gateway: Counter[str], tmp_path: Path) -> None:
    handle = paint(wait=False).execute(Task().context)
    sensor = FalQueueSensor(task_id="wait", handle=handle, poke_interval=0.05, timeout=20, deferrable=False)
    land(sensor.execute(Task().context), tmp_path)
    assert gateway["post"] == 1


def test_a_retry_takes_the_painting_up(gateway: Counter[str]) -> None:
    task = Task()
    first = paint(wait=False).execute(task.context)
    assert paint(wait=False).execute(task.next_try().context) == first
    assert gateway["post"] == 1


def test_the_dialect_is_a_short_class() -> None:
    import inspect

    assert len(inspect.getsource(ToyDialect).splitlines()) < 100


def test_it_goes_through_a_batch(gateway: Counter[str], tmp_path: Path) -> None:
    batch = pytest.importorskip("airflow_provider_uniapi_fal.operators.batch", reason="there is no batch yet")
    rows = [{"key": "one", "dialect": "toy", "model": "paint", "arguments": {"prompt": PROMPT}}]
    operator = batch.FalBatchOperator(
        task_id="batch", requests=rows, destination=tmp_path.as_uri(), deferrable=False
    )
    assert operator.execute(Task().context)["counts"]["succeeded"] == 1
    assert gateway["post"] == 1
