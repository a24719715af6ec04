"""The documentation builds without a warning, and its pages keep what they promise."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from inspect import signature
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from airflow_provider_uniapi_fal.sensors.fal import FalQueueSensor

PROJECT = Path(__file__).resolve().parents[2]
DOCS = PROJECT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))

#: Links in Markdown, and bare addresses between angle brackets.
EXTERNAL = re.compile(r"\]\((\w+:[^)\s]*)\)|<(\w+://[^>\s]*)>")


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "sphinx",
            "-q",
            "-W",
            "--keep-going",
            "-E",
            "-b",
            "html",
            str(source),
            str(target),
        ],
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_pages_build_without_a_warning_and_fetch_nothing_from_elsewhere(tmp_path: Path) -> None:
    done = build(DOCS, tmp_path)
    assert done.returncode == 0, done.stderr
    built = {page.relative_to(tmp_path).with_suffix("").as_posix() for page in tmp_path.rglob("*.html")}
    parts = {"public_names"}
    assert {page.relative_to(DOCS).with_suffix("").as_posix() for page in PAGES} - parts <= built
    loaded = re.compile(r"<(?:script|link|img|iframe)[^>]+(?:src|href)=\"(?:https?:)?//")
    assert [page.name for page in tmp_path.rglob("*.html") if loaded.search(page.read_text())] == []


def test_a_link_that_leads_nowhere_is_a_warning(tmp_path: Path) -> None:
    for name in ("conf.py", "parameters.py"):
        (tmp_path / name).write_text((DOCS / name).read_text())
    (tmp_path / "index.md").write_text("# x\n\n[nowhere](nowhere.md)\n")
    done = build(tmp_path, tmp_path / "built")
    assert done.returncode != 0
    assert "nowhere.md" in done.stderr


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_link_to_elsewhere_is_a_whole_https_address(page: Path) -> None:
    for found in EXTERNAL.finditer(page.read_text()):
        parts = urlsplit(found.group(1) or found.group(2))
        assert parts.scheme == "https", found.group()
        assert re.fullmatch(r"[a-z0-9-]+(\.[a-z0-9-]+)+", parts.netloc), found.group()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(DOCS).as_posix())
def test_every_page_has_one_title_and_is_written_for_users(page: Path) -> None:
    text = re.sub(r"^(`{3,}|:{3,}).*?^\1$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^# .+", text, re.MULTILINE)
    assert len(titles) == (0 if page.name == "public_names.md" else 1), titles


def test_the_pages_for_beginners_tell_the_defaults_that_the_code_has() -> None:
    seconds = signature(FalQueueSensor).parameters["defer_after"].default
    assert f"`defer_after` ({seconds:g} seconds)" in (DOCS / "howto" / "submit_wait_land.md").read_text()
    example = (PROJECT / "dags_examples" / "one_picture.py").read_text()
    [folder] = re.findall(r'"destination": "file://([^"]+)"', example)
    assert f"The picture is in `{folder}`" in (DOCS / "tutorial.md").read_text()


def test_the_code_of_every_how_to_is_a_tested_example() -> None:
    for page in sorted((DOCS / "howto").glob("*.md")):
        blocks = re.findall(r"^```(\S*)", page.read_text(), re.MULTILINE)
        assert "python" not in blocks, f"{page.name} shows code that no test runs"


def test_the_security_page_names_the_limit_that_the_code_has() -> None:
    from airflow_provider_uniapi_fal.protocol.dialects.base import MediaInputs

    assert f"{MediaInputs().max_bytes // 1024**2} MiB" in (DOCS / "security.md").read_text()


def test_a_database_is_called_tested_only_if_a_test_runs_on_it() -> None:
    row = next(
        line
        for line in (DOCS / "compatibility.md").read_text().splitlines()
        if line.startswith("| Databases |")
    )
    here = Path(__file__).resolve()
    tests = "".join(page.read_text() for page in (PROJECT / "tests").rglob("*.py") if page != here)
    for name, url in (("SQLite", "sqlite"), ("PostgreSQL", "postgresql"), ("MySQL", "mysql")):
        by_tests = url in tests.lower() or url in (PROJECT / "demo" / "local_airflow.py").read_text()
        tested = row.split("|")[3]
        assert name not in tested or by_tests or re.search(rf"{name}[^;,]* by hand", tested), name
