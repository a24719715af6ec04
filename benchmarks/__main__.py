"""
Run every way through the same jobs, one after the other, in one real Airflow: ``python -m benchmarks``.

The gateway is the emulator, over TLS, in a process of its own, with 30 to 80 ms on the way to it. Figures go to the
terminal as a table and, with ``--out``, to a file as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.measuring import Figures, Usage, take_account
from benchmarks.setting import a_gateway, an_airflow
from demo.local_airflow import LocalAirflowError

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.running import Emulator
    from demo.local_airflow import LocalAirflow

WAYS = (
    "seed_loop",
    "fal_client",
    "http_provider",
    "plain_operator",
    "bare_batch",
    "ours_mapped",
    "ours_generate",
    "ours_generate_poll_2s",
    "ours_ended_in_trigger",
    "ours_stream",
    "ours_batch",
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and print what was measured."""
    options = _options(arguments)
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
        found = [_measure(way, airflow, emulator, options) for way in options.only or WAYS]
    about = {
        "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
        "machine": f"{psutil.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB, {platform.platform()}",
        "python": platform.python_version(),
        "options": {name: value for name, value in vars(options).items() if name != "out"},
    }
    _show(found)
    if options.out:
        text = json.dumps({"about": about, "ways": [asdict(each) for each in found]}, indent=2)
        Path(options.out).write_text(text + "\n")


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--jobs", type=int, default=100, help="jobs of each way")
    parser.add_argument("--seconds", type=float, default=20.0, help="a job's time")
    parser.add_argument("--spread", type=float, default=0.1, help="share by which it varies")
    parser.add_argument("--latency", type=float, default=0.055, help="seconds on the way to the gateway")
    parser.add_argument("--latency-spread", type=float, default=0.45, help="share by which they vary")
    parser.add_argument("--parallelism", type=int, default=32, help="tasks that run at once")
    parser.add_argument("--timeout", type=float, default=900.0, help="seconds for one way")
    parser.add_argument("--only", nargs="*", choices=WAYS, help="these ways only")
    parser.add_argument("--out", help="write the figures to this file, as JSON")
    return parser.parse_args(arguments)


def _measure(way: str, airflow: LocalAirflow, emulator: Emulator, options: argparse.Namespace) -> Figures:
    figures = Figures(way, jobs=options.jobs)
    try:
        airflow.wait_for_dag(way, timeout=30)
    except LocalAirflowError as error:
        figures.notes.append(f"left out: {error}"[:200])
        return figures
    mark = f"{way} {os.urandom(3).hex()}"
    prompts = [f"{mark} {number}" for number in range(options.jobs)]
    began = time.monotonic()
    with Usage(airflow.running, triggerer=airflow.children["triggerer"].pid) as usage:
        run_id = airflow.trigger(way, conf={"prompts": prompts})
        try:
            figures.state = airflow.wait_for_run(way, run_id, options.timeout)
        except LocalAirflowError as error:
            figures.state = "did not end"
            figures.notes.append(str(error)[:200])
            airflow.set_run_state(way, run_id, "failed")
    figures.wall = time.monotonic() - began
    figures.cpu = usage.cpu
    figures.triggerer_mb = usage.memory["triggerer"]
    [(figures.task_starts,)] = airflow.query(
        "SELECT count(*) FROM log WHERE event = 'running' AND dag_id = ? AND run_id = ?", (way, run_id)
    )
    take_account(figures, emulator, mark)
    _show([figures])
    return figures


def _show(found: Sequence[Figures]) -> None:
    table = Table()
    columns = (
        "way", "state", "wall s", "wall / slowest", "task starts", "CPU s", "CPU ms / job", "calls / job",
        "status calls / job", "known after s, median", "p95", "triggerer MB",
    )  # fmt: skip
    for column in columns:
        table.add_column(column)
    for each in found:
        table.add_row(
            each.way,
            each.state or "; ".join(each.notes),
            f"{each.wall:.1f}",
            f"{each.wall / each.slowest_job:.2f}" if each.slowest_job else "–",
            str(each.task_starts),
            f"{each.cpu:.1f}",
            f"{1000 * each.cpu / max(each.jobs, 1):.0f}",
            f"{each.calls_per_job:.1f}",
            f"{each.status_calls_per_job:.1f}",
            "–" if each.known_median is None else f"{each.known_median:.2f}",
            "–" if each.known_p95 is None else f"{each.known_p95:.2f}",
            f"{each.triggerer_mb:.0f}",
        )
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
