"""
The race that a task loses which resumes soon after it has deferred (apache/airflow #72716, #71580).

``triggers/fal.py``: RACE_SECONDS and ``hold_until``, and ``defer_after`` of operator and sensor, are there for
nothing else. When this fails because the task is left alone, they can go.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.taskinstancekey import TaskInstanceKey
from airflow.utils.state import TaskInstanceState

SCHEDULER = 7
KEY = TaskInstanceKey("dag", "task", "run", 1, -1)


class TaskInstance(SimpleNamespace):
    """A task whose second leg is under way; everything that is only logged is None."""

    def __init__(self, state: TaskInstanceState) -> None:
        task = SimpleNamespace(
            has_on_retry_callback=False, has_on_failure_callback=False, email=None, retries=0
        )
        self.failed_with: list[str] = []
        super().__init__(
            key=KEY, state=state, try_number=1, queued_by_job_id=SCHEDULER, next_method="execute_complete"
        )
        self.task = task

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return 0 if name == "priority_weight" else None

    def handle_failure(self, error: str, session: Any) -> None:
        self.failed_with.append(error)


class Session:
    """Finds one task."""

    def __init__(self, ti: TaskInstance) -> None:
        self._ti = ti

    def scalars(self, query: Any) -> list[TaskInstance]:
        return [self._ti]

    def add(self, row: Any) -> None:
        return

    def get_bind(self) -> Any:
        raise ValueError


class Executor:
    """Reports only now that the first leg's process has ended well."""

    def get_event_buffer(self) -> dict[TaskInstanceKey, tuple[TaskInstanceState, None]]:
        return {KEY: (TaskInstanceState.SUCCESS, None)}

    def has_task(self, ti: Any) -> bool:
        return False


def after_the_late_report(state: TaskInstanceState) -> list[str]:
    ti = TaskInstance(state)
    executor: Any = Executor()
    session: Any = Session(ti)
    dags: Any = SimpleNamespace(get_dag_for_run=lambda **_: SimpleNamespace(get_task=lambda _: ti.task))
    SchedulerJobRunner.process_executor_events(executor, SCHEDULER, dags, session)
    return ti.failed_with


@pytest.mark.parametrize("state", [TaskInstanceState.QUEUED, TaskInstanceState.RUNNING])
def test_a_task_that_has_resumed_when_the_report_of_its_deferral_comes_is_failed(
    state: TaskInstanceState,
) -> None:
    (error,) = after_the_late_report(state)
    assert "finished with state success" in error


@pytest.mark.parametrize("state", [TaskInstanceState.DEFERRED, TaskInstanceState.SCHEDULED])
def test_a_task_that_has_not_resumed_is_left_alone(state: TaskInstanceState) -> None:
    assert after_the_late_report(state) == []
