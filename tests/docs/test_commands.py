"""The commands that the pages show are understood by the parser that reads them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from airflow.cli.cli_parser import get_parser

from airflow_provider_uniapi_fal.emulator.command_line import parser as emulators_parser
from airflow_provider_uniapi_fal.emulator.command_line import read_settings

PROJECT = Path(__file__).resolve().parents[2]
PAGES = [
    page
    for page in (PROJECT / "README.md", *sorted((PROJECT / "docs").rglob("*.md")))
    if "\nairflow fal " in page.read_text()
]


def commands(page: Path) -> Iterator[list[str]]:
    """Return the words of each ``airflow fal …`` in the blocks of a page, pipes taken apart."""
    for block in re.findall(r"^```(?:bash|sh)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            command: list[str] = []
            for word in [*shlex.split(line, comments=True), "|"]:
                if word in ("|", ">", "&&", ";"):
                    if command[:2] == ["airflow", "fal"]:
                        yield command[1:]
                    command = []
                else:
                    command.append(word)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_on_a_page_is_understood(page: Path) -> None:
    found = list(commands(page))
    assert found
    for words in found:
        args = get_parser().parse_args(words)
        assert callable(args.func), words
        if words[1] == "emulator":
            read_settings(emulators_parser().parse_args(words[2:]))


def test_the_tutorials_emulator_keeps_its_jobs_before_it_is_stopped_for_the_first_time() -> None:
    text = (PROJECT / "docs" / "tutorial.md").read_text()
    begun, again = text.index("--state "), text.index("the very same line")
    assert begun < again
    assert text.count("--state ") == 1, "it is one line, the same each time"
