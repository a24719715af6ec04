"""
What a night in one task costs: `python -m benchmarks.batch_night 1000`, or `300x20 --bare` beside a bare batch.

Runs on a real Airflow, with the emulator in a process of its own, and prints one line of figures for each way:
wall time, CPU of all Airflow processes and the journal's share of it, task starts, peak memory of the task's
process and of the triggerer, and HTTP calls a job. No threshold is asserted: a machine's figures are its own.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from airflow_provider_uniapi_fal.emulator.running import EmulatorProcess
from benchmarks.measuring import Usage
from demo.local_airflow import LocalAirflow

HERE = Path(__file__).parent
KEY = "sk-of-the-benchmark"


def run(ways: list[str], jobs: int, seconds: float, folder: Path) -> None:
    """Run a night of so many jobs of so many seconds each way."""
    ledger = folder / "ledger"
    ledger.mkdir()
    # One small picture for all, so that the emulator does not take the CPU that is measured.
    with EmulatorProcess(
        queue_seconds=0.0, run_seconds=seconds, spread=0.1, same_media=True, key=KEY
    ) as emulator:
        connection = {
            "conn_type": "uniapi_fal",
            "host": emulator.url,
            "password": KEY,
            "extra": {"media_hosts": ["127.0.0.1"]},
        }
        with LocalAirflow(
            folder / "airflow",
            dags=HERE / "batch_dags",
            environment={
                "AIRFLOW_CONN_FAL_DEFAULT": json.dumps(connection),
                "LEDGER_CPU": str(ledger),
                "PYTHONPATH": f"{HERE / 'batch_hooks'}:{HERE.parent}",
            },
        ) as airflow:
            # What an Airflow pays once, for its first tasks, is not to be counted to the way that runs first.
            for way in ways:
                measured(way, 5, seconds, folder / f"{way}-before", ledger, emulator, airflow)
            for way in ways:
                print(
                    json.dumps(measured(way, jobs, seconds, folder / way, ledger, emulator, airflow)),
                    flush=True,
                )


def measured(
    way: str,
    jobs: int,
    seconds: float,
    place: Path,
    ledger: Path,
    emulator: EmulatorProcess,
    airflow: LocalAirflow,
) -> dict[str, Any]:
    """Run one way and return its figures."""
    place.mkdir()
    emulator.reset()
    for file in ledger.iterdir():
        file.unlink()
    rows = [
        {"arguments": {"prompt": f"night {n:05}", "seed": 7, "image_size": {"width": 64, "height": 48}}}
        for n in range(jobs)
    ]
    (place / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    airflow.wait_for_dag(way)
    # Tasks run in children of the scheduler, triggers in a child of the triggerer.
    children = airflow.children
    with Usage(
        airflow.running, worker=children["scheduler"].pid, triggerer=children["triggerer"].pid
    ) as usage:
        began = time.monotonic()
        conf = {"table": (place / "table.jsonl").as_uri(), "destination": (place / "night").as_uri()}
        run_id = airflow.trigger(way, conf)
        state = airflow.wait_for_run(way, run_id, 1800)
        wall = time.monotonic() - began
    calls = Counter(each["operation"] for each in emulator.requests())
    total = emulator.account()["totals"]
    figures: dict[str, Any] = {
        "way": way,
        "jobs": jobs,
        "job_seconds": seconds,
        "state": state,
        "wall_s": round(wall, 1),
        "airflow_cpu_s": round(usage.cpu, 1),
        "cpu_ms_per_job": round(usage.cpu / jobs * 1000, 1),
        "task_starts": task_starts(airflow, way, run_id),
        "posts_accepted": total["posts_accepted"],
        "calls_per_job": {name: round(count / jobs, 2) for name, count in sorted(calls.items())},
        "peak_mb": {name: round(size) for name, size in usage.memory.items()},
    }
    if way == "batch":
        spent = sum(float(file.read_text() or 0) for file in ledger.iterdir())
        summary = json.loads((place / "night" / "manifest.summary.json").read_text())
        journal = place / "night" / "manifest.journal"
        files = [file for file in journal.rglob("*") if file.is_file()]
        figures |= {
            "counts": {name: count for name, count in summary["counts"].items() if count},
            "ledger_cpu_s": round(spent, 2),
            "ledger_share": round(spent / usage.cpu, 4),
            "journal_files": len(files),
            "journal_bytes_per_job": round(sum(file.stat().st_size for file in files) / jobs),
        }
    return figures


def task_starts(airflow: LocalAirflow, way: str, run_id: str) -> int:
    """Return how often a worker began or resumed the task, from its log."""
    log = airflow.task_log(way, run_id, "night")
    text = log if isinstance(log, str) else "\n".join(map(str, log))
    return text.count("::group::Pre Execute") or text.count("Pre Execute") or text.count("DAG bundles loaded")


def main() -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batch_night", description=(__doc__ or "").strip()
    )
    parser.add_argument("night", help="jobs, or jobs x seconds: 1000, 300x20, 10000x0.5")
    parser.add_argument("--bare", action="store_true", help="also run a bare batch")
    options = parser.parse_args()
    jobs, _, seconds = options.night.partition("x")
    with tempfile.TemporaryDirectory(prefix="batch-night-") as folder:
        run(["batch", *(["bare"] if options.bare else [])], int(jobs), float(seconds or 5), Path(folder))
    return 0


if __name__ == "__main__":
    sys.exit(main())
