"""The demo that is left running: it says where it is, answers there, and Ctrl-C ends all of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import requests

from demo.__main__ import PROJECT
from tests.demo.test_demo import processes_below

pytestmark = [pytest.mark.system, pytest.mark.long, pytest.mark.timeout(300)]


def test_the_demo_stays_until_ctrl_c(tmp_path: Path) -> None:
    log = tmp_path / "output.log"
    with log.open("wb") as output:
        command = subprocess.Popen(
            [sys.executable, "-m", "demo.ui"],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=PROJECT,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 240
        while "The night has ended" not in (text := log.read_text()):
            assert command.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.2)
        assert "The night has ended: success." in text
        told = dict(re.findall(r"^(\w+): +(\S+)", text, re.MULTILINE))
        folder = Path(re.findall(r"Everything goes to (\S+);", text)[0])
        session = requests.Session()
        session.trust_env = False
        login = {"username": told["User"], "password": told["Password"]}
        token = session.post(f"{told['Airflow']}/auth/token", json=login, timeout=30).json()["access_token"]
        session.cookies.set("_token", token)
        page = session.get(told["Media"], timeout=60)
        assert page.status_code == 200
        assert "nightly" in page.text
        os.killpg(command.pid, signal.SIGINT)
        assert command.wait(30) == 0
    finally:
        command.kill()
        command.wait()
    assert processes_below(folder) == []
    assert log.read_text().splitlines()[-1] == "Ended: nothing is left running."
