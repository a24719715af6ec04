from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING

import psutil
import pytest
import requests

from airflow_provider_uniapi_fal.emulator.running import EmulatorProcess, running_emulator
from tests.emulator.client import KEY, Client

if TYPE_CHECKING:
    from pathlib import Path

    from tests.emulator.conftest import Start

COMMAND = [sys.executable, "-m", "airflow_provider_uniapi_fal.emulator"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
        env={**os.environ, **environment},
    )


def test_two_emulators_in_one_process_know_nothing_of_each_other(start: Start) -> None:
    (one, client), (other, _) = start(), start()
    client.submit()
    assert one.account()["totals"]["posts_accepted"] == 1
    assert other.account()["totals"]["posts_accepted"] == 0


def test_a_stopped_emulator_leaves_no_thread_and_no_open_port() -> None:
    before = set(threading.enumerate())

    def wait_in_vain() -> None:
        with pytest.raises(requests.RequestException):
            client.status(request_id)

    with running_emulator(
        queue_seconds=0.0, run_seconds=0.0, faults=["slow on=status seconds=60"]
    ) as emulator:
        client = Client(emulator.url)
        request_id = client.submit()
        client.result(request_id)
        hanging = threading.Thread(target=wait_in_vain)
        hanging.start()
        deadline = time.monotonic() + 20
        while not any(each["operation"] == "status" for each in emulator.requests()):
            assert time.monotonic() < deadline
        port = int(emulator.url.rpartition(":")[2])
    hanging.join(10)
    client.close()
    assert set(threading.enumerate()) == before
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)


def test_a_wrong_setting_is_told_before_anything_starts() -> None:
    with pytest.raises(ValueError, match="urls is one of"), running_emulator(urls="odd"):
        pass
    with pytest.raises(ValueError, match="urls is one of"):
        EmulatorProcess(urls="odd")


def test_a_port_in_use_is_an_error_not_a_hang(start: Start) -> None:
    emulator, _ = start()
    port = int(emulator.url.rpartition(":")[2])
    with pytest.raises(OSError, match="address already in use"), running_emulator(port=port):
        pass
    ended = run("--port", str(port))
    assert ended.returncode == 2
    assert "Cannot serve on" in ended.stderr
    assert "Traceback" not in ended.stderr


def test_a_process_of_its_own_does_the_same_and_ends_completely() -> None:
    rules = ["lost-reply match=storm times=1", {"fault": "job", "match": "cat", "failure": "refused"}]
    with EmulatorProcess(queue_seconds=0.0, run_seconds=0.0, key=KEY, faults=rules) as emulator:
        client = Client(emulator.url)
        assert client.make("a cat").status_code == 422
        with pytest.raises(requests.ConnectionError):
            client.post("a storm")
        client.close()
        assert emulator.account()["totals"]["posts_accepted"] == 2
        assert psutil.pid_exists(emulator.pid)
    assert not psutil.pid_exists(emulator.pid)
    emulator.stop()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_and_quietly(tmp_path: Path, number: signal.Signals) -> None:
    address_file = tmp_path / "address"
    process = subprocess.Popen(
        [*COMMAND, "--address-file", str(address_file), "--queue-seconds=0", "--run-seconds=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = address_file.read_text().strip()
        assert line == f"The emulator listens on {url}\n"
        client = Client(url)
        assert client.make().status_code == 200
        process.send_signal(number)
        rest, errors = process.communicate(timeout=10)
        client.close()
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, rest, errors) == (0, "", "")
    assert list(tmp_path.iterdir()) == [address_file]


# It ends as the process does, by a signal.
IN_A_THREAD = """
import signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
from airflow_provider_uniapi_fal.emulator.running import running_emulator
with running_emulator(stream="silent", run_seconds=60.0, state=sys.argv[1]) as emulator:
    print(emulator.url, flush=True)
    signal.sigwait([signal.SIGTERM])
"""


@pytest.mark.parametrize(
    "command",
    [[*COMMAND, "--stream=silent", "--run-seconds=60", "--state"], [sys.executable, "-c", IN_A_THREAD]],
    ids=["process", "thread"],
)
def test_a_call_whose_client_has_gone_ends_with_the_emulator_quietly_and_is_in_its_state(
    tmp_path: Path, command: list[str]
) -> None:
    state = tmp_path / "state.jsonl"
    process = subprocess.Popen(
        [*command, str(state)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        client = Client(process.stdout.readline().split()[-1])
        stream = f"{client.url}/fal-ai/flux/requests/{client.submit()}/status/stream"
        with pytest.raises(requests.ConnectionError):
            requests.get(stream, headers={"Authorization": f"Key {KEY}"}, timeout=0.5)
        client.close()
        process.terminate()
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, errors) == (0, "")
    last = json.loads(state.read_text().splitlines()[-1])
    assert (last["event"], last["number"], last["status"]) == ("reply", 2, None)


def test_the_access_log_names_no_prompt_and_no_key(capfd: pytest.CaptureFixture[str]) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--verbose", "--queue-seconds=0", "--run-seconds=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        client = Client(process.stdout.readline().split()[-1])
        client.make("a secret fox")
        client.close()
        process.terminate()
        _, log = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    lines = log.splitlines()
    assert lines[0].startswith("POST /fal-ai/flux/dev 200 ")
    assert len(lines) == 3
    assert KEY not in log
    assert "secret" not in log


def test_help_explains_itself() -> None:
    ended = run("--help")
    assert ended.returncode == 0
    for word in ("--queue-seconds", "lost-reply", "examples:", "/_emulator/account", "refused"):
        assert word in ended.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--fault", "odd"], "There is no fault 'odd'"),
        (["--model-seconds", "video"], "--model-seconds is of the form"),
        (["--run-seconds", "-1"], "run_seconds is a number"),
        (["--urls", "odd"], "invalid choice"),
    ],
)
def test_a_wrong_option_is_told_in_one_line(arguments: list[str], says: str) -> None:
    ended = run(*arguments)
    assert ended.returncode == 2
    assert says in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(("module", "arguments"), [("PIL", []), ("av", []), ("cryptography", ["--tls"])])
def test_a_missing_library_names_the_extra_to_install(
    tmp_path: Path, module: str, arguments: list[str]
) -> None:
    # A package that cannot be imported stands before the real one.
    (tmp_path / module).mkdir()
    (tmp_path / module / "__init__.py").write_text(f"raise ModuleNotFoundError('gone', name={module!r})")
    ended = run(*arguments, PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert ended.returncode == 2
    assert "airflow-provider-uniapi-fal[emulator]" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert run("--help", PYTHONPATH=str(tmp_path)).returncode == 0


def test_it_needs_no_airflow_and_no_part_of_the_provider() -> None:
    code = (
        "import sys\n"
        "from airflow_provider_uniapi_fal.emulator.running import running_emulator\n"
        "with running_emulator():\n"
        "    pass\n"
        "own = 'airflow_provider_uniapi_fal'\n"
        "loaded = [name for name in sys.modules if name.split('.')[0] == 'airflow' or name.startswith(own)]\n"
        "print([name for name in loaded if name != own and not name.startswith(own + '.emulator')])\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert ended.stdout.strip() == "[]"
