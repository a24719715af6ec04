"""Asking Airflow what state a task is in, to tell a kill by a user from anything else that ends a process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance

#: States into which only a user brings a task whose process or trigger is still there, or that leave its job to nobody.
_MARKED = {"failed", "success", "skipped", "removed"}

#: A clear of a running task leaves this one until its process has ended.
_KILLED = _MARKED | {"restarting"}

#: These come after a clear of a task that waits; but so they do after the event of a trigger, and before a retry.
_TO_BE_STARTED = {"none", "scheduled", "queued"}


def marked_by_user(states: set[str]) -> bool:
    """
    Whether a task whose process or trigger is being ended was marked by a user, so that nobody goes on with its jobs.

    No answer says nothing.
    """
    return bool(states) and states <= _MARKED


def killed_by_user(states: set[str]) -> bool:
    """
    Whether a task whose process or trigger is being ended was marked by a user, or cleared while it ran.

    Evictions, time-outs and lost heartbeats leave the task in a state in which somebody goes on with the job, or is
    about to: a worker that was frozen may wake while the retry is scheduled that takes up the job. No answer says
    nothing.
    """
    return bool(states) and states <= _KILLED


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


def cancel_if_killed(
    ti: Any,
    cancel: Callable[[], None],
    *,
    is_killed: Callable[[set[str]], bool],
    what: str,
    say: Callable[[str], None],
    within: float,
) -> None:
    """
    Cancel if a user has killed the task, and only then: for ``on_kill``, which Airflow calls for other reasons, too.

    Airflow is asked from a thread, because the code that was interrupted may hold what the question needs. An answer
    that comes too late cancels nothing.

    :param is_killed: judges the task's states
    :param what: what would be cancelled, with its verb, for the log: ``Request 1 is``
    :param within: seconds that all of it may take; this returns then, whatever comes of it
    """
    too_late = threading.Event()

    def ask() -> None:
        states = states_of(ti)
        if is_killed(states) and not too_late.is_set():
            cancel()
        else:
            say(f"{what} not cancelled: the task's states are {states}.")

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(within)
    too_late.set()
