"""The distributions as a release would build them, and an environment that holds the wheel and nothing of ours."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Distributions:
    """One build of the project."""

    sdist: Path
    wheel: Path


@dataclass(frozen=True)
class Installation:
    """An environment of its own, away from the source tree."""

    folder: Path
    installers_environment: dict[str, str]

    @property
    def programs(self) -> Path:
        return self.folder / "venv" / "bin"

    def pip_install(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Install with the pip that runs here and the access to packages that its user has."""
        pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
        pip += ["--python", str(self.programs / "python"), "install", "--progress-bar", "off"]
        return captured([*pip, *arguments], self.folder, self.installers_environment)

    def run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        ours = {"PYTHONPATH", "VIRTUAL_ENV"}
        environment = {name: value for name, value in os.environ.items() if name not in ours}
        environment["AIRFLOW_HOME"] = str(self.folder / "airflow")
        return captured([str(self.programs / program), *arguments], self.folder, environment)

    def output(self, program: str, *arguments: str) -> str:
        done = self.run(program, *arguments)
        assert done.returncode == 0, f"{program} {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def airflow_table(self, *arguments: str) -> list[dict[str, Any]]:
        """Return what an ``airflow`` listing prints, one mapping a row."""
        table: list[dict[str, Any]] = json.loads(self.output("airflow", *arguments, "--output", "json"))
        return table


def captured(command: list[str], cwd: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)


@pytest.fixture(scope="session")
def distributions(
    tmp_path_factory: pytest.TempPathFactory, environment_as_found: dict[str, str]
) -> Distributions:
    """Build the sdist, and the wheel from the sdist, with the pinned build backend."""
    target = tmp_path_factory.mktemp("distributions")
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(target), str(PROJECT)]
    done = captured(build, target, environment_as_found)
    assert done.returncode == 0, done.stdout + done.stderr
    (sdist,) = target.glob("*.tar.gz")
    (wheel,) = target.glob("*.whl")
    return Distributions(sdist, wheel)


@pytest.fixture(scope="session")
def installation(
    distributions: Distributions,
    tmp_path_factory: pytest.TempPathFactory,
    environment_as_found: dict[str, str],
) -> Installation:
    """Install the wheel into an empty environment, as a user would who has nothing else of the project."""
    installation = Installation(tmp_path_factory.mktemp("installation"), environment_as_found)
    venv.create(installation.programs.parent, symlinks=True)
    done = installation.pip_install(
        "--constraint", str(PROJECT / "constraints.txt"), str(distributions.wheel)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return installation
