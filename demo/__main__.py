"""
Run the nightly DAG once, for real: `python -m demo`.

Starts the emulator and an Airflow in a folder of their own, runs `dags_examples/nightly_batch.py`
over `demo/prompts.jsonl`, shows what became of each prompt, and leaves nothing running.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table
from rich.text import Text

from airflow_provider_uniapi_fal.emulator.running import Emulator
from demo.account import (
    SUCCEEDED,
    BrokenMedia,
    MediaFile,
    Row,
    picture_of,
    read_account,
    read_keys,
    what_is_wrong,
)
from demo.contact_sheet import draw_contact_sheet, in_units
from demo.local_airflow import LocalAirflow, LocalAirflowError, clean_environment
from demo.processes import Processes
from demo.progress import Progress
from demo.real import agreed, gateway_of, run_real

PROJECT = Path(__file__).resolve().parent.parent
RUNS = PROJECT / ".demo"
PROMPTS = PROJECT / "demo" / "prompts.jsonl"
DAG_FILE = PROJECT / "dags_examples" / "nightly_batch.py"
DAG_ID = "nightly_batch"
KEY = "demo-key"
EMULATOR_START_SECONDS = 30.0
RUN_SECONDS = 300.0

# Fewer run at once than are submitted, so that there is a queue to see.
EMULATOR_OPTIONS = (
    "--queue-seconds=1",
    "--run-seconds=5",
    "--spread=0.5",
    "--concurrency=12",
    "--model-seconds=kling-video=12",
)


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the demo and return the exit code: 0 only if every prompt succeeded."""
    parser = argparse.ArgumentParser(prog="python -m demo", description=(__doc__ or "").strip())
    parser.add_argument(
        "--folder", type=Path, help="where everything is written; new or empty (default: .demo/<UTC time>)"
    )
    options = parser.parse_args(arguments)
    console = Console() if sys.stdout.isatty() else Console(width=170)
    # A shell that starts a program in the background has it ignore SIGINT; we want to be interruptible.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, _exit_on_signal)
    pays = False
    try:
        folder = make_folder(options.folder)
        gateway = gateway_of(os.environ)
        if gateway is not None and agreed(gateway, console, input, terminal=sys.stdin.isatty()):
            pays = True
            succeeded = run_real(folder, console, gateway)
        else:
            succeeded = run_demo(folder, console)
    except KeyboardInterrupt:
        # What was paid for runs at the gateway; the night itself has said how to find it.
        console.print(f"Interrupted: nothing is left running{' on this machine' if pays else ''}.")
        return 128 + signal.SIGINT
    except (DemoError, LocalAirflowError) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0 if succeeded else 1


def _exit_on_signal(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


def make_folder(asked: Path | None) -> Path:
    """Make the folder of a run: the asked one, which must be new or empty, or one named by the time."""
    if asked is not None:
        asked.mkdir(parents=True, exist_ok=True)
        if any(asked.iterdir()):
            raise DemoError(f"{asked} is not empty: choose a new folder")
        return asked.resolve()
    RUNS.mkdir(exist_ok=True)
    name = datetime.now(timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    folder = RUNS / name
    folder.mkdir()
    latest = RUNS / "latest"
    latest.unlink(missing_ok=True)
    latest.symlink_to(name)
    return folder


def run_demo(
    folder: Path,
    console: Console,
    *,
    prompts: Path = PROMPTS,
    emulator_options: Sequence[str] = EMULATOR_OPTIONS,
) -> bool:
    """Run the nightly DAG once over a prompts file and report; say whether all of it succeeded."""
    started = time.monotonic()
    media = folder / "media"
    media.mkdir()
    # A copy: what ran stays with its results, and other examples are not parsed.
    (folder / "dags").mkdir()
    shutil.copy(DAG_FILE, folder / "dags")
    keys = read_keys(prompts)

    console.print(f"Everything goes to {folder}", highlight=False, soft_wrap=True)
    with Processes() as processes:
        emulator = start_emulator(processes, folder, emulator_options)
        console.print(f"The emulator listens at {emulator.url}; starting Airflow …", highlight=False)
        airflow = LocalAirflow(
            folder / "airflow",
            dags=folder / "dags",
            environment={"AIRFLOW_CONN_FAL_DEFAULT": connection(emulator.url)},
        )
        with airflow:
            airflow.wait_for_dag(DAG_ID)
            up = time.monotonic()
            console.print(
                f"Airflow is up at {airflow.url} after {up - started:.0f} s; running {DAG_ID} over {len(keys)} prompts",
                highlight=False,
                soft_wrap=True,
            )
            run_id = airflow.trigger(
                DAG_ID, {"prompts": f"file://{prompts}", "destination": f"file://{media}"}
            )
            with Progress(console, lambda: emulator.account()["totals"]["jobs_by_state"]) as progress:
                run_state = airflow.wait_for_run(DAG_ID, run_id, RUN_SECONDS, on_poll=progress)
            ran = time.monotonic()
            failed_logs = logs_of_failed_tasks(airflow, run_id)
        posts = emulator.account()["totals"]["posts_accepted"]

    # The DAG makes a folder for each night; this one had a single night.
    manifest = next(media.rglob("manifest.jsonl"), None)
    rows = [] if manifest is None else read_account(manifest)
    if manifest is not None:
        console.print(table_of(rows))
        console.print(summary_of(manifest.with_name("manifest.summary.json")))
        sheet = folder / "contact-sheet.png"
        draw_contact_sheet(rows, title_of(rows), sheet)
        console.print(f"Contact sheet: {sheet}", highlight=False, soft_wrap=True)
        console.print(f"Manifest:      {manifest}", highlight=False, soft_wrap=True)
    console.print(f"The gateway accepted {posts} submits for {len(keys)} prompts.", highlight=False)
    problems = what_is_wrong(keys, rows, posts, run_state)
    if problems:
        console.print("Not everything succeeded:", style="bold red")
        for line in [*problems, *failed_logs, f"all logs: {folder / 'airflow' / 'logs'}"]:
            console.print(f"  {line}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"This took {time.monotonic() - started:.0f} s: {up - started:.0f} s to start, {ran - up:.0f} s to run.",
        highlight=False,
    )
    return not problems


def start_emulator(processes: Processes, folder: Path, options: Sequence[str]) -> Emulator:
    """Start an emulator on a free port and wait until it says where."""
    address = folder / "emulator.address"
    child = processes.start(
        "emulator",
        [
            sys.executable,
            "-m",
            "airflow_provider_uniapi_fal.emulator",
            "--port=0",
            f"--key={KEY}",
            f"--address-file={address}",
            *options,
        ],
        environment=clean_environment(os.environ),
        folder=folder,
        log=folder / "emulator.log",
    )
    deadline = time.monotonic() + EMULATOR_START_SECONDS
    while not (address.exists() and address.read_text().endswith("\n")):
        if child.ended or time.monotonic() > deadline:
            raise DemoError(f"the emulator did not start; {child.log} ends with:\n{child.tail()}")
        time.sleep(0.05)
    return Emulator(address.read_text().strip())


def connection(url: str) -> str:
    """Write the connection to an emulator as Airflow reads it from an environment variable."""
    return json.dumps(
        {"conn_type": "uniapi_fal", "host": url, "password": KEY, "extra": {"media_hosts": ["127.0.0.1"]}}
    )


def logs_of_failed_tasks(airflow: LocalAirflow, run_id: str) -> list[str]:
    """Name each failed task with the file of its last try's log."""
    found = []
    for task in airflow.task_instances(DAG_ID, run_id):
        if task.state != "failed":
            continue
        parts = [f"dag_id={DAG_ID}", f"run_id={run_id}", f"task_id={task.task_id}"]
        parts += [f"map_index={task.map_index}"] if task.map_index >= 0 else []
        log = airflow.folder.joinpath("logs", *parts, f"attempt={task.try_number}.log")
        found.append(f"task {task.task_id}[{task.map_index}] failed: {log}")
    return found


def table_of(rows: Sequence[Row]) -> Table:
    """Lay out what became of each prompt."""
    table = Table(title="What became of each prompt", title_justify="left")
    for name in ("prompt", "model", "outcome"):
        table.add_column(name, overflow="fold")
    for name in ("queued", "running"):
        table.add_column(name, justify="right")
    table.add_column("file", overflow="fold")
    for name in ("pixels", "size"):
        table.add_column(name, justify="right")
    for row in rows:
        prompt = row.prompt if len(row.prompt) <= 40 else row.prompt[:39] + "…"
        table.add_row(
            Text(prompt),
            row.model,
            Text(row.outcome, style="green" if row.outcome == SUCCEEDED else "red"),
            _seconds(row.seconds_queued),
            _seconds(row.seconds_running),
            "\n".join(file.path.name for file in row.files) or "-",
            "\n".join(map(_pixels, row.files)) or "-",
            "\n".join(in_units(file.size) for file in row.files) or "-",
        )
    return table


def summary_of(path: Path) -> Table:
    """Lay out the manifest's summary: the counts, which add up to what was asked for, and the totals."""
    summary = json.loads(path.read_text(encoding="utf-8"))
    table = Table(title="The manifest's summary", title_justify="left", show_header=False)
    for name, count in summary["counts"].items():
        if count:
            table.add_row(name, str(count))
    for name in ("posts", "files"):
        table.add_row(name, str(summary[name]))
    table.add_row("bytes", in_units(summary["bytes"]))
    table.add_row("seconds queued", f"{summary['seconds_queued']:.1f}")
    table.add_row("seconds running", f"{summary['seconds_running']:.1f}")
    return table


def title_of(rows: Sequence[Row]) -> str:
    """Say in a line what the contact sheet shows."""
    files = sum(len(row.files) for row in rows)
    succeeded = sum(row.outcome == SUCCEEDED for row in rows)
    return f"Nightly media · {succeeded} of {len(rows)} prompts succeeded · {files} files"


def _pixels(file: MediaFile) -> str:
    try:
        picture = picture_of(file)
    except BrokenMedia:
        return "broken"
    return f"{picture.width} × {picture.height}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"


if __name__ == "__main__":
    sys.exit(main())
