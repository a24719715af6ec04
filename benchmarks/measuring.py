"""Figures of one run: the processes' CPU and memory, the gateway's account, and Airflow's own table of tasks."""

from __future__ import annotations

import argparse
import contextlib
import json
import platform
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.running import Emulator

#: Seconds between looks at the memory.
MEMORY_SECONDS = 0.5
#: The last processes of a run outlive it by so many seconds at most.
LAST_SECONDS = 1.0


@dataclass
class Figures:
    """What one way has cost."""

    way: str
    jobs: int = 0
    state: str = ""
    wall: float = 0.0
    """Seconds from the trigger of the run to its end, the task that makes the rows included."""
    wall_of_tasks: float | None = None
    """Seconds from the first start of a task that has the rows to the end of the run's last task."""
    slowest_job: float = 0.0
    cpu: float = 0.0
    task_starts: int = 0
    posts: int = 0
    calls_per_job: float = 0.0
    status_calls_per_job: float = 0.0
    known_median: float | None = None
    known_p95: float | None = None
    triggerer_mb: float = 0.0
    notes: list[str] = field(default_factory=list)


class Usage:
    """
    CPU seconds of a tree of processes, the ended ones included, and the most memory of some.

    The kernel adds what a process has used to the parent that has waited for its end, so two looks tell of every
    process between them, however short it was. Only Linux tells: elsewhere the ended processes are missing.

    :param all_processes: lists those that run, the parents of all with them
    :param watched: by name, the number of a process of which the largest child's memory is wanted: Airflow's
        components do their work in children
    """

    def __init__(self, all_processes: Callable[[], list[psutil.Process]], **watched: int) -> None:
        self._all = all_processes
        self._watched = watched
        self._before = 0.0
        self.cpu = 0.0
        self.memory = dict.fromkeys(watched, 0.0)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Usage:
        self._before = self._spent()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        time.sleep(LAST_SECONDS)
        self.cpu = self._spent() - self._before

    def _spent(self) -> float:
        spent = 0.0
        for process in self._all():
            with contextlib.suppress(psutil.Error):
                used = process.cpu_times()
                spent += used.user + used.system + used.children_user + used.children_system
        return spent

    def _run(self) -> None:
        while not self._stop.is_set():
            self._look_at_memory()
            self._stop.wait(MEMORY_SECONDS)

    def _look_at_memory(self) -> None:
        parents: dict[int, int] = {}
        sizes: dict[int, float] = {}
        for process in self._all():
            with contextlib.suppress(psutil.Error):
                parents[process.pid] = process.ppid()
                sizes[process.pid] = process.memory_info().rss / 1e6
        for name, pid in self._watched.items():
            under = (size for each, size in sizes.items() if _is_under(each, pid, parents))
            self.memory[name] = max(self.memory[name], *under, 0.0)


def _is_under(pid: int, ancestor: int, parents: Mapping[int, int]) -> bool:
    while pid in parents:
        pid = parents[pid]
        if pid == ancestor:
            return True
    return False


def ratios(found: Iterable[Figures]) -> dict[str, float]:
    """Return what the batch is to be judged by, of the ways that have succeeded in this run."""
    ways = {each.way: each for each in found if each.state == "success"}
    batch = ways.get("ours_batch")
    if batch is None:
        return {}
    told = {"task starts of the batch": float(batch.task_starts)}
    if batch.slowest_job:
        told["wall of the batch / slowest job"] = batch.wall / batch.slowest_job
        if batch.wall_of_tasks is not None:
            told["wall of the batch's task / slowest job"] = batch.wall_of_tasks / batch.slowest_job
    for name, way in (
        ("HTTP provider", "http_provider"),
        ("seed's loop", "seed_loop"),
        ("bare batch", "bare_batch"),
    ):
        if way in ways and batch.cpu and ways[way].jobs == batch.jobs:
            told[f"CPU of the {name} / of the batch"] = ways[way].cpu / batch.cpu
    return told


def write(file: str | None, options: argparse.Namespace, **found: Any) -> None:
    """Write figures, with where and how they were measured, to a file as JSON, if one is named."""
    if not file:
        return
    about = {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "machine": f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB, {platform.platform()}",
        "python": platform.python_version(),
        "options": {name: value for name, value in vars(options).items() if name != "out"},
    }
    path = Path(file)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"about": about, **found}, indent=2) + "\n")


def known_after(emulator: Emulator, prompt_prefix: str) -> Iterator[tuple[dict[str, Any], float | None]]:
    """
    Give each job of a way with the seconds from its end to the first request that could tell of it.

    For a followed stream that is the request for the result, which is sent when the stream has told the end.
    """
    asked: dict[str, list[float]] = {}
    for each in emulator.requests():
        if each["operation"] in ("status", "result") and each["request_id"]:
            asked.setdefault(each["request_id"], []).append(each["time"])
    for job in emulator.account()["jobs"]:
        if job["prompt"].startswith(prompt_prefix):
            end = job["finished_at"]
            after = [moment - end for moment in asked.get(job["request_id"], []) if end and moment >= end]
            yield job, min(after, default=None)


def take_account(figures: Figures, emulator: Emulator, prompt_prefix: str) -> None:
    """Fill in what the gateway has seen of a way's jobs."""
    jobs = list(known_after(emulator, prompt_prefix))
    figures.posts = len(jobs)
    late = sorted(seconds for _, seconds in jobs if seconds is not None)
    if late:
        figures.known_median = statistics.median(late)
        figures.known_p95 = late[min(int(0.95 * len(late)), len(late) - 1)]
    ours = {job["request_id"] for job, _ in jobs}
    calls = [each for each in emulator.requests() if each["request_id"] in ours]
    figures.calls_per_job = len(calls) / max(len(jobs), 1)
    figures.status_calls_per_job = sum(each["operation"] == "status" for each in calls) / max(len(jobs), 1)
    figures.slowest_job = max(
        ((job["finished_at"] or time.time()) - job["submitted_at"] for job, _ in jobs), default=0.0
    )
