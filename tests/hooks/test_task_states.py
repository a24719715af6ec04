from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.utils.state import TaskInstanceState

from airflow_provider_uniapi_fal.hooks.task_states import killed_by_user, states_of


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


@pytest.mark.parametrize(
    ("states", "killed"),
    [
        (set(), False),
        ({"running"}, False),
        ({"deferred"}, False),
        ({"up_for_retry"}, False),
        ({"none"}, True),
        ({"scheduled"}, True),
        ({"restarting"}, True),
        ({"failed"}, True),
        ({"success"}, True),
    ],
)
def test_only_what_leaves_the_job_to_nobody_counts_as_a_users_kill(states: set[str], killed: bool) -> None:
    assert killed_by_user(states) is killed
