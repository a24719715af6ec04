"""Every row of the recovery page is held by the test that it names, or by the row of the matrix."""

from __future__ import annotations

import re
from pathlib import Path

from tests.system.matrix.rows import ROWS

PROJECT = Path(__file__).parents[2]


def test_every_row_names_a_test_that_exists() -> None:
    page = (PROJECT / "docs" / "recovery.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and not line.startswith("| What")]
    defined = set()
    for file in (PROJECT / "tests").rglob("test_*.py"):
        defined |= set(re.findall(r"^(?:async )?def (test_\w+)", file.read_text(), re.MULTILINE))
    assert len(rows) > 30
    for row in rows:
        last = row.rstrip(" |").rpartition("|")[2].strip()
        if last.startswith("*"):
            assert last.strip("*") in {each.promise for each in ROWS}, (
                f"no row of the matrix promises: {last}"
            )
        else:
            named = re.findall(r"`(test_\w+)`", last)
            assert named, f"no test is named in: {row}"
            assert set(named) <= defined, f"no such test: {set(named) - defined}"
