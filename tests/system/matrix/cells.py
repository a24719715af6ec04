"""
What the matrix is made of: columns, rows, and cells that run side by side in one Airflow.

A row says what happens to a job, and how each column ends then. Cells run side by side, each in a thread of its
own; those whose jobs must not end before their fault is over have them *held*: the emulator says IN_PROGRESS of
them until each of these cells has had its fault. Cells that are about who is asked first, and in time, run *alone*
after the others. So no row depends on how fast the machine is, and none may end in two ways.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    import psutil

    from airflow_provider_uniapi_fal.emulator.running import Emulator
    from demo.local_airflow import LocalAirflow

SUBMIT = "submit_alone"
SENSOR = "submit_and_sensor"
BLOCKING = "generate_blocking"
DEFERRABLE = "generate_deferrable"
COLUMNS = (SUBMIT, SENSOR, BLOCKING, DEFERRABLE)
#: As the one before it, and the task ends in the triggerer: a column where that makes a difference.
ENDING = "generate_ended_by_trigger"

#: A deadline for whatever must come about sooner or later on a machine that runs many tasks at once.
PATIENCE = 300.0

#: So many cells are under way at once: Airflow's SQLite takes no larger crowd well.
SIDE_BY_SIDE = 9

#: What `held` jobs have in their prompts.
HELD = "held: "

#: The pool of the DAGs whose tasks may have to wait for a slot.
POOL, SLOTS = "matrix", 8


def eventually(condition: Callable[[], bool], timeout: float = PATIENCE) -> None:
    """Return once the condition holds, looking seldom: many cells look at once."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.4)


@dataclass(frozen=True)
class Ends:
    """
    How a cell ends.

    :param state: the run's state
    :param posts: jobs that the emulator accepted, each of them paid for
    :param cancels: requests to cancel that it got
    :param cancels_in_tries: and one more in each try whose log has these words
    :param tries: the task that submits was tried so often, or more often where Airflow lost a try
    :param waits: so often, or more often, the task that waits was tried; 0 where the submit before it failed
    :param untouched: no task was tried again, and none has taken up a job
    :param outcome: what the ``failure`` XCom calls it, if the run failed by an error of this provider
    :param words: parts of the messages and logs that tell what became of the job
    :param brings: whether the XComs of the last job are there: ``result``, ``handle`` (of a job that is not
        known to have ended) or nothing
    """

    state: str = "success"
    posts: int = 1
    cancels: int = 0
    cancels_in_tries: str = ""
    tries: int = 1
    waits: int = 0
    untouched: bool = False
    outcome: str | None = None
    words: Sequence[str] = ()
    brings: str = "result"


@dataclass(frozen=True)
class Row:
    """
    One fault, and how each column ends after it.

    :param promise: what the row promises
    :param happens: what is done to a cell whose run was started; the run's end is awaited after it
    :param ends: how it ends, by column; a column for which it has no meaning is left out
    :param job: how the first job of the cell goes, unlike the emulator's others
    :param faults: rules of the emulator for this cell alone
    :param gate: where the task stops, once, see ``dags/columns.py``
    :param then: ``raise`` for an exception there
    :param held: the job ends only after the fault
    :param alone: nothing else is under way, so that who is asked answers in time
    :param variant: prefix of the DAGs
    """

    promise: str
    happens: Callable[[Cell], None]
    ends: Mapping[str, Ends]
    job: Mapping[str, Any] = field(default_factory=dict)
    faults: Sequence[Mapping[str, Any]] = ()
    gate: str = ""
    then: str = ""
    held: bool = False
    alone: bool = False
    variant: str = ""


class Cell:
    """One row in one column: a run, its job, and what can be done to them."""

    def __init__(self, matrix: Matrix, row: Row, column: str) -> None:
        self.matrix = matrix
        self.airflow: LocalAirflow = matrix.airflow
        self.emulator: Emulator = matrix.emulator
        self.row, self.column = row, column
        self.dag_id = row.variant + column
        # The emulator's account has room for the beginning of a prompt. The full stop keeps one prompt from being
        # the beginning of another.
        self.prompt = f"{HELD if row.held else ''}{row.promise[:80]} ({column})."
        self.run_id = ""
        #: Posts and cancels when it was looked at.
        self.counted: tuple[int, int] | None = None
        self.done = threading.Event()
        self.submit_task = "submit" if column in (SUBMIT, SENSOR) else "generate"
        self.wait_task = "wait" if column == SENSOR else self.submit_task
        self._gate = matrix.gates / f"{len(row.promise)}-{abs(hash((row.promise, column))):x}"

    def start(self) -> None:
        """Start the run, with the emulator's rules for it in force."""
        if self.row.job:
            self.emulator.add_fault({"fault": "job", "match": self.prompt, "times": 1, **self.row.job})
        for rule in self.row.faults:
            self.emulator.add_fault({"match": self.prompt, **rule})
        conf = {
            "prompt": self.prompt,
            "cell": self._gate.name,
            "gate": self.row.gate,
            "then": self.row.then,
        }
        self.airflow.wait_for_dag(self.dag_id)
        with self.matrix.one_at_a_time:
            self.run_id = self.airflow.trigger(self.dag_id, conf=conf)

    # What the emulator knows

    def jobs(self) -> list[dict[str, Any]]:
        return [job for job in self.emulator.account()["jobs"] if job["prompt"] == self.prompt]

    def cancels(self) -> int:
        return sum(job["calls"]["cancel"] for job in self.jobs())

    def looks(self) -> int:
        return sum(job["calls"]["status"] for job in self.jobs())

    def until_accepted(self) -> None:
        eventually(lambda: bool(self.jobs()))

    def until_looked_at(self, times: int = 2) -> None:
        eventually(lambda: self.looks() >= times)

    def until_finished(self) -> None:
        eventually(lambda: all(job["state"] == "finished" for job in self.jobs()), PATIENCE)

    # What happens to it

    def until_at_gate(self) -> None:
        eventually(self._gate.exists)

    def until_deferred(self) -> None:
        self.airflow.wait_for_task(self.dag_id, self.run_id, self.wait_task, "deferred", timeout=PATIENCE)
        self.until_looked_at()

    def until_waiting(self) -> None:
        """Wait until the job is looked at: from the triggerer, or from the worker in the blocking column."""
        if self.column == BLOCKING:
            self.until_looked_at()
        else:
            self.until_deferred()

    def ended(self) -> str:
        return self.airflow.wait_for_run(self.dag_id, self.run_id, PATIENCE)

    def until_tried_again(self, task: str, before: int) -> None:
        eventually(lambda: self.try_number(task) > before)

    def process(self, task: str) -> psutil.Process:
        return self.airflow.task_process(self.dag_id, self.run_id, task)

    def kill_task(self, task: str | None = None) -> None:
        os.kill(self.process(task or self.submit_task).pid, signal.SIGKILL)

    def worker(self, task: str) -> tuple[psutil.Process, psutil.Process]:
        """Return the process that supervises the task, and the task's own."""
        process = self.process(task)
        supervisor = process.parent()
        assert supervisor is not None
        assert supervisor.pid != self.airflow.children["scheduler"].pid
        return supervisor, process

    def kill_worker(self, task: str | None = None) -> None:
        """Kill the task's process and the one that supervises it."""
        # The supervisor first: it would tell Airflow of the task's end.
        for process in self.worker(task or self.submit_task):
            process.kill()

    def clear_running(self, task: str) -> None:
        """
        Clear a running task, and wait until it is under way again.

        One after another: of several that are cleared at once, Airflow 3.3 makes some look like a retry.
        """
        with self.matrix.one_clear_at_a_time:
            before = self.try_number(task)
            self.clear(task)
            self.until_tried_again(task, before)

    def clear(self, *tasks: str) -> None:
        """Clear tasks that do not run, or all of a run that has ended."""
        with self.matrix.one_at_a_time:
            self.airflow.clear(self.dag_id, self.run_id, tasks or None)

    @contextlib.contextmanager
    def without_a_slot(self) -> Iterator[None]:
        """Let the next try be scheduled and not begin, in a DAG whose tasks need slots."""
        self.airflow.set_pool(POOL, 0)
        try:
            yield
        finally:
            self.airflow.set_pool(POOL, SLOTS)

    def mark(self, state: str) -> None:
        with self.matrix.one_at_a_time:
            self.airflow.set_task_state(self.dag_id, self.run_id, self.wait_task, state)

    def mark_run(self, state: str) -> None:
        with self.matrix.one_at_a_time:
            self.airflow.set_run_state(self.dag_id, self.run_id, state)

    # What has become of it

    def try_number(self, task: str | None = None) -> int:
        return self.airflow.task_instance(self.dag_id, self.run_id, task or self.submit_task).try_number

    def xcoms(self) -> dict[tuple[str, str], Any]:
        entries = self.airflow.xcom_entries(self.dag_id, self.run_id)
        return {
            (entry.task_id, entry.key): self.airflow.xcom(self.dag_id, self.run_id, entry.task_id, entry.key)
            for entry in entries
        }

    def logs(self) -> list[str]:
        """Return what the tasks logged, try by try."""
        return [
            self.airflow.task_log(self.dag_id, self.run_id, task, number)
            for task in dict.fromkeys((self.submit_task, self.wait_task))
            for number in range(1, self.try_number(task) + 1)
        ]

    def story(self) -> str:
        """Return all that the tasks logged, in all tries."""
        return "\n".join(self.logs())

    def counts(self, ends: Ends) -> bool:
        """Whether there were so many posts and cancels."""
        in_tries = ends.cancels_in_tries
        cancels = ends.cancels + (sum(in_tries in log for log in self.logs()) if in_tries else 0)
        self.counted = len(self.jobs()), self.cancels()
        return self.counted == (ends.posts, cancels)

    def ends_as(self, ends: Ends) -> None:
        """Assert that the money, the XComs and the words are as the table says."""
        # The cancellation of what a user has killed may come after the end of the run.
        with contextlib.suppress(AssertionError):
            eventually(lambda: self.counts(ends), 60)
        jobs, xcoms = self.jobs(), self.xcoms()
        story = self.story()
        assert self.counts(ends), f"{self.counted} posts and cancels instead of {ends}; the log:\n{story}"
        assert self.airflow.run_state(self.dag_id, self.run_id) == ends.state, story
        tries = {self.try_number(task) for task in (self.submit_task, self.wait_task)}
        assert self.try_number() >= ends.tries
        assert self.try_number(self.wait_task) >= ends.waits
        assert not ends.untouched or (tries == {1} and "Re-attaching" not in story), story

        request_id = xcoms.get((self.submit_task, "request_id"))
        result = xcoms.get((self.wait_task, "return_value"))
        handle = result and (result if self.column == SUBMIT else result["handle"])
        last = jobs[-1]["request_id"] if jobs else None
        assert request_id == (last if ends.brings else None)
        assert (handle and handle["request_id"]) == (last if ends.brings == "result" else None)

        failure = xcoms.get((self.wait_task, "failure")) or xcoms.get((self.submit_task, "failure"))
        assert (failure and failure["outcome"]) == ends.outcome, failure
        missing = [words for words in ends.words if words not in story]
        assert not missing, f"the log does not say {missing}:\n{story}"
        if failure:
            assert failure["message"] in story


class Matrix:
    """Runs cells side by side and keeps how each of them went."""

    def __init__(self, airflow: LocalAirflow, emulator: Emulator, gates: Path) -> None:
        self.airflow, self.emulator, self.gates = airflow, emulator, gates
        #: For calls that Airflow's SQLite takes badly in crowds.
        self.one_at_a_time = threading.Lock()
        self.one_clear_at_a_time = threading.Lock()
        self._errors: dict[Cell, BaseException] = {}

    def run(self, cells: Sequence[Cell]) -> None:
        """Run cells side by side until each has ended; what went wrong is kept for :meth:`check`."""
        crowd = [cell for cell in cells if not cell.row.alone]
        self.run_together([cell for cell in crowd if not cell.row.held])
        self.run_together([cell for cell in crowd if cell.row.held])
        for cell in cells:
            if cell.row.alone:
                self.run_together([cell])

    def run_together(self, cells: Sequence[Cell]) -> None:
        """Run cells side by side; the jobs of those that are held end when each has had its fault."""
        if not any(cell.row.held for cell in cells):
            with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
                list(threads.map(self.run_at_once, cells))
            return
        self.hold()
        with ThreadPoolExecutor(SIDE_BY_SIDE) as threads:
            list(threads.map(self.begin, cells))
            self.release()
            list(threads.map(self.end, cells))

    def hold(self) -> None:
        """Let no held job end, as far as the emulator tells."""
        self.emulator.add_fault(fault="body", on="status", match=HELD, status="IN_PROGRESS")

    def release(self) -> None:
        """Let the held jobs end; all other rules of the emulator are given up, too."""
        self.emulator.clear_faults()

    def run_at_once(self, cell: Cell) -> None:
        """Start a cell, do to it what its row says, and wait for its end."""
        self.begin(cell)
        self.end(cell)

    def begin(self, cell: Cell) -> None:
        """Start a cell and do to it what its row says."""
        with self._kept(cell):
            cell.start()
            cell.row.happens(cell)

    def end(self, cell: Cell) -> None:
        """Wait for the end of a cell's run."""
        if cell not in self._errors:
            with self._kept(cell):
                cell.ended()
        cell.done.set()

    def check(self, cell: Cell) -> None:
        """Wait for a cell, raise what went wrong with it, if anything did, and look how it has ended."""
        cell.done.wait()
        if cell in self._errors:
            raise self._errors[cell]
        cell.ends_as(cell.row.ends[cell.column])

    @contextlib.contextmanager
    def _kept(self, cell: Cell) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            self._errors[cell] = error
