"""
What becomes of a try that is over for Airflow, by Airflow's own code on its database.

The scheduler's and the execution API's functions are called as they are; only who calls them is missing.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pendulum
import pytest
from airflow.api_fastapi.execution_api.app import InProcessExecutionAPI
from airflow.jobs.scheduler_job_runner import SchedulerJobRunner
from airflow.models.dag import DagModel
from airflow.models.dagbag import DBDagBag
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.serialized_dag import SerializedDagModel
from airflow.models.taskinstance import TaskInstance, clear_task_instances
from airflow.models.trigger import Trigger
from airflow.sdk import DAG, BaseOperator
from airflow.serialization.definitions.dag import SerializedDAG
from airflow.serialization.serialized_objects import DagSerialization, LazyDeserializedDAG
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState, TaskInstanceState
from airflow.utils.types import DagRunTriggeredByType, DagRunType
from sqlalchemy import delete, func, select, update

if TYPE_CHECKING:
    from airflow.models.taskinstancekey import TaskInstanceKey

BUNDLE = "tries"
RETRIES = 3
TASKS = 8
SCHEDULER = 7


class Airflow:
    """A run whose tasks are all running, and what a task's supervisor asks the server."""

    def __init__(self, dag_id: str) -> None:
        self.dag_id = dag_id
        self._client = httpx.Client(
            transport=InProcessExecutionAPI().transport, base_url="http://airflow.example/"
        )

    def tries(self) -> dict[str, TaskInstance]:
        with create_session() as session:
            found = session.scalars(select(TaskInstance).where(TaskInstance.dag_id == self.dag_id)).all()
            session.expunge_all()
        return {ti.task_id: ti for ti in found}

    def put(self, ti: TaskInstance, key: str, value: Any) -> int:
        reply = self._client.put(f"store/ti/{ti.id}/{key}", json={"value": value})
        return reply.status_code

    def get(self, ti: TaskInstance, key: str) -> Any:
        reply = self._client.get(f"store/ti/{ti.id}/{key}")
        return reply.json()["value"] if reply.is_success else reply.status_code

    def clear(self, *tasks: str) -> None:
        with create_session() as session:
            found = session.scalars(
                select(TaskInstance).where(
                    TaskInstance.dag_id == self.dag_id, TaskInstance.task_id.in_(tasks)
                )
            ).all()
            clear_task_instances(list(found), session)

    def fail(self, task: str) -> None:
        """Let the scheduler find that the try is lost: a worker that gave no sign of life, or a report of its end."""
        with create_session() as session:
            ti = self.of(task, session)
            ti.task = DBDagBag().get_dag_for_run(ti.dag_run, session).get_task(task)  # type: ignore[union-attr]
            ti.handle_failure("lost", session=session)

    def report_ended(self, *tasks: str) -> None:
        """Let the executor report, in one batch, that the processes of these tasks have ended well."""
        with create_session() as session:
            keys = [self.of(task, session).key for task in tasks]
            scheduler: Any = Executor(keys)
            SchedulerJobRunner.process_executor_events(scheduler, SCHEDULER, DBDagBag(), session)

    def of(self, task: str, session: Any) -> TaskInstance:
        found = session.scalar(
            select(TaskInstance).where(TaskInstance.dag_id == self.dag_id, TaskInstance.task_id == task)
        )
        assert isinstance(found, TaskInstance)
        return found


class Executor:
    """Has nothing left to do, and reports what has ended."""

    def __init__(self, ended: list[TaskInstanceKey]) -> None:
        self._ended = ended

    def get_event_buffer(self) -> dict[TaskInstanceKey, tuple[TaskInstanceState, None]]:
        return dict.fromkeys(self._ended, (TaskInstanceState.SUCCESS, None))

    def has_task(self, ti: Any) -> bool:
        return False

    def send_callback(self, request: Any) -> None:
        return


@pytest.fixture
def airflow(airflow_database: Path) -> Iterator[Airflow]:
    dag_id = f"tries_{uuid.uuid4().hex}"
    with DAG(dag_id, schedule=None, default_args={"retries": RETRIES}) as dag:
        for number in range(TASKS):
            BaseOperator(task_id=f"task_{number}")
    now = pendulum.now("UTC")
    with create_session() as session:
        if session.get(DagBundleModel, BUNDLE) is None:
            session.add(DagBundleModel(name=BUNDLE))
            session.flush()
        parsed = LazyDeserializedDAG.from_dag(dag)
        SerializedDAG.bulk_write_to_db(BUNDLE, None, [parsed], session=session)
        SerializedDagModel.write_dag(parsed, BUNDLE, session=session)
        session.flush()
        DagSerialization.from_dict(parsed.data).create_dagrun(
            run_id="run",
            run_after=now,
            run_type=DagRunType.MANUAL,
            triggered_by=DagRunTriggeredByType.TEST,
            state=DagRunState.RUNNING,
            session=session,
        )
        session.flush()
        session.execute(
            update(TaskInstance)
            .where(TaskInstance.dag_id == dag_id)
            .values(state=TaskInstanceState.RUNNING, try_number=1, queued_by_job_id=SCHEDULER, start_date=now)
        )
    yield Airflow(dag_id)
    with create_session() as session:
        session.execute(delete(TaskInstance).where(TaskInstance.dag_id == dag_id))
        session.execute(delete(DagRun).where(DagRun.dag_id == dag_id))
        session.execute(delete(DagModel).where(DagModel.dag_id == dag_id))


def test_a_try_that_was_cleared_or_lost_cannot_write_to_the_state_store_any_more(airflow: Airflow) -> None:
    # ledger/task_state.py: a worker that was taken for dead and wakes cannot undo what its successor has written.
    first = airflow.tries()
    assert airflow.put(first["task_0"], "k", "of the first") == 204
    assert airflow.put(first["task_1"], "k", "of the first") == 204
    airflow.clear("task_0")
    airflow.fail("task_1")
    second = airflow.tries()
    assert second["task_0"].state == TaskInstanceState.RESTARTING
    assert second["task_1"].state == TaskInstanceState.UP_FOR_RETRY
    for task in ("task_0", "task_1"):
        assert second[task].id != first[task].id
        assert airflow.put(first[task], "k", "too late") == 404
        assert airflow.get(first[task], "k") == 404
        assert airflow.get(second[task], "k") == "of the first"
        assert airflow.put(second[task], "k", "of the second") == 204


def test_of_running_tasks_that_are_cleared_together_some_look_like_a_retry(airflow: Airflow) -> None:
    # ledger/record.py: was_cleared() takes such a clear for a retry, which pays nothing: docs/recovery.md.
    tasks = [f"task_{number}" for number in range(TASKS)]
    alone, *together = tasks
    airflow.clear(*tasks)
    airflow.report_ended(alone)
    airflow.report_ended(*together)
    after = airflow.tries()
    assert {ti.state for ti in after.values()} == {None}
    assert after[alone].max_tries == 1 + RETRIES
    told = [after[task].max_tries for task in together]
    assert set(told) == {RETRIES, 1 + RETRIES}


def test_the_trigger_of_a_task_that_is_cleared_goes_on_until_the_task_is_scheduled_again(
    airflow: Airflow,
) -> None:
    # hooks/task_states.py: whoever asks in on_kill() of a trigger finds "scheduled" or later after a clear, never none.
    with create_session() as session:
        trigger = Trigger(classpath="tests.Trigger", kwargs={})
        session.add(trigger)
        session.flush()
        session.execute(
            update(TaskInstance)
            .where(TaskInstance.dag_id == airflow.dag_id, TaskInstance.task_id == "task_0")
            .values(state=TaskInstanceState.DEFERRED, trigger_id=trigger.id)
        )
    airflow.clear("task_0")
    for state, there in ((None, 1), (TaskInstanceState.SCHEDULED, 0)):
        with create_session() as session:
            airflow.of("task_0", session).state = state
        with create_session() as session:
            Trigger.clean_unused(session=session)
            assert session.scalar(select(func.count()).select_from(Trigger)) == there


def test_tasks_that_do_not_run_are_told_of_a_clear_however_many_there_are(airflow: Airflow) -> None:
    # ledger/record.py: was_cleared()
    with create_session() as session:
        session.execute(
            update(TaskInstance)
            .where(TaskInstance.dag_id == airflow.dag_id)
            .values(state=TaskInstanceState.DEFERRED)
        )
    airflow.clear(*airflow.tries())
    assert {ti.max_tries for ti in airflow.tries().values()} == {1 + RETRIES}
