"""
How long a night of many jobs takes, by simple arithmetic from measured figures: ``python -m benchmarks.scale``.

Each stage of the way has a rate at which jobs pass; the slowest one decides. The figures are those of
``benchmarks/README.md`` and of the notes beside each constant, from one small machine; put in your own.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What one machine was measured to do."""

    worker_seconds_per_start: float = 1.1
    """Slot-seconds of one start of a task that does next to nothing (a trigger-ended task: one start a job)."""
    cpu_seconds_per_start: float = 0.17
    """CPU seconds of all of Airflow for one task start."""
    events_per_second: float = 170.0
    """Triggers' ends that one triggerer hands on in a second."""
    polls_per_cpu_second: float = 1300.0
    """Status calls over TLS that one core makes by the hub."""
    looks_per_job: float = 3.0
    """Status calls for a job of a known model."""


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
    batch: int = 0


def stages(night: Night, machine: Machine) -> dict[str, float]:
    """Return the seconds that each stage would take alone."""
    starts = night.jobs * 4 if not night.batch else -(-night.jobs // night.batch) * 4
    events = night.jobs if not night.batch else -(-night.jobs // night.batch) * 2
    return {
        "the account's jobs at once": night.jobs * night.seconds / night.running_at_once,
        "the account's submits a second": night.jobs / night.submits_per_second,
        "worker slots": starts * machine.worker_seconds_per_start / night.slots,
        "CPU of task starts": starts * machine.cpu_seconds_per_start / night.cores,
        "triggerers' CPU": night.jobs
        * machine.looks_per_job
        / machine.polls_per_cpu_second
        / night.triggerers,
        "triggerers' events": events / machine.events_per_second / night.triggerers,
    }


def main() -> None:
    """Print the stages of some nights."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="*", default=[1_000, 10_000, 100_000])
    options = parser.parse_args()
    shapes = {
        "one machine, mapped": {},
        "one machine, batches of 1,000": {"batch": 1000},
        "10 workers of 4 cores, 4 triggerers, mapped": {"cores": 40, "slots": 640, "triggerers": 4},
        "the same, batches of 1,000, an account for 400 at once": {
            "cores": 40,
            "slots": 640,
            "triggerers": 4,
            "batch": 1000,
            "running_at_once": 400,
            "submits_per_second": 50.0,
        },
    }
    for jobs in options.jobs:
        for name, shape in shapes.items():
            found = stages(Night(jobs, **shape), Machine())  # type: ignore[arg-type]
            slowest = max(found, key=lambda stage: found[stage])
            rest = ", ".join(f"{stage} {seconds:,.0f}" for stage, seconds in found.items())
            print(f"{jobs:,} jobs, {name}: {found[slowest] / 3600:.2f} h, by {slowest} (seconds: {rest})")


if __name__ == "__main__":
    main()
