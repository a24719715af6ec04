"""The tables of the emulator's page are what the code says; a test that fails prints the right one."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from airflow_provider_uniapi_fal.emulator import kling, luma, openai_images
from airflow_provider_uniapi_fal.emulator.families import DIALECTS, FAMILIES
from airflow_provider_uniapi_fal.emulator.faults import FAULTS, OPERATIONS
from airflow_provider_uniapi_fal.emulator.refusals import REASONS, Manners
from airflow_provider_uniapi_fal.emulator.settings import FAILURES, Behaviour, Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "emulator.md"
OWN_FIELDS = {each.name for each in dataclasses.fields(Settings)} - {
    each.name for each in dataclasses.fields(Behaviour)
}


def table(head: str, rows: Iterable[Iterable[object]]) -> str:
    names = head.split("|")
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(
        "| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines
    )


def calls() -> str:
    return table(
        "Family|Call|Operation|Key",
        (
            (
                family.name,
                f"`{route.method} {route.path.replace(':.+', '')}`",
                f"`{route.operation}`",
                route.scheme or "none",
            )
            for family in FAMILIES
            for route in family.routes
        ),
    )


def settings_of(names: Callable[[str], bool]) -> str:
    rows = []
    for each in dataclasses.fields(Settings):
        if not names(each.name) or "help" not in each.metadata:
            continue
        choices = ", ".join(f"`{choice}`" for choice in each.metadata["choices"])
        default = json.dumps(each.default) if each.default != "" else "none"
        rows.append(
            (f"`{each.name}`", f"`{default}`", each.metadata["help"] + (f" ({choices})" if choices else ""))
        )
    return table("Setting|Default|What it is", rows)


def faults() -> str:
    return table(
        "Fault|Options|What it does",
        (
            (
                f"`{name}`",
                " ".join(f"`{key}={json.dumps(value)}`" for key, value in (fault.options or {}).items())
                if fault.options is not None
                else "any",
                "the call is answered, but not carried out; for the reasons see below"
                if name == "turned-away"
                else fault.says,
            )
            for name, fault in FAULTS.items()
        ),
    )


def reasons() -> str:
    def said(family: str, reason: str) -> str:
        reply = Manners(family).refusal(reason)
        code = json.loads(reply.body).get("code") if family == "kling" else None
        return f"{reply.status}/{code}" if code else str(reply.status)

    return table(
        "`because`|" + "|".join(DIALECTS),
        ((f"`{reason}`", *(said(family, reason) for family in DIALECTS)) for reason in REASONS),
    )


def failures() -> str:
    others = (kling.FAILURES, luma.FAILURES, openai_images.FAILURES)
    return table(
        "`failure`|" + "|".join(DIALECTS),
        ((f"`{name}`", says, *(each[name] for each in others)) for name, says in FAILURES.items()),
    )


TABLES: dict[str, Callable[[], str]] = {
    "calls": calls,
    "faults": faults,
    "reasons": reasons,
    "failures": failures,
    "server": lambda: settings_of(lambda name: name in OWN_FIELDS),
    "jobs": lambda: settings_of(
        lambda name: name not in OWN_FIELDS and not name.startswith(("kling_", "luma_", "openai_"))
    ),
    "kling": lambda: settings_of(lambda name: name.startswith("kling_") and name not in OWN_FIELDS),
    "luma": lambda: settings_of(lambda name: name.startswith("luma_")),
    "openai": lambda: settings_of(lambda name: name.startswith("openai_")),
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_page_is_what_the_code_says(name: str) -> None:
    assert TABLES[name]() in PAGE.read_text()


def test_every_setting_is_in_one_of_the_tables() -> None:
    tables = "\n".join(TABLES[name]() for name in ("server", "jobs", "kling", "luma", "openai"))
    for each in dataclasses.fields(Settings):
        rows = tables.count(f"\n| `{each.name}` |")
        assert rows == (0 if each.name in ("model_seconds", "faults") else 1), each.name


def test_the_page_names_every_operation() -> None:
    page = PAGE.read_text()
    for each in OPERATIONS:
        assert f"`{each}`" in page


def test_every_family_says_every_failure() -> None:
    for words in (kling.FAILURES, luma.FAILURES, openai_images.FAILURES):
        assert set(words) == set(FAILURES)
