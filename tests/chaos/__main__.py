"""
Let jobs through random faults and account for each of them: `python -m tests.chaos --jobs 200 --seed 7`.

A real Airflow (scheduler, triggerer, LocalExecutor) has jobs made by an emulator. Replies are lost, reset, cut
short, late, turned into HTML; posts meet 429 and 5xx, accepted and not; jobs fall back into the queue, fail, get
stuck; task processes and the triggerer are killed, the emulator is restarted. What befalls whom follows from
the seed; when it does depends on the machine, too. Exit code 0 only if no promise was broken.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from tests.chaos.account import account_of, broken, verdict
from tests.chaos.plan import plan_of
from tests.chaos.report import outcomes_table, print_faults, promises_table
from tests.chaos.running import run_chaos

if TYPE_CHECKING:
    from types import FrameType


@dataclass(frozen=True)
class Outcome:
    """How a run went: whether every promise was kept, and its figures."""

    kept: bool
    figures: Mapping[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=(__doc__ or "").strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--jobs", type=int, default=200, metavar="N", help="jobs asked for (default: 200)")
    parser.add_argument(
        "--seed", type=int, default=None, metavar="N", help="what befalls whom (default: chosen and printed)"
    )
    parser.add_argument(
        "--limit", type=float, default=540.0, metavar="X", help="seconds until it is over (default: 540)"
    )
    parser.add_argument("--out", type=Path, default=None, metavar="FILE", help="write the figures as JSON")
    options = parser.parse_args(arguments)
    if options.jobs < 1:
        parser.error("--jobs is 1 or more")
    signal.signal(signal.SIGTERM, _exit_on_signal)
    seed = random.randrange(10**6) if options.seed is None else options.seed
    console = Console() if sys.stdout.isatty() else Console(width=150)
    try:
        outcome = run(options.jobs, seed, options.limit, console)
    except KeyboardInterrupt:
        console.print("Interrupted: nothing is left running.")
        return 128 + signal.SIGINT
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(outcome.figures, indent=2) + "\n")
    return 0 if outcome.kept else 1


def _exit_on_signal(signum: int, frame: FrameType | None) -> None:
    sys.exit(128 + signum)


def run(jobs: int, seed: int, limit: float, console: Console) -> Outcome:
    """Run chaos once and report."""
    started = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="chaos-"))
    plan = plan_of(jobs, seed)
    console.print(f"Chaos over {jobs} jobs, seed {seed}, in {folder}", highlight=False, soft_wrap=True)
    found = run_chaos(plan, folder, limit=limit, console=console)
    rows = account_of(plan, found.endings, found.account["jobs"], found.happened)
    promises = verdict(plan, rows, found.happened)

    console.print(outcomes_table(rows))
    print_faults(console, found.faults, len(found.happened.killed))
    totals = found.account["totals"]
    unknown = [row for row in rows if row.ending.outcome == "unknown"]
    console.print(
        f"The emulator received {totals['posts_received']} posts and accepted {totals['posts_accepted']}; of the "
        f"{len(unknown)} jobs called unknown it has {sum(row.posts > 0 for row in unknown)}.",
        highlight=False,
        soft_wrap=True,
    )
    console.print(promises_table(promises))
    problems = broken(rows)
    if not found.in_time:
        problems.append(f"the run was not over after {limit:.0f} s")
    for problem in problems:
        console.print(problem, style="red", markup=False, highlight=False, soft_wrap=True)
    kept = not problems and all(promise.kept for promise in promises)
    if kept:
        shutil.rmtree(folder)
    else:
        console.print(f"Seed {seed}; all logs: {folder}", style="red", highlight=False, soft_wrap=True)
    took = time.monotonic() - started
    console.print(f"This took {took:.0f} s.", highlight=False)
    return Outcome(
        kept,
        {
            "jobs": jobs,
            "seed": seed,
            "seconds": round(took),
            "kept": kept,
            "outcomes": Counter(row.ending.outcome for row in rows),
            "promises": {promise.what: promise.figure for promise in promises},
            "problems": problems,
            "tasks killed": len(found.happened.killed),
            "faults": dict(sorted(found.faults.items())),
            "posts received, accepted": [totals["posts_received"], totals["posts_accepted"]],
        },
    )


if __name__ == "__main__":
    sys.exit(main())
