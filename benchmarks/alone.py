"""
One job of five seconds, alone, again and again: ``python -m benchmarks.alone``.

What a plain deferrable operator and FalGenerateOperator with its defaults add to the job's own time, from the moment
that the run is queued to the end of its task, in turns in one real Airflow.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from benchmarks.measuring import write
from benchmarks.setting import a_gateway, an_airflow

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.running import Emulator
    from demo.local_airflow import LocalAirflow

WAYS = ("alone_plain", "alone_ours")


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.alone", description=__doc__)
    parser.add_argument("--runs", type=int, default=7, help="runs of each way")
    parser.add_argument("--seconds", type=float, default=5.0, help="the job's time")
    parser.add_argument("--short", action="store_true", help="one short run, to see that it runs")
    parser.add_argument("--out", help="write the figures to this file, as JSON")
    options = parser.parse_args()
    if options.short:
        options.runs, options.seconds = 1, 1.0
    with (
        tempfile.TemporaryDirectory(prefix="uniapi-fal-bench-") as folder,
        a_gateway(options.seconds, spread=0.0) as emulator,
        an_airflow(Path(folder), emulator) as airflow,
    ):
        for way in WAYS:
            airflow.wait_for_dag(way, timeout=120)
            if not options.short:
                _overheads(way, airflow, emulator)  # what is used first is slow
        found = {way: list[tuple[float, float]]() for way in WAYS}
        for _ in range(options.runs):
            for way in WAYS:
                found[way].append(_overheads(way, airflow, emulator))
    table = Table("way", "runs", "of the run: median s", "least", "most", "of the task: median s")
    for way, overheads in found.items():
        of_run, of_task = (sorted(each) for each in zip(*overheads, strict=True))
        table.add_row(
            way,
            str(len(of_run)),
            *(f"{value:.2f}" for value in (statistics.median(of_run), of_run[0], of_run[-1])),
            f"{statistics.median(of_task):.2f}",
        )
    Console(width=120).print(table)
    write(options.out, options, run_and_task_seconds=found)


def _overheads(way: str, airflow: LocalAirflow, emulator: Emulator) -> tuple[float, float]:
    """Run one job; return the seconds beyond its own that the run took, and its task from its first start."""
    prompt = f"{way} {os.urandom(4).hex()}"
    run_id = airflow.trigger(way, conf={"prompt": prompt})
    state = airflow.wait_for_run(way, run_id, 120)
    if state != "success":
        raise RuntimeError(f"{way}: the run has ended as {state}")
    [job] = [each for each in emulator.account()["jobs"] if each["prompt"] == prompt]
    took = job["finished_at"] - job["submitted_at"]
    [(queued, began, ended)] = airflow.query(
        "SELECT run.queued_at, min(log.dttm), ti.end_date FROM dag_run run"
        " JOIN task_instance ti ON ti.dag_id = run.dag_id AND ti.run_id = run.run_id"
        " JOIN log ON log.dag_id = run.dag_id AND log.run_id = run.run_id AND log.event = 'running'"
        " WHERE run.dag_id = ? AND run.run_id = ?",
        (way, run_id),
    )
    first, start, end = (datetime.fromisoformat(each).timestamp() for each in (queued, began, ended))
    return end - first - took, end - start - took


if __name__ == "__main__":
    main()
