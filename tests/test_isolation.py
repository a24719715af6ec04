"""What every other test relies on: an Airflow home of the session's own, and no way off this machine."""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import requests

PROJECT = Path(__file__).resolve().parent.parent
ELSEWHERE = "192.0.2.1"  # reserved for documentation: nobody has this address


def run_pytest(folder: Path, test: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run one test in a session of its own, under the rules of this one."""
    (folder / "test_inner.py").write_text(dedent(test), encoding="utf-8")
    pytest_here = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "tests.conftest",
        "-c",
        str(PROJECT / "pyproject.toml"),
    ]
    return subprocess.run(
        [*pytest_here, "--rootdir", str(folder), str(folder)],
        env={**os.environ, **environment},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("name", ["example.com", ELSEWHERE, "localhost.example.com", "127.0.0.1.example.com"])
def test_other_machines_are_not_looked_up(name: str, stays_on_loopback: list[str]) -> None:
    with pytest.raises(Exception, match="tests stay on loopback"):
        socket.getaddrinfo(name, 443)
    assert stays_on_loopback == [f"socket.getaddrinfo to {name!r}"]
    stays_on_loopback.clear()


def test_other_machines_are_not_called(stays_on_loopback: list[str]) -> None:
    async def call() -> None:
        await asyncio.open_connection(ELSEWHERE, 443)

    with pytest.raises(Exception, match="tests stay on loopback"):
        requests.get(f"http://{ELSEWHERE}/", timeout=1)
    with pytest.raises(Exception, match="tests stay on loopback"):
        asyncio.run(call())
    with (
        pytest.raises(Exception, match="tests stay on loopback"),
        socket.socket(type=socket.SOCK_DGRAM) as endpoint,
    ):
        endpoint.sendto(b"", (ELSEWHERE, 53))
    stays_on_loopback.clear()


@pytest.mark.parametrize("name", ["127.0.0.1", "127.8.8.8", "localhost", "::1", None])
def test_this_machine_can_be_looked_up(name: str | None) -> None:
    assert socket.getaddrinfo(name, 443, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICSERV)


def test_sockets_of_this_machine_can_be_called(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as caller:
        listener.bind(str(tmp_path / "socket"))
        listener.listen()
        caller.connect(str(tmp_path / "socket"))


def test_a_test_that_swallows_the_refusal_fails_all_the_same(tmp_path: Path) -> None:
    test = """
        import socket
        def test_swallows():
            try:
                socket.create_connection(("192.0.2.1", 443))
            except Exception:
                pass
    """
    done = run_pytest(tmp_path, test)
    assert done.returncode == 1
    assert "but this one tried: socket.getaddrinfo to '192.0.2.1'" in done.stdout


def test_nothing_of_the_users_environment_reaches_a_test(tmp_path: Path) -> None:
    test = """
        import os
        def test_environment():
            kept = {name for name in os.environ if name.startswith("AIRFLOW")}
            assert kept == {"AIRFLOW_HOME", "AIRFLOW__CORE__DAGS_FOLDER", "AIRFLOW__CORE__LOAD_EXAMPLES"}
            assert os.environ["AIRFLOW_HOME"] != "/mine"
            assert not {"https_proxy", "NO_PROXY", "FAL_KEY", "UNIAPI_KEY"} & os.environ.keys()
            from airflow.configuration import conf
            assert conf.get("core", "executor") == "LocalExecutor"
            assert conf.get("core", "dags_folder").startswith(os.environ["AIRFLOW_HOME"])
    """
    mine = {
        "AIRFLOW_HOME": "/mine",
        "AIRFLOW__CORE__EXECUTOR": "CeleryExecutor",
        "AIRFLOW_CONN_FAL_DEFAULT": "http://mine",
        "https_proxy": "http://mine",
        "NO_PROXY": "mine",
        "FAL_KEY": "mine",
        "UNIAPI_KEY": "mine",
    }
    done = run_pytest(tmp_path, test, **mine)
    assert done.returncode == 0, done.stdout


def test_a_session_removes_its_airflow_home(tmp_path: Path) -> None:
    test = """
        import os, pathlib
        def test_home():
            assert pathlib.Path(os.environ["AIRFLOW_HOME"]).is_dir()
    """
    folder = tmp_path / "temporary"
    folder.mkdir()
    assert run_pytest(tmp_path, test, TMPDIR=str(folder)).returncode == 0
    assert list(folder.glob("uniapi-fal-tests-*")) == []
