from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from airflow.triggers.base import BaseTrigger, TriggerEvent

from benchmarks.triggerer import run_triggers

#: Names of triggers that have begun, and of those that were cancelled.
begun: list[str] = []
cancelled: list[str] = []


class Waits(BaseTrigger):
    def __init__(self, *, name: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name = name

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (f"{type(self).__module__}.{type(self).__qualname__}", {"name": self.name})

    async def run(self) -> AsyncIterator[TriggerEvent]:
        begun.append(self.name)
        try:
            await asyncio.Event().wait()
            yield TriggerEvent(self.name)
        finally:
            cancelled.append(self.name)


def test_airflows_own_runner_runs_the_triggers_until_the_time_is_over() -> None:
    asyncio.run(run_triggers([Waits(name="a"), Waits(name="b")], 1.5))
    assert sorted(begun) == sorted(cancelled) == ["a", "b"]
