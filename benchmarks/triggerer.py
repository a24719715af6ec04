"""Airflow's own runner of triggers, without a scheduler, a database and a supervisor: what waits cost in a triggerer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow.executors.workloads.trigger import RunTrigger
from airflow.jobs.triggerer_job_runner import TriggerRunner, messages
from airflow.models.trigger import Trigger

if TYPE_CHECKING:
    from airflow.triggers.base import BaseTrigger


class Runner(TriggerRunner):
    """
    Runs the triggers that it is given, in the loop and the tasks in which a triggerer runs them.

    Only what talks to the supervisor is replaced: it is told of the triggers at once, and nobody takes the events.
    """

    def __init__(self, triggers: Iterable[BaseTrigger]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._given = [
            RunTrigger(id=number, classpath=path, encrypted_kwargs=Trigger.encrypt_kwargs(kwargs))
            for number, (path, kwargs) in enumerate(each.serialize() for each in triggers)
        ]

    async def init_comms(self) -> None:
        self.comms_decoder: Any = SimpleNamespace(_reader_task=asyncio.get_running_loop().create_future())

    async def asend(self, msg: messages.TriggerStateChanges) -> messages.TriggerStateSync:
        given, self._given = self._given, []
        return messages.TriggerStateSync(to_create=given, to_cancel=set())


async def run_triggers(triggers: Iterable[BaseTrigger], seconds: float) -> None:
    """Run triggers for so many seconds, and cancel them."""
    runner = Runner(triggers)
    asyncio.get_running_loop().call_later(seconds, runner._handle_signal, 0, None)
    await runner.arun()  # type: ignore[no-untyped-call]
    tasks = [each["task"] for each in runner.triggers.values()]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
