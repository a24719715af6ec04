"""
The release on each Python that is here, with the lowest and the highest versions of what it depends on.

``make pythons``: minutes, and access to packages. A Python that is not here is skipped by name; that its
dependencies resolve is tested all the same.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from airflow_provider_uniapi_fal import __version__
from airflow_provider_uniapi_fal.emulator.running import running_emulator
from tests.packaging.conftest import PROJECT, Distributions, captured

if TYPE_CHECKING:
    from collections.abc import Iterator

    from airflow_provider_uniapi_fal.emulator.running import Emulator

pytestmark = [pytest.mark.packaging, pytest.mark.long, pytest.mark.timeout(1200)]

PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")
RESOLUTIONS = ("lowest-direct", "highest")
EXTRAS = "emulator,media,parquet"


def interpreter(version: str) -> Path | None:
    """Return a Python of this version: on the PATH, or one that pyenv keeps."""
    kept = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"), "versions")
    on_path = shutil.which(f"python{version}")
    candidates = [Path(on_path)] if on_path else []
    for candidate in [*candidates, *sorted(kept.glob(f"{version}.*/bin/python"), reverse=True)]:
        asked = [str(candidate), "-c", "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"]
        done = subprocess.run(asked, capture_output=True, text=True, check=False)
        # A name on the PATH may be a wrapper without a Python behind it.
        if done.stdout.strip() == version:
            return candidate
    return None


def resolved(version: str, resolution: str, folder: Path, environment: dict[str, str]) -> Path:
    """Return a file with one exact version of every dependency."""
    target = folder / f"{version}-{resolution}.txt"
    command = [sys.executable, "-m", "uv", "pip", "compile", str(PROJECT / "pyproject.toml"), "--quiet"]
    command += ["--python-version", version, "--resolution", resolution, "--output-file", str(target)]
    command += [f"--extra={extra}" for extra in EXTRAS.split(",")]
    done = captured([*command, "--no-header", "--no-annotate"], folder, environment)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture(scope="module")
def gateway() -> Iterator[Emulator]:
    with running_emulator(queue_seconds=0.0, run_seconds=0.0) as emulator:
        yield emulator


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("version", PYTHONS)
def test_the_dependencies_resolve(
    version: str, resolution: str, tmp_path: Path, environment_as_found: dict[str, str]
) -> None:
    text = resolved(version, resolution, tmp_path, environment_as_found).read_text()
    assert "\napache-airflow==3." in text


@pytest.mark.parametrize("resolution", RESOLUTIONS)
@pytest.mark.parametrize("version", PYTHONS)
def test_the_release_does_a_paid_job_from_an_environment_of_its_own(
    version: str,
    resolution: str,
    distributions: Distributions,
    gateway: Emulator,
    tmp_path: Path,
    environment_as_found: dict[str, str],
) -> None:
    python = interpreter(version)
    if python is None:
        pytest.skip(f"there is no Python {version} with venv on this machine")
    gateway.reset()
    pins = resolved(version, resolution, tmp_path, environment_as_found)
    place = tmp_path / "venv"
    made = captured([str(python), "-m", "venv", "--without-pip", str(place)], tmp_path, environment_as_found)
    assert made.returncode == 0, made.stderr
    # The wheel with the lowest versions, what the sdist builds with the highest: each kind on each Python.
    release = distributions.wheel if resolution == "lowest-direct" else distributions.sdist
    uv = [sys.executable, "-m", "uv", "pip"]
    target = ["--python", str(place / "bin" / "python")]
    install = [*uv, "install", "--quiet", *target, "--constraint", str(pins)]
    done = captured([*install, f"{release}[{EXTRAS}]"], tmp_path, environment_as_found)
    assert done.returncode == 0, done.stderr
    checked = captured([*uv, "check", *target], tmp_path, environment_as_found)
    assert checked.returncode == 0, checked.stderr

    connection = {
        "conn_type": "uniapi_fal",
        "host": gateway.url,
        "password": "any-key",
        "extra": {"media_hosts": ["127.0.0.1"]},
    }
    environment = {
        **{name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
        "AIRFLOW_HOME": str(tmp_path / "airflow"),
        "AIRFLOW_CONN_FAL_DEFAULT": json.dumps(connection),
    }

    def run(program: str, *arguments: str) -> str:
        ended = captured([str(place / "bin" / program), *arguments], tmp_path, environment)
        assert ended.returncode == 0, f"{program} {' '.join(arguments)}\n{ended.stdout}{ended.stderr}"
        return ended.stdout

    everything = (
        "import importlib, pkgutil, airflow_provider_uniapi_fal as p\n"
        "for m in pkgutil.walk_packages(p.__path__, p.__name__ + '.'):\n"
        "    if not m.name.endswith(('__main__', 'pytest_plugin')): importlib.import_module(m.name)\n"
        "print(p.__version__, p.__file__)"
    )
    # Airflow tells of other packages' warnings where it prints.
    told = run("python", "-W", "error::SyntaxWarning", "-c", everything)
    found, path = told.splitlines()[-1].split()
    assert found == __version__
    assert path.startswith(str(place))
    handle = run("airflow", "fal", "submit", "flux/dev", "-i", "prompt=a fox", "--output", "json")
    (tmp_path / "handle.json").write_text(handle)
    run("airflow", "fal", "wait", "@handle.json", "--quiet", "--output", "json")
    (landed,) = json.loads(run("airflow", "fal", "land", "@handle.json", "media", "--output", "json"))
    assert Path(landed["path"].removeprefix("file://")).stat().st_size == landed["bytes"]
    assert gateway.account()["totals"]["posts_received"] == 1
    shutil.rmtree(place)
