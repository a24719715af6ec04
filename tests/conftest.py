"""Every test runs in an Airflow home of its own, blind to the user's environment, and stays on loopback."""

from __future__ import annotations

import ipaddress
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Protocol

    class Figures(Protocol):
        """Keeps what a test has counted; a later call for the same name takes the place of an earlier one."""

        def __call__(self, name: str, found: Mapping[str, Any]) -> None: ...


# Airflow reads its configuration when it is first imported, so all of this happens while pytest loads this
# file, before any test module: no plugin, fixture or test may be first.
ENVIRONMENT_AS_FOUND = dict(os.environ)
FOREIGN_SETTING = re.compile(r"AIRFLOW_|UNIAPI_|FAL_|\w+_PROXY$|(REQUESTS|CURL)_CA_BUNDLE$", re.IGNORECASE)
HOME = Path(tempfile.mkdtemp(prefix="uniapi-fal-tests-"))

for _name in [name for name in os.environ if FOREIGN_SETTING.match(name)]:
    del os.environ[_name]
(HOME / "dags").mkdir()
os.environ.update(
    AIRFLOW_HOME=str(HOME),
    AIRFLOW__CORE__DAGS_FOLDER=str(HOME / "dags"),
    AIRFLOW__CORE__LOAD_EXAMPLES="False",
    NETRC=os.devnull,  # requests would take a password for 127.0.0.1 from the user's own file
)

# Two cores shared with real schedulers make single examples slow now and then; pytest-timeout bounds the test.
hypothesis.settings.register_profile("shared-machine", deadline=None)
hypothesis.settings.load_profile("shared-machine")


def pytest_unconfigure() -> None:
    shutil.rmtree(HOME, ignore_errors=True)


# What a test has counted is worth reading when it passes, too.

FIGURES = pytest.StashKey[dict[str, "Mapping[str, Any]"]]()
FIGURES_FOLDER = Path(__file__).parents[1] / "build" / "figures"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--short-jobs-runs", type=int, default=2, metavar="N", help="runs of 20 short jobs each (default: 2)"
    )


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Keep figures: they are written to ``build/figures/<name>.json`` and end up in pytest's summary."""

    def keep(name: str, found: Mapping[str, Any]) -> None:
        request.config.stash.setdefault(FIGURES, {})[name] = found
        FIGURES_FOLDER.mkdir(parents=True, exist_ok=True)
        (FIGURES_FOLDER / f"{name}.json").write_text(json.dumps(found, indent=2) + "\n")

    return keep


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    for name, found in config.stash.get(FIGURES, {}).items():
        terminalreporter.section(f"{name}: build/figures/{name}.json")
        for what, figure in found.items():
            terminalreporter.write_line(
                f"{what}: {figure if isinstance(figure, str) else json.dumps(figure)}"
            )


class LeavesLoopback(Exception):
    """Raised inside the code under test at its attempt to reach another machine."""


_attempts: list[str] = []


def _is_this_machine(host: str | bytes | None) -> bool:
    name = host.decode("idna") if isinstance(host, bytes) else host or "localhost"
    try:
        address = ipaddress.ip_address(name)
    except ValueError:
        return name == "localhost" or name.endswith(".localhost") or name == socket.gethostname()
    return address.is_loopback or address.is_unspecified


def _refuse_other_machines(event: str, arguments: tuple[Any, ...]) -> None:
    """
    Watch Python's audit events, which also see connections made below ``socket.socket``.

    Raising stops the attempt. Code under test may swallow that, so the attempt is also written down for the
    fixture that fails the test.
    """
    host: str | bytes | None
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        endpoint, address = arguments
        if endpoint.family not in (socket.AF_INET, socket.AF_INET6) or address is None:
            return
        host = address[0]
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = arguments[0]
    else:
        return
    if not _is_this_machine(host):
        attempt = f"{event} to {host!r}"
        _attempts.append(attempt)
        raise LeavesLoopback(f"tests stay on loopback: {attempt}")


sys.addaudithook(_refuse_other_machines)


@pytest.fixture(autouse=True)
def stays_on_loopback() -> Iterator[list[str]]:
    """Fail the test during which this process looked up or called another machine; yield the attempts so far."""
    _attempts.clear()
    yield _attempts
    assert not _attempts, f"tests stay on loopback, but this one tried: {', '.join(_attempts)}"


@pytest.fixture(scope="session")
def environment_as_found() -> dict[str, str]:
    """Return the user's own environment, for tests that run an installer as the user would."""
    return ENVIRONMENT_AS_FOUND


@pytest.fixture(scope="session")
def airflow_database() -> Path:
    """Migrate the session's metadata database, once, for the tests that need one; return Airflow's home."""
    subprocess.run([sys.executable, "-m", "airflow", "db", "migrate"], check=True, stdout=subprocess.DEVNULL)
    return HOME
