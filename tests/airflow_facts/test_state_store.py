"""The task state store as a task sees it; ``ledger/task_state.py`` is written against it."""

from __future__ import annotations

import inspect
import uuid
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any, get_type_hints

import httpx
import pytest
import structlog
from airflow.api_fastapi.execution_api.routes.task_state_store import set_task_state_store
from airflow.sdk import conf
from airflow.sdk.api.client import ServerResponseError
from airflow.sdk.api.datamodels._generated import TIRunContext
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import CommsDecoder, ErrorResponse, SetTaskStateStore
from airflow.sdk.execution_time.context import TaskStateStoreAccessor
from airflow.sdk.execution_time.supervisor import ActivitySubprocess

REQUEST = httpx.Request("PUT", "http://airflow.example/store")


class Supervisor:
    """Takes what a task sends, and answers what it was told to."""

    def __init__(self, answer: Any = None) -> None:
        self.sent: list[Any] = []
        self._answer = answer

    def send(self, msg: Any) -> Any:
        self.sent.append(msg)
        return self._answer


def store_of(supervisor: Any, monkeypatch: pytest.MonkeyPatch) -> TaskStateStoreAccessor:
    monkeypatch.setattr(task_runner, "SUPERVISOR_COMMS", supervisor, raising=False)
    scope: Any = None
    return TaskStateStoreAccessor(ti_id=uuid.uuid4(), scope=scope)


def test_the_store_is_synchronous() -> None:
    # TaskLedger calls get, set and delete; with async twins a batch could write from its event loop.
    assert not {"aget", "aset", "adelete"} & set(dir(TaskStateStoreAccessor))
    for name in ("get", "set", "delete"):
        assert not inspect.iscoroutinefunction(getattr(TaskStateStoreAccessor, name))


def test_none_cannot_be_written_so_that_none_means_that_nothing_was(monkeypatch: pytest.MonkeyPatch) -> None:
    # TaskLedger.read()
    supervisor = Supervisor()
    with pytest.raises(ValueError, match="None"):
        store_of(supervisor, monkeypatch).set("k", None)
    assert supervisor.sent == []


def test_a_missing_value_is_none_and_a_store_that_cannot_be_read_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # TaskLedger.read(): state that cannot be read is an error, never "absent".
    missing = Supervisor(ErrorResponse(error=ErrorType.TASK_STORE_NOT_FOUND))
    assert store_of(missing, monkeypatch).get("k") is None
    broken = Supervisor(ErrorResponse(error=ErrorType.GENERIC_ERROR))
    with pytest.raises(AirflowRuntimeError):
        store_of(broken, monkeypatch).get("k")


def test_a_value_expires_after_the_retention_that_it_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    # ledger/task_state.py: RETENTION is longer than Airflow's own.
    supervisor = Supervisor()
    before = datetime.now(timezone.utc)
    store_of(supervisor, monkeypatch).set("k", {"a": 1}, retention=timedelta(days=60))
    (message,) = supervisor.sent
    assert isinstance(message, SetTaskStateStore)
    assert message.expires_at is not None
    assert timedelta(days=60) <= message.expires_at - before < timedelta(days=61)
    assert conf.getint("state_store", "default_retention_days") < 60
    assert conf.getboolean("state_store", "clear_on_success") is False


@pytest.mark.parametrize(
    "went_wrong",
    [
        ServerResponseError(
            "no such task", request=REQUEST, response=httpx.Response(404, json={}, request=REQUEST)
        ),
        httpx.HTTPStatusError(
            "bad gateway", request=REQUEST, response=httpx.Response(502, text="<html>", request=REQUEST)
        ),
        httpx.ConnectError("refused"),
        RuntimeError("anything"),
    ],
)
def test_a_write_that_was_not_taken_is_an_error_in_the_task(
    went_wrong: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    # TaskLedger.write(): only an intent is read again.
    class Refusing(ActivitySubprocess):
        def __init__(self) -> None:
            self.answers: list[Any] = []

        def _deserialize_request(self, body: Any) -> Any:
            return body

        def _handle_request(self, msg: Any, log: Any, req_id: int) -> None:
            raise went_wrong

        def send_msg(self, msg: Any, request_id: int, error: Any = None, **dump_opts: Any) -> None:
            self.answers.append(SimpleNamespace(body=msg, error=error and error.model_dump()))

    supervisor = Refusing()
    requests = supervisor.handle_requests(structlog.get_logger())
    next(requests)
    comms = CommsDecoder[Any, Any](socket=None)  # type: ignore[arg-type]

    def send(msg: Any) -> Any:
        requests.send(SimpleNamespace(id=1, body=msg.model_dump(), context_carrier=None))  # type: ignore[arg-type]
        return comms._from_frame(supervisor.answers.pop())

    with pytest.raises(AirflowRuntimeError, match="API_SERVER_ERROR"):
        store_of(SimpleNamespace(send=send), monkeypatch).set("k", 1)


def test_an_answer_to_a_write_is_given_when_it_is_committed() -> None:
    # TaskLedger.write(): a dependency of scope "request" would be left, and commit, after the reply has been sent.
    session = get_type_hints(set_task_state_store, include_extras=True)["session"]
    assert [dependency.scope for dependency in session.__metadata__] == ["function"]


def test_a_task_is_told_its_last_allowed_try() -> None:
    # ledger/record.py: was_cleared() compares it with the one in the record.
    assert TIRunContext.model_fields["max_tries"].annotation is int
