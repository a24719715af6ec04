"""Each verb of LocalAirflow on one real Airflow, which is started under an environment that misleads."""

from __future__ import annotations

import os
import signal
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from demo.local_airflow import LocalAirflow, LocalAirflowError, LocalAirflowTimeout
from tests.system.waiting import eventually

pytestmark = pytest.mark.system

PLAIN = """
    from airflow.sdk import dag, task

    @dag(schedule=None)
    def plain():
        @task
        def produce(params):
            print("the word is", params["word"])
            return {"word": params["word"]}

        @task
        def double(number):
            return number * 2

        produce() >> double.expand(number=[1, 2, 3])

    plain()
"""

# Each task ends its first try only when a file appears; the second try returns at once.
GATED = """
    import os, time
    from datetime import timedelta
    from airflow.sdk import dag, task

    @dag(schedule=None, default_args={"retries": 1, "retry_delay": timedelta(0)})
    def gated():
        @task
        def gate(number, ti=None):
            while ti.try_number == 1 and not os.path.exists(f"{os.environ['GATES']}/gate-{number}"):
                time.sleep(0.05)
            return [number, ti.try_number]

        gate.expand(number=[0, 1])

    gated()
"""

DEFERRED = """
    import os
    from airflow.providers.standard.sensors.filesystem import FileSensor
    from airflow.sdk import dag

    @dag(schedule=None)
    def deferred():
        FileSensor(task_id="wait", filepath=f"{os.environ['GATES']}/deferred", poke_interval=0.2, deferrable=True)

    deferred()
"""

SECRET = "a-key-that-is-written-nowhere"


def processes_in(folder: Path) -> list[psutil.Process]:
    """List the processes that work in a folder: a way to find them that the code under test does not use."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def write_dag(folder: Path, name: str, text: str) -> None:
    (folder / f"{name}.py").write_text(textwrap.dedent(text))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: tmp_path_factory.mktemp(name) for name in ("home with % and space", "dags", "gates")}


@pytest.fixture(scope="module")
def gates(folders: dict[str, Path]) -> Path:
    return folders["gates"]


@pytest.fixture(scope="module")
def airflow(folders: dict[str, Path]) -> Iterator[LocalAirflow]:
    home, dags, gates = folders.values()
    for name, text in {"plain": PLAIN, "gated": GATED, "deferred": DEFERRED}.items():
        write_dag(dags, name, text)
    with pytest.MonkeyPatch.context() as misleading:
        misleading.setenv("AIRFLOW_CONFIG", "/nowhere/airflow.cfg")
        misleading.setenv("AIRFLOW__CORE__EXECUTOR", "NoSuchExecutor")
        misleading.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "sqlite:////nowhere/airflow.db")
        misleading.setenv("PYTHONHOME", "/nowhere")
        misleading.setenv("http_proxy", "http://127.0.0.1:9")
        misleading.setenv("HTTP_PROXY", "http://127.0.0.1:9")
        with LocalAirflow(
            home,
            dags=dags,
            environment={
                "GATES": str(gates),
                "AIRFLOW_CONN_FS_DEFAULT": '{"conn_type": "fs"}',
                "AIRFLOW_CONN_SECRET": f'{{"conn_type": "http", "password": "{SECRET}"}}',
            },
            config={"triggerer": {"job_heartbeat_sec": 1, "triggerer_health_check_threshold": 6}},
        ) as airflow:
            assert len(processes_in(home)) >= 4
            yield airflow
    assert processes_in(home) == []
    assert airflow.running() == []
    # What it wrote can still be read.
    assert airflow.query("SELECT 1 FROM dag")


def test_a_run_succeeds_and_shows_its_states_logs_and_xcoms(airflow: LocalAirflow) -> None:
    airflow.wait_for_dag("plain")
    seen: list[str | None] = []
    run_id = airflow.trigger("plain", conf={"word": "persimmon"})
    state = airflow.wait_for_run(
        "plain",
        run_id,
        60,
        on_poll=lambda tis: seen.extend(ti.state for ti in tis if ti.task_id == "produce"),
    )

    assert state == airflow.run_state("plain", run_id) == "success"
    assert "success" in seen
    tasks = airflow.task_instances("plain", run_id)
    assert [(ti.task_id, ti.map_index, ti.state, ti.try_number) for ti in tasks] == [
        ("double", 0, "success", 1),
        ("double", 1, "success", 1),
        ("double", 2, "success", 1),
        ("produce", -1, "success", 1),
    ]
    assert all(ti.start and ti.end and ti.end >= ti.start for ti in tasks)
    assert airflow.xcom("plain", run_id, "produce") == {"word": "persimmon"}
    assert airflow.xcom("plain", run_id, "double", map_index=2) == 6
    assert {
        (entry.task_id, entry.map_index, entry.value) for entry in airflow.xcom_entries("plain", run_id)
    } == {
        ("produce", -1, '{"word": "persimmon"}'),
        ("double", 0, "2"),
        ("double", 1, "4"),
        ("double", 2, "6"),
    }
    assert "the word is persimmon" in airflow.task_log("plain", run_id, "produce")
    with pytest.raises(LocalAirflowError, match="404"):
        airflow.xcom("plain", run_id, "produce", key="absent")
    with pytest.raises(LocalAirflowError, match="no task"):
        airflow.task_instance("plain", run_id, "produce", map_index=5)


def test_every_place_where_a_word_was_written_is_found(airflow: LocalAirflow) -> None:
    airflow.wait_for_dag("plain")
    word = "käki-柿子"
    run_id = airflow.trigger("plain", conf={"word": word})
    airflow.wait_for_run("plain", run_id, 60)
    places = " ".join(airflow.places_with(word))
    for place in ("table dag_run", "table xcom", "/task_id=produce/attempt=1.log", "file airflow.db"):
        assert place in places
    assert airflow.places_with(SECRET) == []
    assert airflow.places_with("no-one-wrote-this-down") == []


def test_a_killed_task_process_is_retried(airflow: LocalAirflow, gates: Path) -> None:
    airflow.wait_for_dag("gated")
    (gates / "gate-1").touch()
    run_id = airflow.trigger("gated")
    airflow.wait_for_task("gated", run_id, "gate", "running", map_index=0)
    pid = airflow.pid_of_task("gated", run_id, "gate", 0)
    supervisor = psutil.Process(pid).parent()
    assert supervisor is not None
    assert "LocalExecutor" in " ".join(supervisor.cmdline())
    os.kill(pid, signal.SIGKILL)

    assert airflow.wait_for_run("gated", run_id, 60) == "success"
    assert airflow.xcom("gated", run_id, "gate", map_index=0) == [0, 2]
    assert airflow.xcom("gated", run_id, "gate", map_index=1) == [1, 1]
    assert airflow.task_log("gated", run_id, "gate", try_number=1, map_index=0) != ""


def test_tasks_and_runs_can_be_marked_and_cleared(airflow: LocalAirflow, gates: Path) -> None:
    airflow.wait_for_dag("gated")
    (gates / "gate-0").unlink(missing_ok=True)
    (gates / "gate-1").touch()
    run_id = airflow.trigger("gated")
    airflow.wait_for_task("gated", run_id, "gate", "running", map_index=0)
    with pytest.raises(LocalAirflowTimeout, match=r"gate\[0\] running"):
        airflow.wait_for_task("gated", run_id, "gate", "success", map_index=0, timeout=0.2)
    airflow.set_task_state("gated", run_id, "gate", "failed", map_index=0)
    assert airflow.wait_for_run("gated", run_id, 60) == "failed"
    with pytest.raises(LocalAirflowError, match="ended as failed"):
        airflow.wait_for_task("gated", run_id, "gate", "success", map_index=0)

    (gates / "gate-0").touch()
    airflow.clear("gated", run_id, [("gate", 0)])
    assert airflow.wait_for_run("gated", run_id, 60) == "success"
    assert airflow.task_instance("gated", run_id, "gate", 0).try_number == 2
    assert airflow.task_instance("gated", run_id, "gate", 1).try_number == 1
    airflow.set_run_state("gated", run_id, "failed")
    assert airflow.run_state("gated", run_id) == "failed"


def test_a_deferred_task_survives_the_triggerers_death(airflow: LocalAirflow, gates: Path) -> None:
    airflow.wait_for_dag("deferred")
    run_id = airflow.trigger("deferred")
    airflow.wait_for_task("deferred", run_id, "wait", "deferred")
    before = airflow.children["triggerer"].pid
    airflow.kill("triggerer")
    assert airflow.children["triggerer"].members() == []
    (gates / "deferred").touch()
    airflow.restart("triggerer")
    assert airflow.children["triggerer"].pid != before

    assert airflow.wait_for_run("deferred", run_id, 60) == "success"
    # The merged log names the parts that it was made from.
    assert "attempt=1.log.trigger." in airflow.task_log("deferred", run_id, "wait")


def test_a_frozen_component_goes_on_where_it_was(airflow: LocalAirflow) -> None:
    child = airflow.children["triggerer"]
    airflow.pause_component("triggerer", alone=True)
    # The signal is sent at once and takes effect a moment later.
    eventually(lambda: psutil.Process(child.pid).status() == psutil.STATUS_STOPPED, 30)
    airflow.resume_component("triggerer", alone=True)
    eventually(lambda: psutil.Process(child.pid).status() != psutil.STATUS_STOPPED, 30)


def test_a_pool_is_made_and_given_another_number_of_slots(airflow: LocalAirflow) -> None:
    for slots in (2, 0):
        airflow.set_pool("narrow", slots)
        assert airflow.query("SELECT slots FROM slot_pool WHERE pool = 'narrow'") == [(slots,)]


def test_a_component_that_dies_unasked_ends_the_wait_with_its_log(airflow: LocalAirflow) -> None:
    os.kill(airflow.children["dag-processor"].pid, signal.SIGKILL)
    with pytest.raises(
        LocalAirflowError, match=r"dag-processor died while we waited for DAG unborn"
    ) as caught:
        airflow.wait_for_dag("unborn")
    assert airflow.children["dag-processor"].tail(1) in str(caught.value)
    airflow.restart("dag-processor")


def test_a_broken_dag_file_ends_the_wait_with_its_trace(airflow: LocalAirflow) -> None:
    write_dag(airflow.dags, "broken", "import airflow.sdk as dag; raise RuntimeError('this file is broken')")
    with pytest.raises(LocalAirflowError, match="this file is broken"):
        airflow.wait_for_dag("broken")
    assert list(airflow.import_errors()) == ["broken.py"]


def test_the_database_cannot_be_written_through_a_query(airflow: LocalAirflow) -> None:
    with pytest.raises(Exception, match="readonly"):
        airflow.query("DELETE FROM dag_run")


def test_a_start_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    airflow = LocalAirflow(
        tmp_path / "home",
        dags=tmp_path,
        config={"database": {"sql_alchemy_conn": "nonsense://"}},
    )
    with pytest.raises(LocalAirflowError, match="nonsense"), airflow:
        pass
    assert processes_in(tmp_path / "home") == []
