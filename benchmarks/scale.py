"""
How long a night of many jobs takes, by simple arithmetic from measured figures: ``python -m benchmarks.scale``.

Each stage of the way has a rate at which jobs pass; the slowest one decides. Each figure says where it was measured,
all of them on one small machine; put in your own.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One measured figure, and where it was measured."""

    value: float
    measured: str


#: Seconds of CPU that all of Airflow takes for a job, triggerer and landing included, by the shape of the work.
CPU_SECONDS_A_JOB = {
    "mapped": Figure(0.844, "FalGenerateOperator, 100 jobs of 20 s, SQLite: benchmarks/README.md"),
    "ended in the trigger": Figure(
        0.598, "FalGenerateOperator with end_from_trigger, 100 jobs of 20 s, SQLite: benchmarks/README.md"
    ),
    "batches": Figure(
        0.0049, "FalBatchOperator, 1,000 jobs of 5 s in one task, SQLite: benchmarks/README.md"
    ),
}

#: Starts of tasks for each job, or for each batch.
STARTS = {"mapped": 2, "ended in the trigger": 1, "batches": 2}

SLOT_SECONDS_A_START = Figure(
    1.1, "a plain operator that is ended in its trigger, PostgreSQL, 2026-11-22; not of this provider"
)
EVENTS_A_SECOND = Figure(170.0, "one triggerer, PostgreSQL, 2026-11-22; not of this provider")
POLLS_A_CPU_SECOND = Figure(7000.0, "1,000 waits by the hub over TLS: benchmarks/README.md")
LOOKS_A_JOB = Figure(3.05, "a model that is known, 60 jobs of 20 s: benchmarks/README.md")

FIGURES = {
    **{f"CPU seconds a job, {shape}": figure for shape, figure in CPU_SECONDS_A_JOB.items()},
    "slot-seconds a task start": SLOT_SECONDS_A_START,
    "events a second of a triggerer": EVENTS_A_SECOND,
    "polls a CPU second of a triggerer": POLLS_A_CPU_SECOND,
    "looks a job": LOOKS_A_JOB,
}


@dataclass(frozen=True)
class Night:
    """What is to be done, and with what."""

    jobs: int
    seconds: float = 20.0
    running_at_once: int = 40
    submits_per_second: float = 10.0
    cores: int = 2
    slots: int = 32
    triggerers: int = 1
    shape: str = "mapped"
    batch: int = 1000


SHAPES: dict[str, dict[str, Any]] = {
    "one machine, mapped": {},
    "one machine, mapped, ended in the trigger": {"shape": "ended in the trigger"},
    "one machine, batches of 1,000": {"shape": "batches"},
    "one machine, mapped, an account for 400 at once": {
        "running_at_once": 400,
        "submits_per_second": 50.0,
    },
    "10 workers of 4 cores, 4 triggerers, mapped": {"cores": 40, "slots": 640, "triggerers": 4},
    "10 workers of 4 cores, 4 triggerers, mapped, an account for 400 at once": {
        "cores": 40,
        "slots": 640,
        "triggerers": 4,
        "running_at_once": 400,
        "submits_per_second": 50.0,
    },
    "one machine, batches of 1,000, an account for 400 at once": {
        "shape": "batches",
        "running_at_once": 400,
        "submits_per_second": 50.0,
    },
}


def stages(night: Night) -> dict[str, float]:
    """Return the seconds that each stage would take alone."""
    tasks = -(-night.jobs // night.batch) if night.shape == "batches" else night.jobs
    starts = tasks * STARTS[night.shape]
    looks = night.jobs * LOOKS_A_JOB.value
    return {
        "the account's jobs at once": night.jobs * night.seconds / night.running_at_once,
        "the account's submits a second": night.jobs / night.submits_per_second,
        "worker slots": starts * SLOT_SECONDS_A_START.value / night.slots,
        "CPU": night.jobs * CPU_SECONDS_A_JOB[night.shape].value / night.cores,
        "triggerers' looks": looks / POLLS_A_CPU_SECOND.value / night.triggerers,
        "triggerers' events": tasks / EVENTS_A_SECOND.value / night.triggerers,
    }


def told(jobs: list[int]) -> Iterator[str]:
    """Tell of the figures, and of the stages of some nights, line by line."""
    for name, figure in FIGURES.items():
        yield f"{name}: {figure.value:g} ({figure.measured})"
    for count in jobs:
        for name, shape in SHAPES.items():
            found = stages(Night(count, **shape))
            slowest = max(found, key=lambda stage: found[stage])
            rest = ", ".join(f"{stage} {seconds:,.0f}" for stage, seconds in found.items())
            yield f"{count:,} jobs, {name}: {found[slowest] / 3600:.2f} h, by {slowest} (seconds: {rest})"


JOBS = [1_000, 10_000, 100_000]


def main() -> None:
    """Print the figures, and the stages of some nights."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="*", default=JOBS)
    print(*told(parser.parse_args().jobs), sep="\n")


if __name__ == "__main__":
    main()
