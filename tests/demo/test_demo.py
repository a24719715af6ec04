"""The demo itself, with a real Airflow: what it says when something fails, and what Ctrl-C leaves."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from PIL import Image
from rich.console import Console

from demo import __main__ as demo

pytestmark = pytest.mark.system


def processes_below(folder: Path) -> list[psutil.Process]:
    """List the processes that work in a folder or below it."""
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()).is_relative_to(folder):
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def test_a_refused_prompt_fails_the_demo_and_the_others_are_there_all_the_same(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    size = {"width": 320, "height": 208}
    rows = [
        {"key": "fox", "model": "flux/schnell", "arguments": {"prompt": "A fox", "image_size": size}},
        {"key": "storm", "model": "flux/dev", "arguments": {"prompt": "A forbidden storm"}},
    ]
    prompts.write_text("\n".join(map(json.dumps, rows)))
    folder = tmp_path / "run"
    folder.mkdir()
    output = io.StringIO()
    succeeded = demo.run_demo(
        folder,
        Console(file=output, width=170),
        prompts=prompts,
        emulator_options=["--run-seconds=0.5", "--fault=job match=storm failure=refused"],
    )
    text = output.getvalue()

    assert not succeeded, text
    (picture,) = folder.glob("media/**/fox*.jpg")
    with Image.open(picture) as image:
        assert image.size == (320, 208)
    with Image.open(folder / "contact-sheet.png") as sheet:
        assert sheet.format == "PNG"
    assert "The gateway accepted 2 submits for 2 prompts." in text
    assert "storm: refused" in text
    assert "fox: " not in text
    (log,) = [Path(line.rpartition(": ")[2]) for line in text.splitlines() if "failed: /" in line]
    assert log.is_file()
    assert processes_below(folder) == []


@pytest.mark.parametrize("moment", ["starting Airflow", "media "])
def test_ctrl_c_leaves_nothing_running(moment: str, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    log = tmp_path / "output.log"
    with log.open("wb") as output:
        # A session of its own stands for a terminal: Ctrl-C reaches the whole group.
        command = subprocess.Popen(
            [sys.executable, "-m", "demo", "--folder", str(folder)],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=demo.PROJECT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 100
        while moment not in (text := log.read_text()):
            assert command.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.05)
        assert processes_below(folder) != []
        os.killpg(command.pid, signal.SIGINT)
        assert command.wait(20) == 128 + signal.SIGINT
    finally:
        command.kill()
        command.wait()
    assert processes_below(folder) == []
    assert log.read_text().splitlines()[-1] == "Interrupted: nothing is left running."
