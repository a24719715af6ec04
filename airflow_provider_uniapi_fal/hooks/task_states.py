"""Asking Airflow what state a task is in, to tell a kill by a user from anything else that ends a process."""

from __future__ import annotations

from typing import Any

from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

#: States into which only a user brings a task whose process or trigger is still there, or that leave its job to nobody.
#: A clear of a running task leaves ``restarting`` until its process has ended.
_KILLED = {"failed", "success", "skipped", "removed", "restarting"}

#: A clear of a task that is not running leaves none, and no state for as long as the scheduler has not seen it.
_CLEARED = {"none"}

#: Then come these; but so they do after the event of a trigger, and before a retry.
_TO_BE_STARTED = {"scheduled", "queued"}


def killed_by_user(states: set[str]) -> bool:
    """
    Whether a task whose process is being ended was cleared or marked by a user.

    Evictions, time-outs and lost heartbeats leave the task in a state in which somebody goes on with the job, or is
    about to: a worker that was frozen may wake while the retry is scheduled that takes up the job. No answer says
    nothing.
    """
    return bool(states) and states <= _KILLED


def trigger_killed_by_user(states: set[str]) -> bool:
    """
    Whether a task whose trigger is being ended was cleared or marked by a user.

    A trigger that moved to another triggerer leaves the task deferred, or resumed, but never without a state.
    """
    return bool(states) and states <= _KILLED | _CLEARED


def cleared_or_resumed(states: set[str]) -> bool:
    """
    Whether a task whose trigger is being ended is about to be started.

    After a clear it is, and also if the trigger moved to another triggerer and has fired there. Airflow does not tell
    a trigger the number of the try, by which the two differ.
    """
    return bool(states) and states <= _TO_BE_STARTED


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
