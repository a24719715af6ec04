"""``airflow fal jobs``: tasks' jobs from Airflow's own store, the command line's from its journal."""

from __future__ import annotations

import json
import os
import signal
import threading
from typing import TYPE_CHECKING, Any

import pendulum
import pytest
from airflow.models.dag import DagModel
from airflow.models.dagbundle import DagBundleModel
from airflow.models.dagrun import DagRun
from airflow.models.task_state_store import TaskStateStoreModel
from airflow.models.taskinstance import TaskInstance
from airflow.models.xcom import XComModel
from airflow.sdk.exceptions import TaskDeferred
from airflow.utils.session import create_session
from airflow.utils.state import DagRunState
from airflow.utils.types import DagRunType
from sqlalchemy import delete, insert
from sqlalchemy.exc import OperationalError

from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.ledger.command_line import SubmitEntry
from airflow_provider_uniapi_fal.ledger.record import JobRecord, Phase
from airflow_provider_uniapi_fal.ledger.task_state import BATCH_KEY, KEY
from airflow_provider_uniapi_fal.protocol.dialects.base import Submitted
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.reporting import MANIFEST_KEY
from tests.batch.tasks import MODES, BatchTask, table
from tests.fakes import ARGUMENTS, MODEL, Start, handle, posts, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from airflow_provider_uniapi_fal.ledger.command_line import CommandLineJournal
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

    def put(
        value: Any, task_id: str = "submit", map_index: int = -1, dag_id: str = "night", key: str = KEY
    ) -> None:
        with create_session() as session:
            run = session.query(DagRun).filter_by(dag_id=dag_id, run_id="r1").one()
            where = {"dag_run_id": run.id, "dag_id": dag_id, "run_id": "r1", "task_id": task_id}
            if key == MANIFEST_KEY:
                session.execute(
                    insert(TaskInstance).values(
                        dag_id=dag_id, run_id="r1", task_id=task_id, map_index=map_index, pool="default_pool"
                    )
                )
                row: Any = XComModel(**where, map_index=map_index, key=key, value=value)
            else:
                text = value if isinstance(value, str) else json.dumps(value.to_json())
                row = TaskStateStoreModel(**where, map_index=map_index, key=key, value=text)
            session.add(row)

    yield put
    with create_session() as session:
        session.execute(delete(TaskStateStoreModel))
        session.execute(delete(XComModel))
        session.execute(delete(TaskInstance))
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


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--dag-id", "nihgt"), "no DAG 'nihgt'"),
        (("--run-id", "r2"), "no run 'r2'"),
        (("--dag-id", "night", "--run-id", "r2"), "no run 'r2' of DAG 'night'"),
        (("--dag-id", "nihgt", "--run-id", "r1"), "no run 'r1' of DAG 'nihgt'"),
    ],
)
def test_a_dag_or_a_run_that_airflow_does_not_know_does_not_pass_for_one_without_jobs(
    fal: Fal, kept: Callable[..., None], words: tuple[str, ...], named: str
) -> None:
    kept(record(Phase.DELIVERED, handle()))
    done = fal("jobs", *words, "--offline", "-o", "json")
    assert (done.code, done.json["failure"]["kind"]) == (2, "input")
    assert named in done.err
    assert "0 live" not in done.err


def test_a_dag_and_a_run_without_jobs_are_listed_as_such(fal: Fal, kept: Callable[..., None]) -> None:
    kept(record(Phase.DELIVERED, handle()))
    for words in (("--dag-id", "other"), ("--run-id", "r1", "--dag-id", "other")):
        done = fal("jobs", *words, "--offline", "-o", "json")
        assert (done.code, done.json) == (0, [])


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


def test_a_job_that_a_verb_called_possibly_running_is_listed_although_the_gateway_does_not_know_it(
    start: Start, fal: Fal, journal: CommandLineJournal, kept: Callable[..., None]
) -> None:
    start()
    lost = handle(request_id="4b1f5a5e-0000-4000-8000-000000000000")
    journal.write(SubmitEntry.intent(MODEL, ARGUMENTS, "fal_default").submitted(lost))
    waited = fal("wait", lost.request_id, "--quiet", "--poke-interval", "0.05")
    assert (waited.code, "may still be running" in waited.err) == (7, True)
    [row] = fal("jobs", "-o", "json").json
    assert (row["phase"], row["state"], row["may_bill"]) == ("ended", "gone", "unknown")


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
    now = pendulum.now("UTC")
    with create_session() as session:
        session.add(
            DagRun(
                dag_id="other",
                run_id="r2",
                run_type=DagRunType.MANUAL,
                run_after=now,
                start_date=now,
                state=DagRunState.RUNNING,
            )
        )
    assert fal("jobs", "-o", "json", "--run-id", "r2").json == []


def a_batch_under_way(place: str) -> BatchTask:
    """Run a batch until it waits in the triggerer; return its task."""
    task = BatchTask(place, requests=table(3), **MODES["deferrable"])
    with pytest.raises(TaskDeferred):
        task.operator().execute(task.context)
    return task


def test_a_batch_under_way_is_listed_row_by_row_under_its_dag_and_run(
    start: Start, fal: Fal, kept: Callable[..., None], place: str
) -> None:
    start(stuck=True)
    batch = a_batch_under_way(f"{place}/night")
    kept(batch.store.texts[BATCH_KEY], task_id="batch", map_index=2, key=BATCH_KEY)
    kept(record(Phase.SUBMITTED, a_job()))
    done = fal("jobs", "-o", "json")
    assert done.code == 0, done.err
    assert [
        (row["dag_id"], row["run_id"], row["task_id"], row["map_index"], row["key"]) for row in done.json
    ] == [
        ("night", "r1", "submit", -1, None),
        *(("night", "r1", "batch", 2, f"row-{n:03}") for n in range(3)),
    ]
    assert {(row["state"], row["may_bill"]) for row in done.json} == {("pending", "yes")}
    assert {row["manifest_path"] for row in done.json[1:]} == {f"{place}/night/manifest.jsonl"}
    assert "DAG night, run r1: 4 live, 0 of which" in done.err
    assert fal("jobs", "-o", "json", "--dag-id", "other").json == []


def test_a_batch_is_listed_between_two_tries_and_by_what_each_of_its_stores_still_has(
    start: Start, fal: Fal, kept: Callable[..., None], tmp_path: Path
) -> None:
    """A new try begins without XComs; a clear may empty the task state store. One of the two is there."""
    start(stuck=True)
    batch = a_batch_under_way((tmp_path / "night").as_uri())
    path = batch.xcoms["manifest_path"]
    kept(path, task_id="batch", key=MANIFEST_KEY)
    assert len(fal("jobs", "-o", "json").json) == 3
    kept(batch.store.texts[BATCH_KEY], task_id="batch", key=BATCH_KEY)
    # A task that reads the manifest names it, too.
    kept(path, task_id="publish", key=MANIFEST_KEY)
    listed = fal("jobs", "-o", "json").json
    assert [row["task_id"] for row in listed] == ["batch"] * 3


def test_a_landings_manifest_is_no_batch(
    start: Start, fal: Fal, kept: Callable[..., None], tmp_path: Path
) -> None:
    start()
    kept((tmp_path / "landed.jsonl").as_uri(), task_id="land", key=MANIFEST_KEY)
    done = fal("jobs", "-o", "json", "--all")
    assert (done.code, done.json) == (0, [])


@pytest.mark.parametrize("broken", ["gone", "garbled", "kept elsewhere"])
def test_a_batch_whose_journal_cannot_be_read_is_listed_as_such_and_fails_the_verb(
    start: Start, fal: Fal, kept: Callable[..., None], tmp_path: Path, broken: str
) -> None:
    start(stuck=True)
    batch = a_batch_under_way((tmp_path / "night").as_uri())
    kept(record(Phase.SUBMITTED, a_job()))
    value = batch.store.texts[BATCH_KEY]
    if broken == "gone":
        (tmp_path / "night" / "manifest.journal").rename(tmp_path / "elsewhere")
    elif broken == "garbled":
        [segment, *_] = (tmp_path / "night" / "manifest.journal" / "segments").iterdir()
        segment.write_text("{")
    else:
        value = '{"a reference": "to another store"}'
    kept(value, task_id="batch", key=BATCH_KEY)
    done = fal("jobs", "-o", "json")
    assert done.code == 1
    assert [(row["task_id"], row["phase"], row["may_bill"]) for row in done.json] == [
        ("submit", "submitted", "yes"),
        ("batch", "unreadable", "unknown"),
    ]
    assert "cannot be read" in done.err


def test_a_batch_of_the_command_lines_is_found_without_being_named(
    start: Start, fal: Fal, tmp_path: Path
) -> None:
    emulator = start(faults=["job match=crow stuck=true"])
    rows = [{"model": MODEL, "arguments": {"prompt": prompt}} for prompt in ("a fox", "a crow")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def interrupt() -> None:
        wait_until(lambda: (tmp_path / "night" / "0.jpg").exists() and posts(emulator) == 2)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    assert fal("batch", str(tmp_path / "rows.jsonl"), str(tmp_path / "night")).code == 130
    thread.join()
    done = fal("jobs", "-o", "json")
    manifest = tmp_path / "night" / "manifest.jsonl"
    assert [(row["dag_id"], row["manifest_path"], row["key"], row["may_bill"]) for row in done.json] == [
        ("", manifest.as_uri(), "1", "yes")
    ]
    assert f"Batch {manifest.as_uri()}: 1 live" in done.err
    [head, row] = fal("jobs").out.splitlines()
    assert head.split()[:6] == ["dag_id", "run_id", "task_id", "map_index", "key", "model"]
    assert row.startswith(f"(command line)  {manifest.as_uri()}")
    assert fal("jobs", "-o", "json", "--manifest", str(manifest)).json == done.json


def test_a_job_that_was_answered_at_once_is_over(start: Start, fal: Fal, kept: Callable[..., None]) -> None:
    start()
    answered = handle(dialect="openai_images")
    kept(record(Phase.DELIVERED, answered))
    kept(record(Phase.INTENT), map_index=1)
    assert [row["phase"] for row in fal("jobs", "-o", "json").json] == ["intent"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("AIRFLOW__STATE_STORE__CLEAR_ON_SUCCESS", "True", "clear_on_success"),
        ("AIRFLOW__WORKERS__STATE_STORE_BACKEND", "some.Backend", "state_store_backend"),
        ("AIRFLOW__STATE_STORE__BACKEND", "some.Backend", "[state_store] backend"),
    ],
)
def test_what_airflows_settings_hide_is_said_and_fails_the_verb(
    start: Start,
    fal: Fal,
    kept: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: str,
    says: str,
) -> None:
    start()
    monkeypatch.setenv(name, value)
    done = fal("jobs")
    assert done.code == 1
    assert says in done.err


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
