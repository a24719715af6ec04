"""
What only shows on a real scheduler, triggerer and LocalExecutor.

A comment at each fact names what of ours hangs on it: look there when the test fails.
"""

from __future__ import annotations

import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from demo.local_airflow import LocalAirflow
from tests.airflow_facts.probes import FACTS, MARK, PAYLOAD, RETENTION, VALUE
from tests.system.waiting import eventually

PROJECT = Path(__file__).parents[2]
RUNS = ("tries", "deferrals", "failed_as_a_whole", "running", "endings", "mapped")

pytestmark = [pytest.mark.system, pytest.mark.timeout(400)]


class Facts:
    """One Airflow with a run of every DAG under way, and the notes that its tasks make."""

    def __init__(self, airflow: LocalAirflow, folder: Path) -> None:
        self.airflow = airflow
        self.folder = folder
        self.run_ids: dict[str, str] = {}

    def start(self) -> None:
        for dag_id in (*RUNS, "scheduled", "tested"):
            self.airflow.wait_for_dag(dag_id)
        self.airflow.unpause("scheduled")
        self.run_ids = {dag_id: self.airflow.trigger(dag_id) for dag_id in RUNS}

    def start_dag_test(self) -> subprocess.Popen[bytes]:
        for task_id in ("in_dag_test", "ends_in_dag_test"):
            self.open(task_id)
        return subprocess.Popen(
            [sys.executable, "-m", "airflow", "dags", "test", "tested"],
            env=self.airflow.environment,
            cwd=self.airflow.folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def ended(self, dag_id: str, timeout: float = 180) -> str:
        return self.airflow.wait_for_run(dag_id, self.run_ids[dag_id], timeout)

    def task(self, dag_id: str, task_id: str, *states: str, try_number: int | None = None) -> Any:
        return self.airflow.wait_for_task(
            dag_id, self.run_ids[dag_id], task_id, *states, try_number=try_number, timeout=180
        )

    def notes(self, name: str, what: str | None = None) -> list[dict[str, Any]]:
        path = self.folder / f"{name}.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        notes = [json.loads(line) for line in lines if line.endswith("\n")]
        return [each for each in notes if what in (None, each["what"])]

    def noted(self, name: str, what: str) -> dict[str, Any]:
        """Wait until a task or trigger has made such a note, and return the first."""
        eventually(lambda: bool(self.notes(name, what)), 120)
        return self.notes(name, what)[0]

    def states_noted(self, dag_id: str, name: str) -> Any:
        """Return the state that Airflow gave when a task or trigger asked for its own."""
        return self.noted(name, "states")["states"][self.run_ids[dag_id]][name]

    def watched(self, dag_id: str, task_id: str) -> None:
        """Wait until a task is deferred and its trigger runs."""
        self.task(dag_id, task_id, "deferred")
        self.noted(task_id, "trigger runs")

    def open(self, name: str) -> None:
        (self.folder / f"{name}.open").touch()

    def log(self, dag_id: str, task_id: str, try_number: int = 1) -> str:
        return self.airflow.task_log(dag_id, self.run_ids[dag_id], task_id, try_number)

    def write(self, sql: str, *parameters: object) -> int:
        """Write to Airflow's database, as another component would."""
        with closing(sqlite3.connect(self.airflow.database, timeout=60)) as connection, connection:
            return int(connection.execute(sql, parameters).lastrowid or 0)


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facts]:
    folder = tmp_path_factory.mktemp("facts")
    with LocalAirflow(
        tmp_path_factory.mktemp("airflow"),
        dags=Path(__file__).parent / "dags",
        # Workers, triggerer and DAG processor import the probes.
        environment={FACTS: str(folder), "PYTHONPATH": str(PROJECT)},
        parallelism=10,
        start_timeout=180,
    ) as airflow:
        facts = Facts(airflow, folder)
        facts.start()
        with facts.start_dag_test() as dag_test:
            yield facts
            dag_test.kill()


# Retries and clears


@pytest.mark.parametrize("task_id", ["raised", "killed"])
def test_the_state_store_outlives_a_retry_and_a_clear_which_xcoms_and_max_tries_tell_apart(
    facts: Facts, task_id: str
) -> None:
    # ledger/task_state.py keeps the record there; ledger/record.py: was_cleared().
    facts.task("tries", task_id, "success", try_number=2)
    facts.airflow.clear("tries", facts.run_ids["tries"], [task_id])
    facts.task("tries", task_id, "success", try_number=3)

    left, (first, retried, cleared) = facts.noted(task_id, "left"), facts.notes(task_id, "found")
    assert (first["state_store"], first["xcom"]) == (None, None)
    assert (left["state_store"], left["xcom"]) == (VALUE, VALUE)
    # XCom is no recovery: it is emptied before each try. The store is what is left.
    assert (retried["state_store"], retried["xcom"]) == (VALUE, None)
    # An Airflow that empties the store on a clear (announced after 3.3.2) lets `on_clear` never see a record.
    assert (cleared["state_store"], cleared["xcom"]) == (VALUE, None)
    assert left["max_tries"] == retried["max_tries"] == 1
    assert cleared["max_tries"] == 3


def test_a_value_in_the_state_store_is_kept_for_as_long_as_it_was_asked(facts: Facts) -> None:
    # ledger/task_state.py: RETENTION.
    facts.noted("raised", "left")
    ((written, expires),) = facts.airflow.query(
        "SELECT updated_at, expires_at FROM task_state_store WHERE task_id = 'raised' AND key = 'mark'"
    )
    kept = datetime.fromisoformat(expires) - datetime.fromisoformat(written)
    assert abs(kept - RETENTION) < timedelta(minutes=10)


def test_a_retry_of_a_task_that_had_deferred_begins_with_execute(facts: Facts) -> None:
    # operators/fal.py: execute() re-attaches; execute_complete() is only for the first resumption.
    facts.watched("tries", "fails_when_resumed")
    facts.open("fails_when_resumed")
    facts.task("tries", "fails_when_resumed", "success", try_number=2)
    assert [each["what"] for each in facts.notes("fails_when_resumed")] == [
        "execute",
        "trigger runs",
        "execute_complete",
        "execute",
    ]


def test_what_no_retry_can_mend_is_not_retried_nor_shown_to_a_retry_policy(facts: Facts) -> None:
    # exceptions.py derives from both classes so that no retry follows.
    for task_id in ("hopeless", "out_of_time"):
        assert facts.task("endings", task_id, "failed").try_number == 1
    assert facts.task("endings", "patient", "success").try_number == 2
    # The policy's own delay counts, not the task's of an hour.
    assert [each["about"] for each in facts.notes("retry_policy", "asked")] == ["RuntimeError"]


def test_a_return_value_is_logged_unless_the_task_says_not_to(facts: Facts) -> None:
    # dags_examples/nightly_media.py: prompts are returned by a task that keeps quiet.
    for task_id, value, logged in (
        ("talkative", "a-value-to-tell", True),
        ("silent", "a-value-to-keep-quiet", False),
    ):
        facts.task("endings", task_id, "success")
        assert (value in facts.log("endings", task_id)) is logged


# Deferring


def test_the_arguments_of_a_trigger_lie_in_plain_text_in_the_database(facts: Facts) -> None:
    # triggers/fal.py: no key, no prompt and no input in FalQueueTrigger.serialize().
    facts.watched("deferrals", "told")
    ((arguments, next_arguments),) = facts.airflow.query(
        "SELECT trigger.kwargs, task_instance.next_kwargs FROM trigger JOIN task_instance"
        " ON task_instance.trigger_id = trigger.id WHERE task_instance.task_id = 'told'"
    )
    assert MARK in arguments
    assert "kept" in str(next_arguments)


def test_the_triggers_log_tells_of_an_event_what_its_own_representation_says(facts: Facts) -> None:
    # triggers/fal.py: FalQueueEvent keeps prompts out of the log.
    facts.open("told")
    facts.task("deferrals", "told", "success")
    (resumed,) = facts.notes("told", "execute_complete")
    assert (resumed["event"], resumed["kept"]) == ({"payload": PAYLOAD}, "kept")
    eventually(lambda: "Trigger fired event" in facts.log("deferrals", "told"), 60)
    log = facts.log("deferrals", "told")
    assert "QuietEvent<nothing to see>" in log
    assert PAYLOAD not in log


def test_what_a_task_pushed_before_it_deferred_is_there_when_it_has_ended(facts: Facts) -> None:
    # operators/submitting.py: request_id, status_url and response_url are pushed before FalGenerateOperator waits.
    for task_id in ("told", "ends"):
        facts.open(task_id)
        facts.task("deferrals", task_id, "success")
        assert json.loads(xcoms(facts, task_id)["before"]) == VALUE


def test_a_bare_end_in_the_trigger_keeps_an_xcom_and_one_with_xcoms_encodes_it_twice(facts: Facts) -> None:
    # triggers/fal.py: FalQueueTrigger._push_result() instead of TaskSuccessEvent(xcoms=…).
    for task_id, value in (("ends", VALUE), ("ends_with_xcoms", json.dumps(VALUE))):
        facts.open(task_id)
        facts.task("deferrals", task_id, "success")
        assert json.loads(xcoms(facts, task_id)["return_value"]) == value
        # No worker was started for it.
        assert facts.notes(task_id, "execute_complete") == []


def xcoms(facts: Facts, task_id: str) -> dict[str, str]:
    entries = facts.airflow.xcom_entries("deferrals", facts.run_ids["deferrals"])
    return {entry.key: entry.value for entry in entries if entry.task_id == task_id}


def killed_by_clearing(facts: Facts) -> None:
    facts.airflow.clear("deferrals", facts.run_ids["deferrals"], ["cleared"])


def killed_by_marking(state: str) -> Callable[[Facts], None]:
    def mark(facts: Facts) -> None:
        facts.airflow.set_task_state("deferrals", facts.run_ids["deferrals"], f"marked_{state}", state)

    return mark


def killed_with_its_run(facts: Facts) -> None:
    facts.airflow.set_run_state("failed_as_a_whole", facts.run_ids["failed_as_a_whole"], "failed")


@pytest.mark.parametrize(
    ("dag_id", "task_id", "kill", "states"),
    [
        # A cleared task goes on towards its next try while the trigger asks.
        ("deferrals", "cleared", killed_by_clearing, {None, "scheduled", "queued", "running", "success"}),
        ("deferrals", "marked_failed", killed_by_marking("failed"), {"failed"}),
        ("deferrals", "marked_success", killed_by_marking("success"), {"success"}),
        ("failed_as_a_whole", "in_a_failed_run", killed_with_its_run, {"failed", "skipped"}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_kill_while_deferred_calls_on_kill_which_is_cancelled_while_its_thread_lives_on(
    facts: Facts, dag_id: str, task_id: str, kill: Callable[[Facts], None], states: set[str | None]
) -> None:
    # triggers/fal.py: on_kill() cancels the job in a thread, if hooks/task_states.py says that a user did it.
    facts.watched(dag_id, task_id)
    kill(facts)
    assert facts.noted(task_id, "thread done")["after_the_cancel"]
    assert len(facts.notes(task_id, "on_kill")) == 1
    assert facts.states_noted(dag_id, task_id) in states


def test_a_trigger_that_another_triggerer_has_taken_over_is_also_killed_but_its_task_is_still_deferred(
    facts: Facts,
) -> None:
    # triggers/fal.py: _cancel_unless_deferred() leaves the job alone.
    facts.watched("deferrals", "moved")
    far = "2999-01-01 00:00:00.000000"
    other = facts.write(
        "INSERT INTO job (state, job_type, start_date, latest_heartbeat, hostname, unixname)"
        " VALUES ('running', 'TriggererJob', ?, ?, 'elsewhere', 'nobody')",
        "2026-01-01 00:00:00.000000",
        far,
    )
    moved = "UPDATE trigger SET triggerer_id = ? WHERE id = (SELECT trigger_id FROM task_instance WHERE task_id = 'moved')"
    facts.write(moved, other)
    assert facts.states_noted("deferrals", "moved") == "deferred"
    facts.noted("moved", "thread done")
    assert len(facts.notes("moved", "execute")) == 1

    # And back: it goes on where it was.
    facts.write(moved, None)
    facts.write("DELETE FROM job WHERE id = ?", other)
    facts.open("moved")
    facts.task("deferrals", "moved", "success")


def test_a_trigger_that_works_on_after_its_event_is_killed(facts: Facts) -> None:
    # triggers/fal.py: run() returns after its one event, and `_fired` keeps on_kill() from cancelling.
    facts.watched("deferrals", "works_on")
    assert facts.notes("works_on", "on_kill") == []
    facts.open("works_on")
    facts.noted("works_on", "on_kill")


def test_execution_timeout_does_not_count_while_a_task_is_deferred(facts: Facts) -> None:
    # operators/fal.py, sensors/fal.py: the trigger carries deadlines of its own.
    facts.open("overlong")
    facts.task("deferrals", "overlong", "success")
    (began,), (ended,) = facts.notes("overlong", "execute"), facts.notes("overlong", "execute_complete")
    assert ended["at"] - began["at"] > 20


def test_a_deferral_that_times_out_is_ended_without_on_kill_and_retried(facts: Facts) -> None:
    # triggers/fal.py: BACKSTOP_SECONDS; nobody would cancel the job, so the trigger must end the wait before.
    facts.task("deferrals", "backstopped", "success", try_number=2)
    assert "TaskDeferralTimeout" in facts.log("deferrals", "backstopped")
    whats = [each["what"] for each in facts.notes("backstopped")]
    assert whats.count("execute") == 2
    assert not {"execute_complete", "on_kill"} & set(whats)


# In the worker


@pytest.mark.parametrize(
    ("task_id", "state"),
    [("marked_while_running", "failed"), ("cleared_while_running", "restarting"), ("timed_out", "running")],
)
def test_a_running_task_asks_for_its_state_while_it_is_killed_and_has_three_seconds_for_it(
    facts: Facts, task_id: str, state: str
) -> None:
    # operators/fal.py: FalGenerateOperator.on_kill(), KILL_SECONDS; a time-out is followed by a retry: no cancel.
    facts.noted(task_id, "execute")
    if state == "failed":
        facts.airflow.set_task_state("running", facts.run_ids["running"], task_id, "failed")
    elif state == "restarting":
        facts.airflow.clear("running", facts.run_ids["running"], [task_id])
    assert facts.states_noted("running", task_id) == state
    if state != "running":
        facts.noted(task_id, "three seconds later")
    facts.task("running", task_id, "success" if state == "restarting" else "failed")


@pytest.mark.parametrize("task_id", ["told_by_its_supervisor", "told_with_its_supervisor"])
def test_a_worker_that_is_told_to_end_calls_on_kill_of_a_task_that_is_running_and_goes_on(
    facts: Facts, task_id: str
) -> None:
    # operators/fal.py: FalGenerateOperator.on_kill() asks for the state, for an eviction is no wish of the user's.
    facts.noted(task_id, "execute")
    process = facts.airflow.task_process("running", facts.run_ids["running"], task_id)
    supervisor = process.parent()
    assert supervisor is not None
    supervisor.terminate()
    if task_id == "told_with_its_supervisor":
        process.terminate()
    assert facts.states_noted("running", task_id) == "running"
    facts.noted(task_id, "three seconds later")
    facts.airflow.set_task_state("running", facts.run_ids["running"], task_id, "success")
    eventually(lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, 60)


def test_clearing_a_running_task_raises_max_tries_and_runs_it_again(facts: Facts) -> None:
    # ledger/record.py: was_cleared()
    facts.task("running", "cleared_while_running", "success", try_number=2)
    tries = facts.notes("cleared_while_running", "execute")
    assert [each["max_tries"] for each in tries] == [0, 1]


def test_a_rescheduled_sensor_knows_when_it_began_and_keeps_its_state_store(facts: Facts) -> None:
    # sensors/fal.py: _watch_of_mode(), whose deadline and progress are those of the first poke.
    facts.task("running", "rescheduled", "success")
    first, second, third = facts.notes("rescheduled", "poke")
    assert [each["seen"] for each in (first, second, third)] == [0, 1, 2]
    assert first["first"] is None
    assert second["first"] == third["first"] == pytest.approx(first["at"], abs=30)
    assert second["first"] < second["at"] - 8


# Mapped task groups


def test_a_failed_index_stops_its_own_branch_and_leaves_a_gap_where_indexes_are_pulled_by_name(
    facts: Facts,
) -> None:
    # dags_examples/nightly_media.py maps a task group, and its account pulls with map_indexes.
    assert facts.ended("mapped") == "success"
    tasks = facts.airflow.task_instances("mapped", facts.run_ids["mapped"])
    states = {(each.task_id, each.map_index): each.state for each in tasks}
    assert [states["group.one", index] for index in range(3)] == ["success", "failed", "success"]
    assert [states["group.then", index] for index in range(3)] == ["success", "upstream_failed", "success"]
    pulled = facts.noted("gathered", "pulled")
    assert pulled["by_index"] == [0, None, 2]
    # What a task pushes before it fails stays: reporting.py, failure_in_xcom().
    assert pulled["failures"] == [None, VALUE, None]
    # Without names they close up, and the third is taken for the second.
    assert pulled["all"] == [0, 2]


def test_each_mapped_task_has_a_state_store_and_a_state_of_its_own(facts: Facts) -> None:
    # ledger/task_state.py: one record under one key for each map index.
    facts.ended("mapped")
    noted = {each["index"]: each["had"] for each in facts.notes("one_of_many", "store")}
    assert noted == {0: None, 1: None, 2: None}
    # And is told of itself alone: hooks/task_states.py.
    told = [
        list(tasks.values())
        for each in facts.notes("one_of_many", "states")
        for tasks in each["states"].values()
    ]
    assert told == [["running"]] * 3
    rows = facts.airflow.query("SELECT map_index, value FROM task_state_store WHERE key = 'index'")
    assert {index: json.loads(value) for index, value in rows} == {0: 0, 1: 1, 2: 2}


# dag.test


def test_dag_test_drops_the_arguments_of_a_deferral_and_resumes_where_the_trigger_was_to_end(
    facts: Facts,
) -> None:
    # triggers/fal.py: everything is in the event; tests/system runs what dag.test() hides.
    resumed = facts.noted("in_dag_test", "execute_complete")
    assert (resumed["event"], resumed["kept"]) == ({"payload": PAYLOAD}, None)
    ended = facts.noted("ends_in_dag_test", "execute_complete")
    assert ended["event"] == "success"


# A triggerer that stops


def test_a_triggerer_that_is_stopped_hands_its_triggers_on_and_kills_none(facts: Facts) -> None:
    # triggers/fal.py: the cancellation of run() alone cancels no job; run() begins anew from its arguments.
    name = "outlives_its_triggerer"
    facts.watched("deferrals", name)
    triggerer = facts.airflow.children["triggerer"]
    facts.airflow.kill("triggerer", signal.SIGTERM, alone=True)
    eventually(lambda: triggerer.ended, 60)
    facts.airflow.restart("triggerer", timeout=120)
    eventually(lambda: len(facts.notes(name, "trigger runs")) == 2, 120)
    facts.open(name)
    facts.task("deferrals", name, "success")
    assert facts.notes(name, "on_kill") == []


# What did not happen while all of the above did: these come last


def test_an_end_in_the_trigger_makes_no_asset_event_and_calls_nobody(facts: Facts) -> None:
    # operators/fal.py: the docstring of FalGenerateOperator, end_from_trigger.
    for task_id in ("told", "ends", "ends_with_xcoms"):
        facts.open(task_id)
        facts.task("deferrals", task_id, "success")
    facts.noted("success_callback", "called")
    assert [each["task_id"] for each in facts.notes("success_callback")] == ["told"]
    assert facts.airflow.query("SELECT source_task_id FROM asset_event") == [("told",)]


def test_no_run_starts_by_itself_where_use_job_schedule_is_off(facts: Facts) -> None:
    # demo/local_airflow.py: unpausing a nightly DAG must not start last night's run.
    assert facts.airflow.query("SELECT is_paused FROM dag WHERE dag_id = 'scheduled'") == [(0,)]
    assert facts.airflow.query("SELECT run_id FROM dag_run WHERE dag_id = 'scheduled'") == []
