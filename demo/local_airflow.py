"""
A real Airflow of one's own: scheduler, triggerer, dag processor and API server in one folder.

For the demo, the system tests and the benchmarks: whatever `dag.test()` hides shows here. Each
component is the `airflow` command of the running interpreter, as an operator would start it, on
SQLite with the LocalExecutor. Two at once on one machine do not meet: the folder is their own, and the
only port that is opened (the API's, on loopback) is a free one.

    with LocalAirflow(folder, dags="dags", environment={"AIRFLOW_CONN_FAL_DEFAULT": "..."}) as airflow:
        airflow.wait_for_dag("nightly_media")
        run_id = airflow.trigger("nightly_media", conf={"prompts": "..."})
        state = airflow.wait_for_run("nightly_media", run_id, timeout=120)

States are read from the database (cheap, and they can be read while the API server is down); what is
done, and what Airflow renders for a reader (logs, XComs), goes through the REST API.
"""

from __future__ import annotations

import base64
import configparser
import json
import os
import platform
import secrets
import signal
import socket
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import requests

from demo.processes import Child, Processes

if TYPE_CHECKING:
    import psutil

COMPONENTS: dict[str, tuple[str, ...]] = {
    # No log servers: every log is a local file, and those servers listen on all interfaces.
    "api-server": ("api-server",),
    "scheduler": ("scheduler", "--skip-serve-logs"),
    "dag-processor": ("dag-processor",),
    "triggerer": ("triggerer", "--skip-serve-logs"),
}
"""The components and their commands, in the order in which they are started."""

_JOB_TYPES = {
    "scheduler": "SchedulerJob",
    "dag-processor": "DagProcessorJob",
    "triggerer": "TriggererJob",
}
_FINAL_RUN_STATES = ("success", "failed")
_FINAL_TASK_STATES = ("success", "failed", "skipped", "upstream_failed", "removed")
_POLL = 0.1

T = TypeVar("T")


class LocalAirflowError(Exception):
    """A component died, or Airflow refused what was asked."""


class LocalAirflowTimeout(LocalAirflowError, TimeoutError):
    """What was waited for did not come in time."""


@dataclass(frozen=True)
class TaskInstance:
    """One task of a run as the database has it now; `map_index` is -1 where a task is not mapped."""

    task_id: str
    map_index: int
    state: str | None
    try_number: int
    pid: int | None
    start: datetime | None
    end: datetime | None


@dataclass(frozen=True)
class XCom:
    """One stored XCom, with its value as the text in the database."""

    dag_id: str
    run_id: str
    task_id: str
    map_index: int
    key: str
    value: str


class LocalAirflow:
    """
    A throwaway Airflow as a context manager: entering starts it, leaving ends all of it.

    :param folder: its AIRFLOW_HOME: configuration, database, task logs, and the components' own output
        in `components/`. Made if missing; what is there stays (an older database is used again).
    :param dags: the folder with the DAG files.
    :param environment: more environment variables for every component, e.g. `AIRFLOW_CONN_...`. Nothing
        that configures Airflow or Python is taken over from the caller's environment.
    :param config: sections and options of airflow.cfg, over the defaults of this class.
    :param parallelism: how many tasks run at once.
    :param start_timeout: seconds until all components must be up.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        dags: str | os.PathLike[str],
        environment: Mapping[str, str] | None = None,
        config: Mapping[str, Mapping[str, object]] | None = None,
        parallelism: int = 4,
        start_timeout: float = 90.0,
    ) -> None:
        self.folder = Path(folder).resolve()
        self.dags = Path(dags).resolve()
        self.database = self.folder / "airflow.db"
        self.start_timeout = start_timeout
        self.port = 0
        self.user, self.password = "admin", secrets.token_urlsafe(12)
        self.children: dict[str, Child] = {}
        self._environment = dict(environment or {})
        self._config = {section: dict(options) for section, options in (config or {}).items()}
        self._parallelism = parallelism
        self._processes = Processes()
        self._reserved: socket.socket | None = None
        self._session = requests.Session()
        # A proxy from the caller's environment has no business with loopback.
        self._session.trust_env = False
        self._expected_to_run: set[str] = set()

    @property
    def url(self) -> str:
        """The address of the user interface and the API."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """The environment of every component: run `airflow` with it to look into this Airflow."""
        return {
            **clean_environment(os.environ),
            "AIRFLOW_HOME": str(self.folder),
            "PYTHONUNBUFFERED": "1",
            **self._environment,
        }

    # Starting and stopping

    def __enter__(self) -> LocalAirflow:
        try:
            self._start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _start(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self.port, self._reserved = _reserve_port()
        self._write_configuration()
        self._processes.__enter__()
        deadline = time.monotonic() + self.start_timeout
        migration = self._spawn("db-migrate", ("db", "migrate"))
        self._wait("the database", lambda: migration.ended or None, deadline)
        if not self.database.exists() or not self.query(
            "SELECT 1 FROM sqlite_master WHERE name = 'slot_pool'"
        ):
            raise LocalAirflowError(
                f"airflow db migrate failed; {migration.log} ends with:\n{migration.tail()}"
            )
        started_at = _utc_now()
        for component in COMPONENTS:
            self._start_component(component)
        for component in COMPONENTS:
            self._wait_until_up(component, started_at, deadline)

    def stop(self) -> None:
        """End every process that was started, at once, with all that they started."""
        self._expected_to_run.clear()
        self._processes.stop()
        self._session.close()
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

    def running(self) -> list[psutil.Process]:
        """List every process of this Airflow that runs, task processes included."""
        return self._processes.running()

    def kill(self, component: str, signum: int = signal.SIGKILL, *, alone: bool = False) -> None:
        """
        Send a signal to a component, as an accident would; nothing starts it again but `restart`.

        It goes to the component with all that it started (for the scheduler that is every running
        task), or with `alone` to its main process only.
        """
        self._expected_to_run.discard(component)
        child = self.children[component]
        if signum == signal.SIGKILL and not alone:
            child.kill()
        else:
            child.signal(signum, alone=alone)
        if signum == signal.SIGKILL:
            self._wait(f"the end of {component}", lambda: child.ended or None, time.monotonic() + 10)

    def pause_component(self, component: str, *, alone: bool = False) -> None:
        """Freeze a component (SIGSTOP) with all that it started, or its main process `alone`."""
        self.children[component].signal(signal.SIGSTOP, alone=alone)

    def resume_component(self, component: str, *, alone: bool = False) -> None:
        """Let a frozen component go on (SIGCONT)."""
        self.children[component].signal(signal.SIGCONT, alone=alone)

    def restart(self, component: str, timeout: float = 60.0) -> None:
        """Kill what is left of a component, start it anew and wait until it is up."""
        self._expected_to_run.discard(component)
        self.children[component].kill()
        started_at = _utc_now()
        self._start_component(component)
        self._wait_until_up(component, started_at, time.monotonic() + timeout)

    def _spawn(self, name: str, arguments: Sequence[str]) -> Child:
        child = self._processes.start(
            name,
            [sys.executable, "-m", "airflow", *arguments],
            environment=self.environment,
            folder=self.folder,
            log=self.folder / "components" / f"{name}.log",
        )
        self.children[name] = child
        return child

    def _start_component(self, component: str) -> None:
        self._spawn(component, COMPONENTS[component])
        self._expected_to_run.add(component)

    def _wait_until_up(self, component: str, started_at: str, deadline: float) -> None:
        if component == "api-server":
            self._wait(component, self._log_in, deadline)
        else:
            self._wait(
                component,
                lambda: (
                    self.query(
                        "SELECT 1 FROM job WHERE job_type = ? AND state = 'running' AND start_date >= ?",
                        (_JOB_TYPES[component], started_at),
                    )
                    or None
                ),
                deadline,
            )

    def _write_configuration(self) -> None:
        options: dict[str, dict[str, object]] = {
            "core": {
                "dags_folder": self.dags,
                "load_examples": False,
                "executor": "LocalExecutor",
                "parallelism": self._parallelism,
                "auth_manager": "airflow.api_fastapi.auth.managers.simple.simple_auth_manager.SimpleAuthManager",
                "simple_auth_manager_users": f"{self.user}:admin",
                "fernet_key": base64.urlsafe_b64encode(os.urandom(32)).decode(),
                "execution_api_server_url": f"{self.url}/execution/",
                # Not the default, which asks the name service: slow, or stuck, without a network.
                "hostname_callable": "platform.node",
            },
            "database": {"sql_alchemy_conn": f"sqlite:///{self.database}"},
            "api": {
                "host": "127.0.0.1",
                "port": self.port,
                "base_url": self.url,
                "workers": 1,
                "secret_key": secrets.token_hex(16),
            },
            "api_auth": {"jwt_secret": secrets.token_hex(32)},
            # With no log server of ours at the default ports, those of a neighbour must not be asked.
            "logging": {"worker_log_server_port": self.port, "trigger_log_server_port": self.port},
            # Nothing runs but what is triggered: a nightly DAG would start a night of its own when unpaused.
            "scheduler": {"use_job_schedule": False},
            # A new file is seen at once; a known one is parsed again when it changes, as ever.
            "dag_processor": {"refresh_interval": 1, "bundle_refresh_check_interval": 1},
            "usage_data_collection": {"enabled": False},
        }
        for section, values in self._config.items():
            options.setdefault(section, {}).update(values)
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_dict(
            {
                # Airflow's reader interpolates, so a percent sign is written twice.
                section: {option: str(value).replace("%", "%%") for option, value in values.items()}
                for section, values in options.items()
            }
        )
        with _private_file(self.folder / "airflow.cfg") as file:
            parser.write(file)
        with _private_file(self.folder / "simple_auth_manager_passwords.json.generated") as file:
            json.dump({self.user: self.password}, file)

    # DAGs and runs

    def import_errors(self) -> dict[str, str]:
        """Return the stack trace of every DAG file that does not import, by its name."""
        return dict(self.query("SELECT filename, stacktrace FROM import_error"))

    def wait_for_dag(self, dag_id: str, timeout: float = 60.0) -> None:
        """Wait until a DAG is parsed and can be triggered; an import error ends the wait at once."""

        def parsed() -> bool | None:
            if self.query("SELECT 1 FROM dag WHERE dag_id = ? AND NOT is_stale", (dag_id,)):
                return True
            if errors := self.import_errors():
                raise LocalAirflowError("\n".join(f"{name}:\n{trace}" for name, trace in errors.items()))
            return None

        self._wait(f"DAG {dag_id}", parsed, time.monotonic() + timeout)

    def unpause(self, dag_id: str) -> None:
        """Let the scheduler run a DAG (new ones are paused)."""
        self._call("PATCH", f"/dags/{_segment(dag_id)}", {"is_paused": False})

    def pause(self, dag_id: str) -> None:
        """Keep the scheduler from starting tasks of a DAG."""
        self._call("PATCH", f"/dags/{_segment(dag_id)}", {"is_paused": True})

    def trigger(self, dag_id: str, conf: Mapping[str, Any] | None = None) -> str:
        """Unpause a DAG, start a run of it and return the run's id."""
        self.unpause(dag_id)
        body = {"logical_date": None, "conf": dict(conf or {})}
        run = self._call("POST", f"/dags/{_segment(dag_id)}/dagRuns", body)
        return str(run["dag_run_id"])

    def run_state(self, dag_id: str, run_id: str) -> str:
        """Return the state of a run: queued, running, success or failed."""
        rows = self.query("SELECT state FROM dag_run WHERE dag_id = ? AND run_id = ?", (dag_id, run_id))
        if not rows:
            raise LocalAirflowError(f"there is no run {run_id} of {dag_id}")
        return str(rows[0][0])

    def wait_for_run(
        self,
        dag_id: str,
        run_id: str,
        timeout: float,
        on_poll: Callable[[list[TaskInstance]], None] | None = None,
    ) -> str:
        """Wait until a run has ended, showing its tasks to `on_poll` at every look; return its state."""

        def ended() -> str | None:
            state = self.run_state(dag_id, run_id)
            if on_poll is not None:
                on_poll(self.task_instances(dag_id, run_id))
            return state if state in _FINAL_RUN_STATES else None

        return self._wait_in_run(f"the end of run {run_id} of {dag_id}", dag_id, run_id, ended, timeout)

    def set_run_state(self, dag_id: str, run_id: str, state: str) -> None:
        """Mark a run as `success`, `failed` or `queued`, as a user would in the interface."""
        self._call("PATCH", f"/dags/{_segment(dag_id)}/dagRuns/{_segment(run_id)}", {"state": state})

    # Tasks

    def task_instances(self, dag_id: str, run_id: str) -> list[TaskInstance]:
        """List the tasks of a run, mapped ones one by one."""
        rows = self.query(
            "SELECT task_id, map_index, state, try_number, pid, start_date, end_date FROM task_instance"
            " WHERE dag_id = ? AND run_id = ? ORDER BY task_id, map_index",
            (dag_id, run_id),
        )
        return [
            TaskInstance(task_id, map_index, state, try_number, pid, _moment(start), _moment(end))
            for task_id, map_index, state, try_number, pid, start, end in rows
        ]

    def task_instance(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> TaskInstance:
        """Return one task of a run."""
        for ti in self.task_instances(dag_id, run_id):
            if (ti.task_id, ti.map_index) == (task_id, map_index):
                return ti
        raise LocalAirflowError(f"there is no task {task_id}[{map_index}] in run {run_id} of {dag_id}")

    def wait_for_task(
        self,
        dag_id: str,
        run_id: str,
        task_id: str,
        *states: str,
        map_index: int = -1,
        try_number: int | None = None,
        timeout: float = 60.0,
    ) -> TaskInstance:
        """
        Wait until a task is in one of `states` (any final state if none is given), and return it.

        With `try_number`, states of other tries do not count. A task that ended in another state
        will not come back by itself, so that ends the wait with an error.
        """
        wanted = states or _FINAL_TASK_STATES

        def arrived() -> TaskInstance | None:
            found = [
                ti
                for ti in self.task_instances(dag_id, run_id)
                if (ti.task_id, ti.map_index) == (task_id, map_index)
            ]
            for ti in found:
                if ti.state in wanted and try_number in (None, ti.try_number):
                    return ti
                if ti.state in _FINAL_TASK_STATES and (try_number is None or ti.try_number >= try_number):
                    raise LocalAirflowError(f"{task_id}[{map_index}] ended as {ti.state}, not as {wanted}")
            return None

        what = f"{task_id}[{map_index}] to be {' or '.join(wanted)}"
        return self._wait_in_run(what, dag_id, run_id, arrived, timeout)

    def task_process(
        self, dag_id: str, run_id: str, task_id: str, map_index: int = -1, timeout: float = 30.0
    ) -> psutil.Process:
        """
        Find the operating system's process that runs a task now; its `.parent()` supervises it.

        Kill the process for a task that crashed, and the supervisor too for a worker that was lost.
        """

        def found() -> psutil.Process | None:
            ti = self.task_instance(dag_id, run_id, task_id, map_index)
            if ti.state != "running" or ti.pid is None:
                return None
            scheduler = self.children["scheduler"].members()
            return next((process for process in scheduler if process.pid == ti.pid), None)

        return self._wait_in_run(f"the process of {task_id}", dag_id, run_id, found, timeout)

    def pid_of_task(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> int:
        """Return the process id of a running task."""
        return int(self.task_process(dag_id, run_id, task_id, map_index).pid)

    def clear(
        self,
        dag_id: str,
        run_id: str,
        task_ids: Sequence[str | tuple[str, int]] | None = None,
        *,
        downstream: bool = False,
        only_failed: bool = False,
    ) -> None:
        """Clear tasks of a run (all of them, ids, or `(id, map index)` pairs), so that they run again."""
        body: dict[str, Any] = {
            "dry_run": False,
            "dag_run_id": run_id,
            "only_failed": only_failed,
            "include_downstream": downstream,
            "reset_dag_runs": True,
        }
        if task_ids is not None:
            body["task_ids"] = [task if isinstance(task, str) else list(task) for task in task_ids]
        self._call("POST", f"/dags/{_segment(dag_id)}/clearTaskInstances", body)

    def set_task_state(self, dag_id: str, run_id: str, task_id: str, state: str, map_index: int = -1) -> None:
        """Mark a task as `success`, `failed` or `skipped`, as a user would in the interface."""
        path = self._task_path(dag_id, run_id, task_id)
        if map_index >= 0:
            path += f"/{map_index}"
        self._call("PATCH", path, {"new_state": state})

    def set_pool(self, name: str, slots: int) -> None:
        """Give a pool so many slots; make it if it is not there."""
        pool = {"slots": slots, "description": "", "include_deferred": False}
        if self.query("SELECT 1 FROM slot_pool WHERE pool = ?", (name,)):
            self._call("PATCH", f"/pools/{_segment(name)}", {"pool": name, **pool})
        else:
            self._call("POST", "/pools", {"name": name, **pool})

    def answer(self, dag_id: str, run_id: str, task_id: str, option: str) -> None:
        """Choose an option of a task that waits for a person, as a user would in the interface."""
        self._call(
            "PATCH",
            f"{self._task_path(dag_id, run_id, task_id)}/-1/hitlDetails",
            {"chosen_options": [option], "params_input": {}},
        )

    def task_log(
        self, dag_id: str, run_id: str, task_id: str, try_number: int = 1, map_index: int = -1
    ) -> str:
        """
        Return a try's log as the interface shows it, the trigger's part included, one line an entry.

        Each line is the time, the level, the message, and the entry's other fields as JSON.
        """
        reply = self._call(
            "GET",
            f"{self._task_path(dag_id, run_id, task_id)}/logs/{try_number}",
            parameters={"map_index": map_index, "full_content": True},
        )
        return "\n".join(_log_line(entry) for entry in reply["content"])

    def _task_path(self, dag_id: str, run_id: str, task_id: str) -> str:
        run = f"/dags/{_segment(dag_id)}/dagRuns/{_segment(run_id)}"
        return f"{run}/taskInstances/{_segment(task_id)}"

    # XComs, the database, and everything that was written

    def xcom(
        self, dag_id: str, run_id: str, task_id: str, key: str = "return_value", map_index: int = -1
    ) -> Any:
        """Return the value of an XCom; `LocalAirflowError` if there is none."""
        reply = self._call(
            "GET",
            f"{self._task_path(dag_id, run_id, task_id)}/xcomEntries/{_segment(key)}",
            parameters={"map_index": map_index},
        )
        return reply["value"]

    def links(self, dag_id: str, run_id: str, task_id: str, map_index: int = -1) -> dict[str, str | None]:
        """Return where the buttons of a task lead, by their names; None for one that leads nowhere."""
        reply = self._call(
            "GET", f"{self._task_path(dag_id, run_id, task_id)}/links", parameters={"map_index": map_index}
        )
        return dict(reply["extra_links"])

    def xcom_entries(self, dag_id: str, run_id: str) -> list[XCom]:
        """List every XCom of a run, with the value as the text in the database."""
        rows = self.query(
            "SELECT dag_id, run_id, task_id, map_index, key, CAST(value AS TEXT) FROM xcom"
            " WHERE dag_id = ? AND run_id = ? ORDER BY task_id, map_index, key",
            (dag_id, run_id),
        )
        return [XCom(*row) for row in rows]

    def query(self, sql: str, parameters: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """Read from Airflow's database; writing is refused."""
        connection = sqlite3.connect(f"{self.database.as_uri()}?mode=ro", uri=True, timeout=10)
        try:
            return connection.execute(sql, parameters).fetchall()
        finally:
            connection.close()

    def texts(self) -> Iterator[tuple[str, str]]:
        """
        Yield everything this Airflow has written, as `(place, text)`.

        That is each row of each table, and each file below the folder (the database's own bytes as
        well, where a deleted row may still be found).
        """
        tables = [name for (name,) in self.query("SELECT name FROM sqlite_master WHERE type = 'table'")]
        for table in tables:
            quoted = table.replace('"', '""')
            for number, row in enumerate(self.query(f'SELECT * FROM "{quoted}"')):  # noqa: S608 - a table's own name
                yield f"table {table}, row {number}", " ".join(_text(value) for value in row)
        for path in sorted(self.folder.rglob("*")):
            # Airflow rotates and moves files while we read.
            try:
                content = path.read_bytes() if path.is_file() else b""
            except FileNotFoundError:
                continue
            yield f"file {path.relative_to(self.folder)}", _text(content)

    def places_with(self, needle: str) -> list[str]:
        """Name every place where a text was written; the environment is not searched."""
        # In JSON within the database, text may be written with escapes.
        escaped = json.dumps(needle)[1:-1]
        return [place for place, text in self.texts() if needle in text or escaped in text]

    # Asking the API and waiting

    def _log_in(self) -> bool | None:
        try:
            reply = self._session.post(
                f"{self.url}/auth/token", json={"username": self.user, "password": self.password}, timeout=10
            )
        except requests.ConnectionError:
            return None
        reply.raise_for_status()
        self._session.headers["Authorization"] = f"Bearer {reply.json()['access_token']}"
        return True

    def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Any:
        reply = self._session.request(
            method,
            f"{self.url}/api/v2{path}",
            json=body,
            params=parameters,
            headers={"Accept": "application/json"},
            timeout=60,
        )
        if not reply.ok:
            raise LocalAirflowError(f"{method} {path}: {reply.status_code} {reply.text[:2000]}")
        return reply.json() if reply.content else None

    def _wait(self, what: str, condition: Callable[[], T | None], deadline: float) -> T:
        """Look until `condition` has an answer; a component that dies meanwhile is an error."""
        while (answer := condition()) is None:
            for component in self._expected_to_run:
                child = self.children[component]
                if child.ended:
                    raise LocalAirflowError(
                        f"the {component} died while we waited for {what}; {child.log} ends with:\n{child.tail()}"
                    )
            if time.monotonic() > deadline:
                raise LocalAirflowTimeout(f"gave up waiting for {what}; the logs are in {self.folder}")
            time.sleep(_POLL)
        return answer

    def _wait_in_run(
        self, what: str, dag_id: str, run_id: str, condition: Callable[[], T | None], timeout: float
    ) -> T:
        try:
            return self._wait(what, condition, time.monotonic() + timeout)
        except LocalAirflowTimeout as error:
            states = ", ".join(
                f"{ti.task_id}[{ti.map_index}] {ti.state} (try {ti.try_number})"
                for ti in self.task_instances(dag_id, run_id)
            )
            raise LocalAirflowTimeout(f"{error}; the tasks: {states}") from None


def clean_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """Drop what would configure Airflow, Python or telemetry, and proxies: all is on loopback."""
    return {
        name: value
        for name, value in environment.items()
        if not name.startswith(("AIRFLOW", "_AIRFLOW", "PYTHON", "OTEL_"))
        and not name.lower().endswith("_proxy")
    }


def _reserve_port() -> tuple[int, socket.socket]:
    """
    Choose a free port, and keep it from others while it is ours.

    On Linux a bound socket that does not listen keeps the port out of the pool of free ones, and a
    server that names the port itself, with SO_REUSEADDR as all do, may still take it. Elsewhere that
    would be refused, so there the port is only known to be free at this moment.
    """
    holder = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    holder.bind(("127.0.0.1", 0))
    port = int(holder.getsockname()[1])
    if platform.system() != "Linux":
        holder.close()
    return port, holder


def _private_file(path: Path) -> Any:
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w")


def _segment(text: str) -> str:
    return quote(text, safe="")


def _utc_now() -> str:
    return datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S.%f")


def _moment(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text).replace(tzinfo=timezone.utc)


def _text(value: object) -> str:
    return value.decode("utf-8", errors="replace") if isinstance(value, bytes) else str(value)


def _log_line(entry: Mapping[str, Any] | str) -> str:
    if isinstance(entry, str):
        return entry
    rest = {key: value for key, value in entry.items() if key not in ("timestamp", "level", "event")}
    words = [str(entry[key]) for key in ("timestamp", "level", "event") if entry.get(key)]
    return " ".join([*words, json.dumps(rest, ensure_ascii=False)] if rest else words)
