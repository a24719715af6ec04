"""The list of public names is complete, true, and the same as the reference."""

from __future__ import annotations

import inspect
import pkgutil
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest

import airflow_provider_uniapi_fal as package
from docs import parameters

DOCS = Path(__file__).resolve().parents[2] / "docs"

ROWS = re.findall(r"^\| `([\w.]+)` \| (.+) \|$", (DOCS / "public_names.md").read_text(), re.MULTILINE)
PUBLIC = {(module, name) for module, names in ROWS for name in re.findall(r"`(\w+)`", names)}

#: Rooms whose classes users write into their DAGs, if their names begin as the provider's and the vendors' do.
DAG_ROOMS = ("operators", "sensors", "transfers", "exceptions", "retry_policy")
BEGINNINGS = ("Fal", "Kling", "Luma", "OpenAI")

#: What several public classes have in common, and what their docstrings refer to; nobody writes it into a DAG.
BASES = {
    "airflow_provider_uniapi_fal.operators.submitting.SubmittingOperator",
    "airflow_provider_uniapi_fal.operators.generating.GeneratingOperator",
    "airflow_provider_uniapi_fal.operators.kling.KlingOperator",
    "airflow_provider_uniapi_fal.triggers.deferring.DeferringOperator",
    "airflow_provider_uniapi_fal.mapping.CheckedWhenMapped",
    "airflow_provider_uniapi_fal.landing.names.Names",
}


def own_classes(module: ModuleType) -> set[str]:
    return {
        name
        for name, value in vars(module).items()
        if inspect.isclass(value)
        and value.__module__ == module.__name__
        and name.startswith(BEGINNINGS)
        and f"{module.__name__}.{name}" not in BASES
    }


@pytest.mark.parametrize(("module", "name"), sorted(PUBLIC))
def test_every_public_name_is_there_and_described(module: str, name: str) -> None:
    value = getattr(import_module(module), name)
    assert value.__module__ == module, "listed where it is not made"
    assert inspect.getdoc(value)


def test_every_class_for_dags_is_listed() -> None:
    found = set()
    for info in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if info.name.split(".")[1] in DAG_ROOMS:
            found |= {(info.name, name) for name in own_classes(import_module(info.name))}
    listed = {(module, name) for module, name in PUBLIC if module.split(".")[1] in DAG_ROOMS}
    assert found == listed


def test_the_reference_describes_the_public_names_and_no_others() -> None:
    text = "".join(page.read_text() for page in (DOCS / "reference").glob("*.md"))
    described = re.findall(r"auto(?:class|exception|function):: ([\w.]+)", text)
    assert sorted(described) == sorted({f"{module}.{name}" for module, name in PUBLIC} | BASES)


@pytest.mark.parametrize(("module", "name"), sorted(PUBLIC))
def test_all_that_a_public_name_accepts_is_described(module: str, name: str) -> None:
    value = getattr(import_module(module), name)
    if inspect.isclass(value):
        assert parameters.accepted(value).keys() - parameters.described(value).keys() == set()
    else:
        own = set(inspect.signature(value).parameters)
        assert own == set(re.findall(r":param (\w+):", inspect.getdoc(value) or ""))


def test_what_a_class_accepts_is_followed_through_all_that_it_is_made_of() -> None:
    from airflow_provider_uniapi_fal.operators.fal import FalGenerateOperator, FalSubmitOperator
    from airflow_provider_uniapi_fal.operators.kling import KlingImageOperator
    from airflow_provider_uniapi_fal.operators.luma import LumaExtendOperator

    assert {"model", "priority", "on_clear"} <= parameters.accepted(FalSubmitOperator).keys()
    assert "defer_after" not in parameters.accepted(FalSubmitOperator)
    whole = parameters.accepted(FalGenerateOperator)
    assert {"model", "priority", "defer_after", "on_clear"} <= whole.keys()
    assert whole["timeout"].default == 86400.0
    # What a class sets by itself cannot be given to it.
    kling = parameters.accepted(KlingImageOperator).keys()
    assert {"prompt", "arguments", "check_limits", "watch", "dry_run"} <= kling
    assert not {"kind", "fields", "model"} & kling
    assert "model" not in parameters.accepted(LumaExtendOperator)


def test_the_built_reference_lists_all_of_it(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text((DOCS / "conf.py").read_text())
    (tmp_path / "parameters.py").write_text((DOCS / "parameters.py").read_text())
    (tmp_path / "index.md").write_text((DOCS / "reference" / "python.md").read_text().replace("../", "/"))
    command = [
        sys.executable,
        "-m",
        "sphinx",
        "-q",
        "-E",
        "-b",
        "text",
        str(tmp_path),
        str(tmp_path / "built"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = re.split(
        r"\n(?=(?:class|exception) airflow_provider_uniapi_fal)",
        (tmp_path / "built" / "index.txt").read_text(),
    )
    of = {match[1]: page for page in pages if (match := re.match(r"\w+ ([\w.]+)", page))}
    for module, name in sorted(PUBLIC):
        value = getattr(import_module(module), name)
        if inspect.isclass(value):
            listed = set(re.findall(r"\*\*(\w+)\*\* --", of[f"{module}.{name}"]))
            assert parameters.accepted(value).keys() - listed == set(), name


def test_every_operator_sensor_and_transfer_has_a_how_to() -> None:
    pages = "".join(page.read_text() for page in DOCS.rglob("*.md") if page.parent.name != "reference")
    pages = pages.replace((DOCS / "public_names.md").read_text(), "")
    for module, name in sorted(PUBLIC):
        if module.split(".")[1] in ("operators", "sensors", "transfers"):
            assert f"`{name}`" in pages, name


@pytest.mark.parametrize(
    ("module", "name"),
    [
        each
        for each in sorted(PUBLIC)
        if each[0].split(".")[1] in ("operators", "sensors", "transfers", "triggers")
    ],
)
def test_constructors_of_what_stands_in_dags_are_keyword_only(module: str, name: str) -> None:
    makers = [cls for cls in getattr(import_module(module), name).__mro__ if "__init__" in vars(cls)]
    own = next(cls for cls in makers if cls.__module__.startswith(package.__name__))
    parameters = list(inspect.signature(inspect.unwrap(vars(own)["__init__"])).parameters.values())
    assert all(each.kind in (each.KEYWORD_ONLY, each.VAR_KEYWORD) for each in parameters[1:])
