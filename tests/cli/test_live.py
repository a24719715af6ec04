"""``airflow fal jobs``: tasks' jobs from Airflow's own store, the command line's from its journal."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pendulum
import pytest
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.task_state_store import TaskStateStoreModel
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunType
from sqlalchemy import delete
from sqlalchemy.exc import OperationalError

from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.ledger.record import JobRecord, Phase
from airflow_provider_uniapi_fal.ledger.task_state import KEY
from airflow_provider_uniapi_fal.protocol.dialects.base import Submitted
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from tests.fakes import ARGUMENTS, MODEL, Start, handle, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from airflow_provider_uniapi_fal.protocol.job import JobHandle
    from tests.cli.conftest import Fal


@pytest.fixture
def kept(airflow_database: Path) -> Iterator[Callable[..., None]]:
    """Put records into Airflow's task state store, as tasks have left them."""
    now = pendulum.now("UTC")
    with create_session() as session:
        if session.get(DagBundleModel, "dags-folder") is None:
            session.add(DagBundleModel(name="dags-folder"))
            session.flush()
        for dag_id in ("night", "other"):
            session.add(DagModel(dag_id=dag_id, bundle_name="dags-folder"))
            session.flush()
            session.add(
                DagRun(
                    dag_id=dag_id,
                    run_id="r1",
                    run_type=DagRunType.MANUAL,
                    run_after=now,
                    start_date=now,
                    state=DagRunState.RUNNING,
                )
            )

    def put(value: Any, task_id: str = "submit", map_index: int = -1, dag_id: str = "night") -> None:
        with create_session() as session:
            run = session.query(DagRun).filter_by(dag_id=dag_id, run_id="r1").one()
            text = value if isinstance(value, str) else json.dumps(value.to_json())
            session.add(
                TaskStateStoreModel(
                    dag_run_id=run.id,
                    dag_id=dag_id,
                    run_id="r1",
                    task_id=task_id,
                    map_index=map_index,
                    key=KEY,
                    value=text,
                )
            )

    yield put
    with create_session() as session:
        session.execute(delete(TaskStateStoreModel))
        session.execute(delete(DagRun).where(DagRun.dag_id.in_(("night", "other"))))
        session.execute(delete(DagModel).where(DagModel.dag_id.in_(("night", "other"))))


def record(phase: Phase, job: JobHandle | None = None, failure: Failure | None = None) -> JobRecord:
    return JobRecord(phase, "f" * 64, 2, pendulum.now("UTC").timestamp(), job, failure)


def a_job() -> JobHandle:
    found = FalHook().submit(MODEL, ARGUMENTS)
    assert isinstance(found, Submitted)
    return found.handle


def test_live_jobs_are_listed_by_dag_run_and_task(start: Start, fal: Fal, kept: Callable[..., None]) -> None:
    start(stuck=True)
    job = a_job()
    kept(record(Phase.DELIVERED, job), task_id="media.submit", map_index=3)
    done = fal("jobs", "-o", "json")
    [row] = done.json
    assert (row["dag_id"], row["run_id"], row["task_id"], row["map_index"]) == (
        "night",
        "r1",
        "media.submit",
        3,
    )
    assert (row["request_id"], row["state"], row["may_bill"]) == (job.request_id, "pending", "yes")
    assert done.code == 0
    assert "1 live" in done.err


def test_a_job_that_has_ended_is_shown_only_when_all_are_asked_for(
    start: Start, fal: Fal, kept: Callable[..., None]
) -> None:
    start()
    job = a_job()
    wait_until(lambda: FalHook().status(job).finished)
    kept(record(Phase.DELIVERED, job))
    assert fal("jobs", "-o", "json").json == []
    [row] = fal("jobs", "-o", "json", "--all").json
    assert (row["state"], row["may_bill"]) == ("succeeded", "no")


@pytest.mark.parametrize(
    ("kind", "may_run", "may_bill"),
    [(FailureKind.JOB_FAILED, False, "no"), (FailureKind.TIMEOUT, True, "unknown")],
)
def test_without_the_gateway_only_what_has_ended_for_certain_is_left_out(
    fal: Fal, kept: Callable[..., None], kind: FailureKind, may_run: bool, may_bill: str
) -> None:
    ended = Failure(kind, what="It ended.", retry_does="nothing.", may_run=may_run)
    kept(record(Phase.ENDED, handle(), ended))
    [row] = fal("jobs", "-o", "json", "--offline", "--all").json
    assert (row["state"], row["may_bill"]) == ("not asked", may_bill)


def test_an_intent_without_a_job_may_be_billing(start: Start, fal: Fal, kept: Callable[..., None]) -> None:
    start()
    kept(record(Phase.INTENT))
    [row] = fal("jobs", "-o", "json").json
    assert (row["phase"], row["request_id"], row["may_bill"]) == ("intent", None, "unknown")


def test_a_record_that_cannot_be_read_is_listed_and_fails_the_verb(
    start: Start, fal: Fal, kept: Callable[..., None]
) -> None:
    start()
    kept('{"phase": "splendid"}')
    done = fal("jobs", "-o", "json")
    assert done.code == 1
    assert [(row["phase"], row["may_bill"]) for row in done.json] == [("unreadable", "unknown")]


def test_no_answer_of_the_gateway_leaves_the_job_in_the_list(
    start: Start, fal: Fal, kept: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("airflow_provider_uniapi_fal.protocol.retrying.backoff", lambda attempt, jitter: 0.0)
    start(key="another-key")
    kept(record(Phase.SUBMITTED, handle()))
    kept(record(Phase.SUBMITTED, handle(request_id="req-2", fal_conn_id="fal_gone")), map_index=1)
    done = fal("jobs", "-o", "json")
    assert [(row["state"], row["may_bill"]) for row in done.json] == [("no answer", "unknown")] * 2
    assert "fal_gone" in done.err


def test_the_list_can_be_of_one_dag(start: Start, fal: Fal, kept: Callable[..., None]) -> None:
    start(stuck=True)
    kept(record(Phase.SUBMITTED, a_job()))
    kept(record(Phase.SUBMITTED, a_job()), dag_id="other")
    assert fal("submit", MODEL, "-i", "prompt=x").code == 0
    assert [row["dag_id"] for row in fal("jobs", "-o", "json").json] == ["night", "other", ""]
    assert [row["dag_id"] for row in fal("jobs", "-o", "json", "--dag-id", "other").json] == ["other"]
    assert fal("jobs", "-o", "json", "--run-id", "r2").json == []


def test_a_database_that_cannot_be_read_is_an_error_and_the_journal_is_still_listed(
    start: Start, fal: Fal, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(stuck=True)
    assert fal("submit", MODEL, "-i", "prompt=x").code == 0

    def broken(*_: object, **__: object) -> None:
        raise OperationalError("select", {}, Exception("no such table"))

    monkeypatch.setattr("airflow_provider_uniapi_fal.cli.live.create_session", broken)
    done = fal("jobs", "-o", "json")
    assert done.code == 1
    assert "metadata database cannot be read" in done.err
    assert [row["may_bill"] for row in done.json] == ["yes"]
