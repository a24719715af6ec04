"""Show how far a run is, while it runs."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from demo.local_airflow import TaskInstance

WORDS = {
    "success": "done",
    "failed": "failed",
    "upstream_failed": "failed",
    "skipped": "skipped",
    "deferred": "waiting",
    "running": "running",
    "up_for_retry": "to be retried",
}
"""What a reader calls a task's state; all others come before the task runs."""

SECONDS_BETWEEN_LINES = 3.0


@dataclass(frozen=True)
class Stage:
    """One step of the DAG, over all prompts."""

    name: str
    total: int
    counts: Mapping[str, int]

    @property
    def done(self) -> int:
        """How many have succeeded."""
        return self.counts.get("done", 0)

    def __str__(self) -> str:
        others = [f"{count} {word}" for word, count in self.counts.items() if word not in ("done", "to come")]
        return f"{self.name} {self.done}/{self.total}" + (f" ({', '.join(others)})" if others else "")


def stages(tasks: Sequence[TaskInstance]) -> list[Stage]:
    """Count the tasks by step and state, for the steps that have begun, in the order in which they did."""
    counts: dict[str, Counter[str]] = {}
    begun: dict[str, datetime] = {}
    for task in tasks:
        name = task.task_id.rpartition(".")[2]
        counts.setdefault(name, Counter())[WORDS.get(task.state or "", "to come")] += 1
        if task.start is not None:
            begun[name] = min(task.start, begun.get(name, task.start))
    return [
        Stage(name, sum(counts[name].values()), counts[name])
        for name in sorted(begun, key=lambda name: begun[name])
    ]


class Progress:
    """
    A live table on a terminal; elsewhere a line now and then, when something has changed.

    Give it to `LocalAirflow.wait_for_run` as `on_poll`. `at_gateway` says how many jobs are in which
    state there.
    """

    def __init__(self, console: Console, at_gateway: Callable[[], Mapping[str, int]]) -> None:
        self._console = console
        self._at_gateway = at_gateway
        self._started = time.monotonic()
        self._last_line = ""
        self._last_time = float("-inf")
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, tasks: Sequence[TaskInstance]) -> None:
        """Show the tasks as they are now, if the last look is long enough ago."""
        now = time.monotonic()
        if now - self._last_time < (0.25 if self._live is not None else SECONDS_BETWEEN_LINES):
            return
        self._last_time = now
        elapsed, gateway = now - self._started, _in_words(self._at_gateway())
        if self._live is not None:
            self._live.update(_picture(stages(tasks), gateway, elapsed), refresh=True)
            return
        line = " · ".join([*map(str, stages(tasks)), f"at the gateway {gateway}"])
        if line != self._last_line:
            self._last_line = line
            self._console.print(f"{elapsed:5.0f} s  {line}", highlight=False, soft_wrap=True)


def _in_words(jobs: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {state}" for state, count in jobs.items() if count) or "no jobs yet"


def _picture(stages: Sequence[Stage], gateway: str, elapsed: float) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for stage in stages:
        bar = ProgressBar(total=stage.total, completed=stage.done, width=30)
        table.add_row(stage.name, bar, str(stage).removeprefix(f"{stage.name} "))
    return Group(table, Text(f"{elapsed:.0f} s · at the gateway {gateway}", style="dim"))
