from __future__ import annotations

import shutil
import socket
import ssl
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from airflow_provider_uniapi_fal.emulator.certificates import issue
from airflow_provider_uniapi_fal.emulator.running import EmulatorProcess, running_emulator
from tests.emulator.client import Client

if TYPE_CHECKING:
    from tests.emulator.conftest import Start


def test_https_is_served_by_name_and_by_number_and_replies_say_so(start: Start) -> None:
    emulator, client = start(tls=True, urls="gateway")
    assert emulator.url.startswith("https://127.0.0.1:")
    url = client.make().json()["images"][0]["url"]
    assert url.startswith(emulator.url)
    by_name = url.replace("127.0.0.1", "localhost")
    assert client.call("GET", by_name, key=None).status_code == 200
    assert client.post().json()["status_url"].startswith(emulator.url)
    assert emulator.account()["totals"]["posts_accepted"] == 2


def test_a_client_that_does_not_trust_the_authority_is_kept_away(start: Start) -> None:
    emulator, _ = start(tls=True)
    stranger = Client(emulator.url)
    with pytest.raises(requests.exceptions.SSLError, match="CERTIFICATE_VERIFY_FAILED"):
        stranger.post()
    stranger.close()
    assert emulator.account()["totals"]["posts_received"] == 0


def test_the_authority_passes_strict_checks_and_its_key_is_kept_nowhere(tmp_path: Path) -> None:
    files = issue(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([files.ca_file, files.cert_file, files.key_file])
    assert stat.S_IMODE(files.key_file.stat().st_mode) & 0o077 == 0
    with running_emulator(tls_cert=str(files.cert_file), tls_key=str(files.key_file)) as emulator:
        context = ssl.create_default_context(cafile=files.ca_file)
        context.verify_flags |= ssl.VERIFY_X509_STRICT
        port = int(emulator.url.rpartition(":")[2])
        with (
            socket.create_connection(("127.0.0.1", port)) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as wrapped,
        ):
            assert wrapped.version() == "TLSv1.3"


def test_a_certificate_of_ones_own_is_used_and_trusted_by_the_emulator(tmp_path: Path) -> None:
    files = issue(tmp_path)
    own = {"tls_cert": str(files.cert_file), "tls_key": str(files.key_file)}
    with running_emulator(**own) as emulator:
        client = Client(emulator.url, ca_file=str(files.ca_file))
        assert client.post().status_code == 200
        client.close()
        assert emulator.ca_file == str(files.cert_file)
        assert emulator.account()["totals"]["posts_accepted"] == 1


def test_the_authority_is_written_where_asked_and_else_gone_at_the_end(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    with running_emulator(tls=True, ca_file=str(file)) as emulator:
        assert emulator.ca_file == str(file)
        assert file.read_text().startswith("-----BEGIN CERTIFICATE-----")
    with running_emulator(tls=True) as emulator:
        assert emulator.ca_file is not None
        made = Path(emulator.ca_file)
        assert made.exists()
    assert not made.exists()


@pytest.mark.parametrize("named", [False, True])
def test_a_process_serves_https_with_one_authority_over_its_restarts(tmp_path: Path, named: bool) -> None:
    settings: dict[str, Any] = {"ca_file": str(tmp_path / "ca.pem")} if named else {}
    with EmulatorProcess(tls=True, **settings) as emulator:
        assert emulator.ca_file is not None
        client = Client(emulator.url, ca_file=emulator.ca_file)
        client.submit()
        emulator.restart()
        client.submit()
        client.close()
        assert emulator.account()["totals"]["posts_accepted"] == 2


def test_the_command_says_what_to_trust(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    command = [sys.executable, "-m", "airflow_provider_uniapi_fal.emulator", "--tls", "--ca-file", str(file)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        url = process.stdout.readline().split()[-1]
        assert process.stdout.readline() == f"Its clients must trust {file}\n"
        client = Client(url, ca_file=str(file))
        client.submit()
        client.close()
        process.terminate()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.communicate()


def test_a_wrong_certificate_is_told_in_one_line(tmp_path: Path) -> None:
    files = issue(tmp_path)
    odd = tmp_path / "odd.pem"
    shutil.copyfile(files.ca_file, odd)
    for key, says in ((odd, "is of no use"), (tmp_path / "none.pem", "No such file")):
        with (
            pytest.raises(OSError, match=says),
            running_emulator(tls_cert=str(files.cert_file), tls_key=str(key)),
        ):
            pass
