"""What docs/scale.md tells is what the simulation computes, from the figures that benchmarks/README.md tells."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import scale

PROJECT = Path(__file__).resolve().parents[2]
README = (PROJECT / "benchmarks" / "README.md").read_text()


def row(name: str) -> list[str]:
    """Return the cells of the row of a way in the tables of measured figures."""
    [found] = [line for line in README.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip().replace(",", "") for cell in found.strip("|").split("|")]


def test_the_page_shows_what_the_simulation_prints() -> None:
    page = (PROJECT / "docs" / "scale.md").read_text()
    assert "```text\n" + "\n".join(scale.told(scale.JOBS)) + "\n```" in page


@pytest.mark.parametrize(
    ("shape", "name"),
    [
        ("mapped", "FalGenerateOperator"),
        ("ended in the trigger", "the same, `defer_after=0`, `end_from_trigger=True`"),
    ],
)
def test_a_task_for_each_job_costs_what_was_measured(shape: str, name: str) -> None:
    _, jobs, _, _, starts, _, cpu_ms, *_ = row(name)
    assert scale.CPU_SECONDS_A_JOB[shape].value == pytest.approx(float(cpu_ms) / 1000)
    # The task that hands out the rows starts once, too.
    assert int(starts) == scale.STARTS[shape] * int(jobs) + 1


def test_a_batch_costs_what_was_measured() -> None:
    _, _, cpu, *_ = row("1,000 jobs of 5 s")
    assert scale.CPU_SECONDS_A_JOB["batches"].value == pytest.approx(float(cpu) / 1000)


def test_looks_and_polls_cost_what_was_measured() -> None:
    _, _, looks, *_ = row("known model, polls")
    assert scale.LOOKS_A_JOB.value == float(looks.partition("/")[0])
    found = re.search(r"CPU ms a poll: hub ([0-9.]+)", README)
    assert found is not None
    assert scale.POLLS_A_CPU_SECOND.value == pytest.approx(1000 / float(found[1]), rel=0.05)


def test_the_slowest_stage_decides() -> None:
    account: dict[str, Any] = {"running_at_once": 400, "submits_per_second": 50.0}
    mapped = scale.stages(scale.Night(100_000, **account))
    assert max(mapped, key=lambda stage: mapped[stage]) == "CPU"
    batches = scale.stages(scale.Night(100_000, shape="batches", **account))
    assert max(batches, key=lambda stage: batches[stage]) == "the account's jobs at once"
    assert batches["CPU"] < 0.05 * mapped["CPU"]
