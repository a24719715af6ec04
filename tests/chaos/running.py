"""One run of chaos: a real Airflow, an emulator of its own, and what befalls both."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import requests

from airflow_provider_uniapi_fal.emulator.running import EmulatorProcess
from demo.local_airflow import LocalAirflow, TaskInstance
from demo.progress import Progress
from tests.chaos.account import Ending, Happened
from tests.chaos.plan import WAYS, Plan, PlannedJob

if TYPE_CHECKING:
    from rich.console import Console

DAGS = Path(__file__).parent / "dags"
KEY = "chaos-key"
FINAL = ("success", "failed", "upstream_failed", "skipped", "removed")
SECONDS_BETWEEN_LOOKS = 0.2
DEFERRED_BEFORE_A_KILL = 3


@dataclass(frozen=True)
class Found:
    """What a run leaves: both sides' words, and what was done to them."""

    endings: Mapping[str, Ending]
    account: Mapping[str, Any]
    faults: Counter[str]
    happened: Happened
    in_time: bool


def run_chaos(plan: Plan, folder: Path, *, limit: float, console: Console) -> Found:
    """
    Run a plan in a folder of its own; nothing is left running.

    :param limit: seconds until the run is taken as it stands
    """
    deadline = time.monotonic() + limit
    with EmulatorProcess(queue_seconds=2, run_seconds=8, spread=0.8, key=KEY) as emulator:
        for job in plan.jobs:
            for rule in job.rules:
                emulator.add_fault(rule)
        connection = {"conn_type": "uniapi_fal", "host": emulator.url, "password": KEY}
        airflow = LocalAirflow(
            folder,
            dags=DAGS,
            environment={"AIRFLOW_CONN_FAL_DEFAULT": json.dumps(connection)},
            parallelism=16,
            start_timeout=180,
            # Another triggerer takes over from a dead one after this time.
            config={"triggerer": {"triggerer_health_check_threshold": 10}},
        )
        with airflow:
            for way in WAYS:
                airflow.wait_for_dag(way, timeout=120)
            console.print("Airflow and the emulator are up; it begins.")
            return _Run(plan, airflow, emulator, console).until(deadline)


class _Run:
    def __init__(
        self, plan: Plan, airflow: LocalAirflow, emulator: EmulatorProcess, console: Console
    ) -> None:
        self.plan, self.airflow, self.emulator, self.console = plan, airflow, emulator, console
        self.to_come = list(plan.incidents)
        self.to_kill = {
            (job.way, job.kill.task_id, job.index): (job, job.kill.after) for job in plan.jobs if job.kill
        }
        self.seen_running: dict[tuple[str, str, int], float] = {}
        self.to_cancel = {job.prompt for job in plan.jobs if job.end.cancelled}
        self.killed: dict[str, datetime] = {}
        self.absences: list[tuple[datetime, datetime]] = []
        self.triggerers_killed = 0

    def until(self, deadline: float) -> Found:
        runs = {
            way: self.airflow.trigger(way, {"prompts": [job.prompt for job in self.plan.of_way(way)]})
            for way in WAYS
            if self.plan.of_way(way)
        }
        running = dict(runs)
        with Progress(self.console, lambda: self.emulator.account()["totals"]["jobs_by_state"]) as progress:
            while running and time.monotonic() < deadline:
                tasks = {
                    (way, ti.task_id, ti.map_index): ti
                    for way, run_id in runs.items()
                    for ti in self.airflow.task_instances(way, run_id)
                }
                progress([ti for ti in tasks.values() if ti.map_index >= 0])
                self.kill_tasks(tasks)
                self.let_accidents_happen(tasks)
                for way in list(running):
                    if self.airflow.run_state(way, runs[way]) in ("success", "failed"):
                        del running[way]
                time.sleep(SECONDS_BETWEEN_LOOKS)
        endings: dict[str, Ending] = {}
        for way, run_id in runs.items():
            endings.update(self.endings_of(way, run_id))
        seen = self.emulator.requests()
        return Found(
            endings,
            self.emulator.account(),
            Counter(f"{each['fault']} on {each['operation']}" for each in seen if each["fault"]),
            Happened(dict(self.killed), tuple(self.absences), self.triggerers_killed),
            not running,
        )

    def kill_tasks(self, tasks: Mapping[tuple[str, str, int], TaskInstance]) -> None:
        """Kill the task processes whose time has come."""
        due = []
        for place, (job, after) in self.to_kill.items():
            ti = tasks.get(place)
            if ti is None or ti.state != "running" or ti.pid is None:
                continue
            since = self.seen_running.setdefault(place, time.monotonic())
            if time.monotonic() - since >= after:
                due.append((place, job, ti.pid))
        if not due:
            return
        # Only a process of this Airflow's scheduler is killed: the number may have gone to a stranger.
        ours = {process.pid: process for process in self.airflow.children["scheduler"].members()}
        for place, job, pid in due:
            if pid in ours:
                with contextlib.suppress(psutil.NoSuchProcess):
                    ours[pid].kill()
                    self.killed[job.prompt] = datetime.now(timezone.utc)
                    del self.to_kill[place]

    def let_accidents_happen(self, tasks: Mapping[tuple[str, str, int], TaskInstance]) -> None:
        jobs = self.emulator.account()["jobs"]
        self.cancel(jobs)
        accepted = len({job["prompt"] for job in jobs}) / len(self.plan.jobs)
        deferred = sum(ti.state == "deferred" for ti in tasks.values())
        for incident in self.to_come:
            if accepted < incident.at or (incident.what == "triggerer" and deferred < DEFERRED_BEFORE_A_KILL):
                continue
            self.to_come.remove(incident)
            if incident.what == "triggerer":
                self.say(f"killing the triggerer, with {deferred} tasks deferred")
                self.airflow.kill("triggerer")
                time.sleep(incident.pause)
                self.airflow.restart("triggerer", timeout=120)
                self.triggerers_killed += 1
            else:
                self.say(f"killing the emulator, for {incident.pause:.1f} s")
                gone = datetime.now(timezone.utc)
                self.emulator.kill()
                time.sleep(incident.pause)
                self.emulator.restart()
                self.absences.append((gone, datetime.now(timezone.utc)))
            return

    def cancel(self, jobs: Iterable[Mapping[str, Any]]) -> None:
        """Cancel what somebody else is to cancel, as soon as it has been looked at."""
        for job in jobs:
            if job["prompt"] not in self.to_cancel or not job["calls"]["status"]:
                continue
            self.to_cancel.remove(job["prompt"])
            url = f"{self.emulator.url}/fal-ai/{job['model']}/requests/{job['request_id']}/cancel"
            with requests.Session() as session:
                session.trust_env = False  # a proxy has no business with loopback
                reply = session.put(url, headers={"Authorization": f"Key {KEY}"}, timeout=30)
            if reply.status_code != 400:  # its clock may just have ended it
                reply.raise_for_status()

    def endings_of(self, way: str, run_id: str) -> dict[str, Ending]:
        tasks = {(ti.task_id, ti.map_index): ti for ti in self.airflow.task_instances(way, run_id)}
        values = {
            (xcom.task_id, xcom.map_index, xcom.key): json.loads(xcom.value)
            for xcom in self.airflow.xcom_entries(way, run_id)
            if xcom.map_index >= 0
        }
        return {job.prompt: _ending(job, tasks, values) for job in self.plan.of_way(way)}

    def say(self, text: str) -> None:
        self.console.print(f"        {text}", highlight=False)


def _ending(
    job: PlannedJob,
    tasks: Mapping[tuple[str, int], TaskInstance],
    values: Mapping[tuple[str, int, str], Any],
) -> Ending:
    steps = WAYS[job.way]
    first, last = (tasks.get((step, job.index)) for step in (steps[0], steps[-1]))
    submitting = (None, None) if first is None else (first.start, first.end)
    if first is None or last is None or last.state not in FINAL:
        state = "not begun" if last is None else last.state or "not begun"
        return Ending(f"unfinished ({state})", submitting=submitting)
    result = values.get((steps[-1], job.index, "return_value"))
    if last.state == "success" and result:
        return Ending("succeeded", request_id=result["handle"]["request_id"], submitting=submitting)
    failures = [values.get((step, job.index, "failure")) for step in steps]
    failure = next(filter(None, failures), {"outcome": "failed", "message": "No task says why."})
    return Ending(failure["outcome"], failure["message"], submitting=submitting)
