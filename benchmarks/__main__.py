"""
Run every way through jobs of the same kind, one after the other, in one real Airflow: ``python -m benchmarks``.

The gateway is the emulator, over TLS, in a process of its own, with 30 to 80 ms on the way to it. Figures go to the
terminal as a table and, with ``--out``, to a file as JSON. A way that fails, or is not through in time, is a row that
says so; the others go on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from benchmarks import peers
from benchmarks.measuring import Figures, Usage, ratios, take_account, write
from benchmarks.setting import a_gateway, an_airflow
from demo.local_airflow import LocalAirflowError

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.running import Emulator
    from demo.local_airflow import LocalAirflow

#: Ways with a task for each job, or more than one.
BY_JOB = (
    "fal_client",
    "plain_operator",
    "ours_mapped",
    "ours_generate",
    "ours_generate_poll_2s",
    "ours_ended_in_trigger",
    "ours_stream",
)
#: The batch, and what it is compared with: as many jobs for each.
BESIDE_THE_BATCH = ("seed_loop", "http_provider", "bare_batch", "ours_batch")
#: What an Airflow pays once, as for the API server's imports, is not charged to whoever comes first.
WARM_UP = ("plain_operator", "ours_batch")
WARM_UP_JOBS = 3
#: The tasks that hand out the rows: they are none of a way's own. The batch reads a table.
MAKES_ROWS = ("prompts", "inputs", "bodies")

SHORT = {
    "jobs": 2,
    "batch_jobs": 4,
    "seconds": 2.0,
    "only": ["ours_generate", "seed_loop", "http_provider", "ours_batch"],
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, and print what was measured; return 1 if a way has not succeeded."""
    options = _options(arguments)
    found: list[Figures] = []
    with (
        tempfile.TemporaryDirectory(prefix="uniapi-fal-bench-") as folder,
        a_gateway(
            options.seconds,
            spread=options.spread,
            latency=options.latency,
            latency_spread=options.latency_spread,
        ) as emulator,
        an_airflow(Path(folder), emulator, options.parallelism) as airflow,
    ):
        _warm_up(airflow, Path(folder), options.timeout)
        for way in options.only or (*BY_JOB, *BESIDE_THE_BATCH):
            found.append(_measure(way, airflow, emulator, Path(folder), options))
            print(way, found[-1].state, f"{found[-1].wall:.0f} s", *found[-1].notes, flush=True)
    judged = ratios(found)
    _show(found)
    for name, value in judged.items():
        print(f"{name}: {value:.2f}")
    write(options.out, options, ways=[asdict(each) for each in found], ratios=judged)
    return int(any(each.state != "success" for each in found))


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--jobs", type=int, default=100, help="jobs of each way with a task for each job")
    parser.add_argument(
        "--batch-jobs", type=int, default=300, help="jobs of the batch, and of what it is compared with"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="a job's time")
    parser.add_argument("--spread", type=float, default=0.1, help="share by which it varies")
    parser.add_argument("--latency", type=float, default=0.055, help="seconds on the way to the gateway")
    parser.add_argument("--latency-spread", type=float, default=0.45, help="share by which they vary")
    parser.add_argument("--parallelism", type=int, default=32, help="tasks that run at once")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one way")
    parser.add_argument("--only", nargs="*", choices=(*BY_JOB, *BESIDE_THE_BATCH), help="these ways only")
    parser.add_argument("--short", action="store_true", help="a few short jobs, to see that it runs")
    parser.add_argument("--out", help="write the figures to this file, as JSON")
    options = parser.parse_args(arguments)
    if options.short:
        parser.set_defaults(**SHORT)
        options = parser.parse_args(arguments)
    return options


def _warm_up(airflow: LocalAirflow, folder: Path, timeout: float) -> None:
    for way in WARM_UP:
        airflow.wait_for_dag(way, timeout=120)
        run_id = airflow.trigger(way, _rows(folder, "warm-up", WARM_UP_JOBS))
        state = airflow.wait_for_run(way, run_id, timeout)
        print(f"warm-up, {way}:", state, _why_failed(airflow, way, run_id), flush=True)


def _rows(folder: Path, mark: str, jobs: int) -> dict[str, Any]:
    """Return what a run is told of its jobs: their prompts, and a file with the table of them."""
    prompts = [f"{mark} {number}" for number in range(jobs)]
    table = folder / f"{mark.replace(' ', '-')}.jsonl"
    table.write_text("".join(json.dumps({"arguments": peers.arguments(prompt)}) + "\n" for prompt in prompts))
    return {"prompts": prompts, "table": table.as_uri()}


def _measure(
    way: str, airflow: LocalAirflow, emulator: Emulator, folder: Path, options: argparse.Namespace
) -> Figures:
    figures = Figures(way, jobs=options.batch_jobs if way in BESIDE_THE_BATCH else options.jobs)
    try:
        _run(figures, airflow, emulator, folder, options.timeout)
    except Exception as error:  # noqa: BLE001 - whatever it is, the other ways go on
        figures.state = "failed"
        figures.notes.append(f"{type(error).__name__}: {error}"[:200])
    return figures


def _run(figures: Figures, airflow: LocalAirflow, emulator: Emulator, folder: Path, timeout: float) -> None:
    way = figures.way
    airflow.wait_for_dag(way, timeout=120)
    mark = f"{way} {os.urandom(3).hex()}"
    conf = _rows(folder, mark, figures.jobs)
    with Usage(airflow.running, triggerer=airflow.children["triggerer"].pid) as usage:
        began = time.monotonic()
        run_id = airflow.trigger(way, conf=conf)
        try:
            figures.state = airflow.wait_for_run(way, run_id, timeout)
        except LocalAirflowError as error:
            figures.state = "did not end"
            figures.notes.append(str(error)[:200])
        figures.wall = time.monotonic() - began
    figures.cpu = usage.cpu
    figures.triggerer_mb = usage.memory["triggerer"]
    if why := _why_failed(airflow, way, run_id):
        figures.notes.append(why)
    _look_at_tasks(figures, airflow, run_id)
    take_account(figures, emulator, mark)
    if figures.state == "did not end":
        airflow.set_run_state(way, run_id, "failed")


def _why_failed(airflow: LocalAirflow, way: str, run_id: str) -> str:
    """Return the end of the log of the first task that has failed, if one has."""
    for each in airflow.task_instances(way, run_id):
        if each.state == "failed":
            log = airflow.task_log(way, run_id, each.task_id, map_index=each.map_index)
            return f"{each.task_id} {each.map_index} failed: …{log[-500:]}"
    return ""


def _look_at_tasks(figures: Figures, airflow: LocalAirflow, run_id: str) -> None:
    starts = [
        (datetime.fromisoformat(moment), task_id)
        for moment, task_id in airflow.query(
            "SELECT dttm, task_id FROM log WHERE event = 'running' AND dag_id = ? AND run_id = ?",
            (figures.way, run_id),
        )
    ]
    figures.task_starts = len(starts)
    [(last_end,)] = airflow.query(
        "SELECT max(end_date) FROM task_instance WHERE dag_id = ? AND run_id = ?", (figures.way, run_id)
    )
    own = [moment for moment, task_id in starts if task_id not in MAKES_ROWS]
    if own and last_end:
        figures.wall_of_tasks = (datetime.fromisoformat(last_end) - min(own)).total_seconds()


def _show(found: Sequence[Figures]) -> None:
    table = Table()
    table.add_column("way", no_wrap=True)
    columns = (
        "jobs", "state", "wall s", "wall of its tasks s", "slowest job s", "task starts", "CPU s", "CPU ms / job",
        "calls / job", "status calls / job", "known after s, median", "p95", "triggerer MB",
    )  # fmt: skip
    for column in columns:
        table.add_column(column)
    for each in found:
        table.add_row(
            each.way,
            str(each.jobs),
            each.state,
            f"{each.wall:.1f}",
            "–" if each.wall_of_tasks is None else f"{each.wall_of_tasks:.1f}",
            f"{each.slowest_job:.1f}",
            str(each.task_starts),
            f"{each.cpu:.1f}",
            f"{1000 * each.cpu / max(each.jobs, 1):.0f}",
            f"{each.calls_per_job:.1f}",
            f"{each.status_calls_per_job:.1f}",
            "–" if each.known_median is None else f"{each.known_median:.2f}",
            "–" if each.known_p95 is None else f"{each.known_p95:.2f}",
            f"{each.triggerer_mb:.0f}",
        )
    Console(width=180).print(table)


if __name__ == "__main__":
    sys.exit(main())
