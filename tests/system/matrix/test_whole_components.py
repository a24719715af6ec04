"""The rows whose faults strike all jobs at once: a triggerer that dies or stalls, a gateway that goes away."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from demo.local_airflow import COMPONENTS
from demo.processes import Processes
from tests.system.matrix.cells import (
    BLOCKING,
    COLUMNS,
    DEFERRABLE,
    ENDING,
    SENSOR,
    Cell,
    Ends,
    Matrix,
    Row,
    eventually,
)
from tests.system.matrix.rows import nothing

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_uniapi_fal.emulator.running import EmulatorProcess
    from demo.local_airflow import LocalAirflow

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(600)]

UNTOUCHED = Ends(untouched=True)


def waiting(cell: Cell) -> None:
    cell.until_waiting()


def outlive(
    matrix: Matrix, promise: str, columns: tuple[str, ...], fault: Callable[[list[Cell]], None]
) -> None:
    """Let jobs wait in each column, strike, let the jobs end, and look that each was paid once and delivered."""
    row = Row(promise, waiting, dict.fromkeys(columns, UNTOUCHED), held=True)
    cells = [Cell(matrix, row, column) for column in columns]
    matrix.hold()
    for cell in cells:
        cell.start()
    for cell in cells:
        row.happens(cell)
    fault(cells)
    matrix.release()
    for cell in cells:
        assert cell.ended() == "success"
    for cell in cells:
        cell.ends_as(UNTOUCHED)


def test_a_gateway_that_was_away_is_asked_again_and_nothing_is_posted_twice(
    matrix: Matrix, emulator: EmulatorProcess
) -> None:
    def away(cells: list[Cell]) -> None:
        emulator.kill()
        for cell in cells:
            eventually(lambda cell=cell: "looking again" in cell.story())  # type: ignore[misc]
        emulator.restart()

    outlive(matrix, "the gateway goes away and comes back", (SENSOR, BLOCKING, DEFERRABLE, ENDING), away)


def test_a_gateway_that_is_away_when_jobs_are_submitted_is_posted_each_of_them_once(
    matrix: Matrix, emulator: EmulatorProcess
) -> None:
    submitted_later = Ends(tries=2, words=["The gateway could not be reached", "nothing was sent"])
    row = Row("the gateway is not there", nothing, dict.fromkeys(COLUMNS, submitted_later))
    cells = [Cell(matrix, row, column) for column in COLUMNS]
    emulator.kill()
    for cell in cells:
        cell.start()
    for cell in cells:
        eventually(lambda cell=cell: "nothing was sent" in cell.story())  # type: ignore[misc]
    emulator.restart()
    for cell in cells:
        assert cell.ended() == "success"
        cell.ends_as(submitted_later)


def test_deferred_jobs_outlive_a_killed_triggerer(matrix: Matrix, airflow: LocalAirflow) -> None:
    def killed(cells: list[Cell]) -> None:
        looks = {cell: cell.looks() for cell in cells}
        airflow.kill("triggerer")
        airflow.restart("triggerer")
        for cell in cells:
            eventually(lambda cell=cell: cell.looks() > looks[cell] + 1)  # type: ignore[misc]

    outlive(matrix, "the triggerer is killed", (SENSOR, DEFERRABLE, ENDING), killed)


def test_a_triggerer_that_stalled_and_wakes_beside_another_cancels_nothing(
    matrix: Matrix, airflow: LocalAirflow, tmp_path: Path
) -> None:
    def triggerers(cells: list[Cell]) -> set[int]:
        rows = airflow.query(
            "SELECT t.triggerer_id FROM trigger t JOIN task_instance ti ON ti.trigger_id = t.id"
            f" WHERE ti.run_id IN ({', '.join('?' * len(cells))})",
            [cell.run_id for cell in cells],
        )
        assert len(rows) == len(cells)
        return {number for (number,) in rows}

    with Processes() as others:

        def stalled(cells: list[Cell]) -> None:
            before = triggerers(cells)
            airflow.pause_component("triggerer")
            others.start(
                "second triggerer",
                [sys.executable, "-m", "airflow", *COMPONENTS["triggerer"]],
                environment=airflow.environment,
                folder=airflow.folder,
                log=tmp_path / "second-triggerer.log",
            )
            eventually(lambda: not triggerers(cells) & {*before, None})
            airflow.resume_component("triggerer")
            # The one that woke has been told that its triggers are no longer its own, and has looked why.
            kept = "is not cancelled: the task's states are {'deferred'}"
            for cell in cells:
                if cell.column != SENSOR:
                    eventually(lambda cell=cell: kept in cell.story())  # type: ignore[misc]

        outlive(matrix, "the triggerer stalls", (SENSOR, DEFERRABLE, ENDING), stalled)


def test_the_key_was_written_nowhere(airflow: LocalAirflow) -> None:
    from tests.system.matrix.conftest import KEY

    assert airflow.places_with(KEY) == []
