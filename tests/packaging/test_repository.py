"""The repository's own files: at home on every machine, with links that lead somewhere."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

PROJECT = Path(__file__).resolve().parents[2]

# Where packages come from is the machine's business, and so is where anything lies on it.
OF_ONE_MACHINE = re.compile(
    rb"""
    pypi\. | pythonhosted\. | npmjs\. | \bdebian\.org | golang\.org | crates\.io
    | index[-_]url | find[-_]links | trusted[-_]host
    | (?<![\w.}\-])/(?:root|work|Users/\w+|home/\w+|opt/\w+)/
    """,
    re.VERBOSE | re.IGNORECASE,
)
CODE_BLOCK = re.compile(r"^(`{3,})(.*?)^\1$", re.MULTILINE | re.DOTALL)
HEADING = re.compile(r"^(#+) +(.+?) *$", re.MULTILINE)
LINK = re.compile(r"\]\(\s*<?([^)\s>]+)")


class Page(NamedTuple):
    """A Markdown page, taken apart."""

    headings: list[tuple[int, str]]
    code_blocks: list[str]
    links: list[str]


def page(path: Path) -> Page:
    """Read a Markdown page; what looks like a heading or a link inside a code block is none."""
    text = path.read_text(encoding="utf-8")
    prose = CODE_BLOCK.sub("", text)
    return Page(
        [(len(marks), words) for marks, words in HEADING.findall(prose)],
        [block.group(2) for block in CODE_BLOCK.finditer(text)],
        LINK.findall(prose),
    )


def anchor(heading: str) -> str:
    """Return the fragment by which a page's heading is linked."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def project_files() -> list[Path]:
    """Return the files that are in the repository, or would be with the next commit."""
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listing.returncode != 0 or not (PROJECT / ".git").exists():
        pytest.skip("not in a git checkout")
    return [path for name in listing.stdout.split("\0") if name and (path := PROJECT / name).is_file()]


def test_no_file_names_a_package_registry_or_a_place_on_one_machine() -> None:
    found = [
        f"{path.relative_to(PROJECT)}: {match.group().decode(errors='replace')}"
        for path in project_files()
        for match in OF_ONE_MACHINE.finditer(path.read_bytes())
    ]
    assert found == []


@pytest.mark.parametrize(
    "text",
    [
        "https://py" + "pi.org/simple",
        "files.python" + "hosted.org",
        "pip --extra-in" + "dex-url x",
        "see /ro" + "ot/x",
    ],
)
def test_the_search_for_such_names_finds_them(text: str) -> None:
    assert OF_ONE_MACHINE.search(text.encode())


def test_every_relative_link_in_a_page_leads_to_a_file_or_a_heading() -> None:
    pages = {path: page(path) for path in project_files() if path.suffix == ".md"}
    assert PROJECT / "README.md" in pages
    broken = []
    for path, content in pages.items():
        for link in content.links:
            if re.match(r"[a-z][a-z0-9+.-]*:", link):
                continue
            name, _, fragment = link.partition("#")
            target = (path.parent / name).resolve() if name else path
            leads = target.exists()
            if fragment and leads:
                leads = fragment in {anchor(words) for _, words in pages[target].headings}
            if not leads:
                broken.append(f"{path.relative_to(PROJECT)}: {link}")
    assert broken == []


def test_both_readmes_have_the_same_structure_and_the_same_code() -> None:
    english, chinese = page(PROJECT / "README.md"), page(PROJECT / "README.zh.md")
    assert [level for level, _ in chinese.headings] == [level for level, _ in english.headings]
    assert chinese.code_blocks == english.code_blocks
    assert english.code_blocks


def test_each_constraint_is_one_exact_version() -> None:
    constraints = (PROJECT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    exact = re.compile(r"[a-z0-9-]+==[\w.+!]+( ; [\w<>=!'.* ]+)?")
    assert [line for line in constraints if not line.startswith("#") and not exact.fullmatch(line)] == []
