from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.utils.state import TaskInstanceState

from airflow_provider_uniapi_fal.hooks.task_states import (
    cleared_or_resumed,
    killed_by_user,
    marked_by_user,
    states_of,
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


#: Of each state of a task whose process or trigger is being ended: whether a user has marked it; whether that or a clear
#: while it ran; and whether a trigger cannot tell a clear from an event that was fired elsewhere.
STATES = {
    "running": (False, False, False),
    "deferred": (False, False, False),
    "up_for_retry": (False, False, False),
    "up_for_reschedule": (False, False, False),
    "awaiting_input": (False, False, False),
    "scheduled": (False, False, True),
    "queued": (False, False, True),
    "none": (False, False, True),
    "restarting": (False, True, False),
    "failed": (True, True, False),
    "success": (True, True, False),
    "skipped": (True, True, False),
    "removed": (True, True, False),
    "upstream_failed": (False, False, False),
}


@pytest.mark.parametrize("state", [*TaskInstanceState, None])
def test_only_what_leaves_the_job_to_nobody_counts_as_a_users_kill(state: TaskInstanceState | None) -> None:
    word = "none" if state is None else state.value
    marked, killed, undecided = STATES[word]
    assert marked_by_user({word}) is marked
    assert killed_by_user({word}) is killed
    assert cleared_or_resumed({word}) is undecided


def test_no_answer_says_nothing() -> None:
    assert not killed_by_user(set())
    assert not marked_by_user(set())
    assert not cleared_or_resumed(set())
