"""The account as a reader sees it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from tests.chaos.account import OUTCOMES, Promise, Row
from tests.chaos.plan import WAYS

if TYPE_CHECKING:
    from rich.console import Console


def outcomes_table(rows: Sequence[Row]) -> Table:
    """Lay out what became of the jobs, by the way in which they were asked for."""
    table = Table("way", title="What became of each job", title_justify="left")
    for name in ("asked", *OUTCOMES, "sum"):
        table.add_column(name, justify="right")
    for name, ways in [*((way, (way,)) for way in WAYS), ("all", tuple(WAYS))]:
        found = Counter(row.ending.outcome for row in rows if row.job.way in ways)
        counts = [found[outcome] for outcome in OUTCOMES]
        style = "bold" if name == "all" else None
        table.add_row(name, *map(str, (found.total(), *counts, sum(counts))), style=style)
    return table


def promises_table(promises: Sequence[Promise]) -> Table:
    """Lay out which promises were kept."""
    table = Table("promise", "figure", "kept", title="Promises", title_justify="left")
    for promise in promises:
        word = "[green]yes[/green]" if promise.kept else "[bold red]NO[/bold red]"
        table.add_row(promise.what, promise.figure, word)
    return table


def print_faults(console: Console, faults: Counter[str], killed: int) -> None:
    """Say in two lines what was done to the jobs."""
    struck = ", ".join(f"{count} {name}" for name, count in sorted(faults.items()))
    console.print(
        f"{killed} task processes were killed. {faults.total()} calls were struck:", highlight=False
    )
    console.print(f"  {struck}", highlight=False, soft_wrap=True)
