"""The rows whose faults strike one task each: all of them under way at once, in one Airflow."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tests.system.matrix.cells import Cell, Matrix, Row
from tests.system.matrix.rows import ROWS

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(1200)]

CELLS = [pytest.param(row, column, id=f"{row.promise} ({column})") for row in ROWS for column in row.ends]


@pytest.fixture(scope="module")
def cells(matrix: Matrix, request: pytest.FixtureRequest) -> Iterator[dict[tuple[str, str], Cell]]:
    """Run the cells that are asked for, side by side, while the tests wait for one after the other."""
    asked: list[dict[str, Any]] = [
        item.callspec.params
        for item in request.session.items
        if isinstance(item, pytest.Function) and hasattr(item, "callspec") and item.module is request.module
    ]
    cells = {(cell["row"].promise, cell["column"]): Cell(matrix, **cell) for cell in asked}
    running = threading.Thread(target=matrix.run, args=(list(cells.values()),))
    running.start()
    yield cells
    running.join()


@pytest.mark.parametrize(("row", "column"), CELLS)
def test_that(row: Row, column: str, cells: dict[tuple[str, str], Cell], matrix: Matrix) -> None:
    matrix.check(cells[row.promise, column])


def test_no_job_was_posted_or_cancelled_after_its_row_had_ended(cells: dict[tuple[str, str], Cell]) -> None:
    """Look at all of them once more: what comes late is missed by who looks early."""
    late = {
        place: (cell.counted, now)
        for place, cell in cells.items()
        if cell.counted and (now := (len(cell.jobs()), cell.cancels())) != cell.counted
    }
    assert late == {}
