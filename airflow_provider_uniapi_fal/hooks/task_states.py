"""Asking Airflow what state a task is in, to tell a kill by a user from anything else that ends a process."""

from __future__ import annotations

from typing import Any

from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

#: States in which the job of a task belongs to somebody: to a worker, to a triggerer or to the retry that comes.
_OWNED = {"running", "deferred", "up_for_retry"}


def killed_by_user(states: set[str]) -> bool:
    """
    Whether a task whose process or trigger is being ended was cleared or marked by a user.

    Evictions, time-outs, lost heartbeats and triggers that moved to another triggerer leave the task in a state
    in which somebody goes on with the job. No answer says nothing.
    """
    return bool(states) and not states & _OWNED


def states_of(ti: Any) -> set[str]:
    """
    Return the state of a task instance; empty if Airflow does not tell, ``none`` just after a clear.

    Blocks: not for an event loop, and in a worker's signal handler only from a thread of its own.

    :param ti: anything with ``dag_id``, ``task_id``, ``run_id`` and ``map_index``
    """
    found = RuntimeTaskInstance.get_task_states(
        dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
    )
    return {
        str(getattr(state, "value", state) or "none") for tasks in found.values() for state in tasks.values()
    }
