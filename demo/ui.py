"""
The demo, left running to be looked at: `python -m demo.ui`.

Starts the emulator and an Airflow, runs the nightly DAG, and says where to look and as whom to log in. Ctrl-C ends
all of it.
"""

from __future__ import annotations

import shutil
import signal
import sys
import time
from pathlib import Path
from urllib.parse import quote

from rich.console import Console

from demo.__main__ import (
    DAG_FILE,
    DAG_ID,
    EMULATOR_OPTIONS,
    PROMPTS,
    DemoError,
    connection,
    make_folder,
    start_emulator,
)
from demo.local_airflow import COMPONENTS, LocalAirflow, LocalAirflowError
from demo.processes import Processes

_LOOK_EVERY_SECONDS = 1.0


def main() -> int:
    """Start everything, say where it is, and wait for Ctrl-C."""
    console = Console() if sys.stdout.isatty() else Console(width=170)
    # A shell that starts a program in the background has it ignore SIGINT; we want to be interruptible.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        leave_running(make_folder(None), console)
    except KeyboardInterrupt:
        console.print("Ended: nothing is left running.")
        return 0
    except (DemoError, LocalAirflowError) as error:
        console.print(str(error), style="red", markup=False, highlight=False, soft_wrap=True)
        return 1
    return 0


def leave_running(folder: Path, console: Console) -> None:
    """Run the demo in a folder until something ends it."""
    media = folder / "media"
    media.mkdir()
    (folder / "dags").mkdir()
    shutil.copy(DAG_FILE, folder / "dags")
    console.print(f"Everything goes to {folder}; starting …", highlight=False, soft_wrap=True)
    with Processes() as processes:
        emulator = start_emulator(processes, folder, EMULATOR_OPTIONS)
        airflow = LocalAirflow(
            folder / "airflow",
            dags=folder / "dags",
            environment={"AIRFLOW_CONN_FAL_DEFAULT": connection(emulator.url)},
            config={
                # So that the test button of the connection form is there.
                "core": {"test_connection": "Enabled"},
                "uniapi_fal": {"media_roots": media.as_uri(), "thumbnail_folder": folder / "thumbnails"},
            },
        )
        with airflow:
            airflow.wait_for_dag(DAG_ID)
            run_id = airflow.trigger(DAG_ID, {"prompts": PROMPTS.as_uri(), "destination": media.as_uri()})
            run = f"/dags/{DAG_ID}/runs/{quote(run_id, safe='')}"
            console.print()
            for name, value in (
                ("Airflow", airflow.url),
                ("User", airflow.user),
                ("Password", airflow.password),
                ("Tonight", f"{airflow.url}{run}"),
                ("Media", f"{airflow.url}/fal-media{run}"),
                ("Gateway", f"{emulator.url} (the emulator; its key is in the connection fal_default)"),
            ):
                console.print(f"{name + ':':<10}{value}", highlight=False, markup=False, soft_wrap=True)
            console.print("\nCtrl-C ends all of it.", highlight=False)
            _until_interrupted(airflow, run_id, console)


def _until_interrupted(airflow: LocalAirflow, run_id: str, console: Console) -> None:
    said = False
    while True:
        for component in COMPONENTS:
            child = airflow.children[component]
            if child.ended:
                raise DemoError(f"the {component} has died; {child.log} ends with:\n{child.tail()}")
        state = airflow.run_state(DAG_ID, run_id)
        if state in ("success", "failed") and not said:
            console.print(f"The night has ended: {state}.", highlight=False)
            said = True
        time.sleep(_LOOK_EVERY_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
