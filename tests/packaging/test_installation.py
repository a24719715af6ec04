"""The wheel, in an environment that holds it and what it asks for and nothing else."""

from __future__ import annotations

import json
from textwrap import dedent
from typing import TYPE_CHECKING

import pytest

from airflow_provider_uniapi_fal import __version__

if TYPE_CHECKING:
    from tests.packaging.conftest import Distributions, Installation

pytestmark = [pytest.mark.packaging, pytest.mark.timeout(600)]

PROVIDER = "airflow-provider-uniapi-fal"


def test_the_installed_package_is_the_wheels_and_typed(installation: Installation) -> None:
    script = "import airflow_provider_uniapi_fal as p; print(p.__version__); print(p.__file__)"
    version, path = installation.output("python", "-c", script).split()
    assert version == __version__
    assert path.startswith(str(installation.folder))
    assert (installation.folder / path).with_name("py.typed").is_file()


def test_asking_for_the_provider_info_imports_nothing_heavy(installation: Installation) -> None:
    script = dedent("""
        import json, sys
        from importlib.metadata import entry_points
        (entry,) = [e for e in entry_points(group="apache_airflow_provider") if e.dist.name == sys.argv[1]]
        info = entry.load()()
        print(json.dumps([info, sorted({name.partition(".")[0] for name in sys.modules})]))
    """)
    info, modules = json.loads(installation.output("python", "-c", script, PROVIDER))
    assert info["package-name"] == PROVIDER
    assert info["versions"][0] == __version__
    assert not {"airflow", "aiohttp", "pendulum", "requests", "PIL", "av"} & set(modules)


def test_airflow_lists_the_provider(installation: Installation) -> None:
    rows = [row for row in installation.airflow_table("providers", "list") if row["package_name"] == PROVIDER]
    assert [row["version"] for row in rows] == [__version__]


def test_airflow_lists_the_hook_and_can_import_it(installation: Installation) -> None:
    rows = [
        row for row in installation.airflow_table("providers", "hooks") if row["package_name"] == PROVIDER
    ]
    shown = [(row["connection_type"], row["class"], row["conn_id_attribute_name"]) for row in rows]
    assert shown == [("uniapi_fal", "airflow_provider_uniapi_fal.hooks.fal.FalHook", "fal_conn_id")]


def test_airflow_lists_the_trigger(installation: Installation) -> None:
    rows = [
        row for row in installation.airflow_table("providers", "triggers") if row["package_name"] == PROVIDER
    ]
    assert "airflow_provider_uniapi_fal.triggers.fal" in [row["class"] for row in rows]


def test_every_module_of_the_provider_imports_without_the_extras(installation: Installation) -> None:
    script = dedent("""
        import importlib, pkgutil, airflow_provider_uniapi_fal as provider
        for module in pkgutil.walk_packages(provider.__path__, provider.__name__ + "."):
            if ".emulator" not in module.name:
                importlib.import_module(module.name)
                print(module.name)
    """)
    assert "airflow_provider_uniapi_fal.triggers.fal" in installation.output("python", "-c", script).split()


def test_the_emulator_runs_or_names_the_extra_it_needs(installation: Installation) -> None:
    done = installation.run("python", "-m", "airflow_provider_uniapi_fal.emulator", "--help")
    said = done.stdout + done.stderr
    assert "Traceback" not in said
    assert "usage:" in said if done.returncode == 0 else f"{PROVIDER}[emulator]" in said


def test_an_older_airflow_is_refused_by_the_installer(
    installation: Installation, distributions: Distributions
) -> None:
    done = installation.pip_install("--dry-run", str(distributions.wheel), "apache-airflow==3.2.2")
    assert done.returncode != 0
    assert "ResolutionImpossible" in done.stderr
    said = " ".join((done.stdout + done.stderr).split())
    assert "The user requested apache-airflow==3.2.2" in said
    assert f"{PROVIDER} {__version__} depends on apache-airflow<4 and >=3.3" in said
