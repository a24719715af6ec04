"""The task state store as a task sees it; ``ledger/task_state.py`` is written against it."""

from __future__ import annotations

import inspect
import uuid
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from airflow.sdk import conf
from airflow.sdk.api.datamodels._generated import TIRunContext
from airflow.sdk.exceptions import AirflowRuntimeError, ErrorType
from airflow.sdk.execution_time import task_runner
from airflow.sdk.execution_time.comms import ErrorResponse, SetTaskStateStore
from airflow.sdk.execution_time.context import TaskStateStoreAccessor


class Supervisor:
    """Takes what a task sends, and answers what it was told to."""

    def __init__(self, answer: Any = None) -> None:
        self.sent: list[Any] = []
        self._answer = answer

    def send(self, msg: Any) -> Any:
        self.sent.append(msg)
        return self._answer


def store_of(supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch) -> TaskStateStoreAccessor:
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


def test_a_task_is_told_its_last_allowed_try() -> None:
    # ledger/record.py: was_cleared() compares it with the one in the record.
    assert TIRunContext.model_fields["max_tries"].annotation is int
