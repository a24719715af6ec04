from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.utils.state import TaskInstanceState

from airflow_provider_uniapi_fal.hooks.task_states import (
    cleared_or_resumed,
    killed_by_user,
    states_of,
    trigger_killed_by_user,
)


@pytest.mark.parametrize(
    ("answer", "states"),
    [
        ({}, set()),
        ({"run": {}}, set()),
        ({"run": {"task": "deferred"}}, {"deferred"}),
        ({"run": {"task_3": TaskInstanceState.FAILED}}, {"failed"}),
        ({"run": {"task": None}}, {"none"}),
    ],
)
def test_a_state_is_a_word_and_a_task_just_cleared_has_one_too(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, Any], states: set[str]
) -> None:
    asked: list[dict[str, Any]] = []

    def get_task_states(**question: Any) -> dict[str, Any]:
        asked.append(question)
        return answer

    monkeypatch.setattr(RuntimeTaskInstance, "get_task_states", get_task_states)
    task = SimpleNamespace(dag_id="dag", task_id="task", run_id="run", map_index=3)
    assert states_of(task) == states
    assert asked == [{"dag_id": "dag", "task_ids": ["task"], "run_ids": ["run"], "map_index": 3}]


#: Of each state of a task: whether only a user brings it about while a worker, or a trigger, still has the task; and
#: whether a trigger cannot tell.
STATES = {
    "running": (False, False, False),
    "deferred": (False, False, False),
    "up_for_retry": (False, False, False),
    "up_for_reschedule": (False, False, False),
    "awaiting_input": (False, False, False),
    "scheduled": (False, False, True),
    "queued": (False, False, True),
    "none": (False, True, False),
    "restarting": (True, True, False),
    "failed": (True, True, False),
    "success": (True, True, False),
    "skipped": (True, True, False),
    "removed": (True, True, False),
    "upstream_failed": (False, False, False),
}


@pytest.mark.parametrize("state", [*TaskInstanceState, None])
def test_only_what_leaves_the_job_to_nobody_counts_as_a_users_kill(state: TaskInstanceState | None) -> None:
    word = "none" if state is None else state.value
    in_worker, in_trigger, undecided = STATES[word]
    assert killed_by_user({word}) is in_worker
    assert trigger_killed_by_user({word}) is in_trigger
    assert cleared_or_resumed({word}) is undecided


def test_no_answer_says_nothing() -> None:
    assert not killed_by_user(set())
    assert not trigger_killed_by_user(set())
    assert not cleared_or_resumed(set())
