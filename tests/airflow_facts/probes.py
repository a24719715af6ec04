"""
What the real Airflow runs to show how it behaves: operators and a trigger that write down what they meet.

They use nothing of the provider. A note is a line of JSON in ``$FACTS/<name>.jsonl``.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from airflow.sdk import BaseOperator, BaseSensorOperator, Context, RetryAction, RetryDecision, RetryPolicy
from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.sdk.execution_time.xcom import XCom
from airflow.triggers.base import BaseTrigger, TaskSuccessEvent, TriggerEvent

RETENTION = timedelta(days=60)
FACTS = "FACTS"
PAYLOAD = "words-in-the-payload"
MARK = "words-in-the-arguments"
VALUE = {"a": 1}

#: A task that resumes sooner may be failed by Airflow: see test_the_race.py.
AFTER_THE_RACE = 7.0


def note(name: str, what: str, **more: Any) -> None:
    line = json.dumps({"what": what, "at": time.time(), **more}) + "\n"
    with Path(os.environ[FACTS], f"{name}.jsonl").open("a") as file:
        file.write(line)


def states_of(ti: Any) -> dict[str, Any]:
    """Ask as the provider asks, and return the answer as it is."""
    found = RuntimeTaskInstance.get_task_states(
        dag_id=ti.dag_id, task_ids=[ti.task_id], run_ids=[ti.run_id], map_index=ti.map_index
    )
    return {
        run_id: {
            key: None if state is None else str(getattr(state, "value", state))
            for key, state in tasks.items()
        }
        for run_id, tasks in found.items()
    }


class QuietEvent(TriggerEvent):
    """An event with a representation of its own."""

    def __init__(self, payload: dict[str, Any]) -> None:
        super().__init__(payload)  # type: ignore[no-untyped-call]

    def __repr__(self) -> str:
        return "QuietEvent<nothing to see>"

    __str__ = __repr__


class ProbeTrigger(BaseTrigger):
    """Waits for ``$FACTS/<name>.open`` and for a moment, then fires what it was told to."""

    def __init__(self, *, name: str, fires: str, not_before: float = 0.0, mark: str = "") -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.name = name
        self.fires = fires
        self.not_before = not_before
        self.mark = mark
        self._cancelled_again = threading.Event()

    def serialize(self) -> tuple[str, dict[str, Any]]:
        kwargs = {"name": self.name, "fires": self.fires, "not_before": self.not_before, "mark": self.mark}
        return f"{type(self).__module__}.{type(self).__qualname__}", kwargs

    async def run(self) -> AsyncIterator[TriggerEvent]:
        note(self.name, "trigger runs")
        gate = Path(os.environ[FACTS], f"{self.name}.open")
        while not gate.exists() or time.time() < self.not_before:
            await asyncio.sleep(0.1)
        if self.fires == "success with xcoms":
            yield TaskSuccessEvent(xcoms={"return_value": dict(VALUE)})
        elif self.fires == "success":
            await asyncio.to_thread(self._push)
            yield TaskSuccessEvent()
        else:
            yield QuietEvent({"payload": PAYLOAD})
        if self.fires == "and works on":
            await asyncio.sleep(300)

    async def on_kill(self) -> None:
        note(self.name, "on_kill")
        try:
            await asyncio.to_thread(self._in_a_thread)
        except asyncio.CancelledError:
            note(self.name, "on_kill cancelled")
            self._cancelled_again.set()
            raise

    def _in_a_thread(self) -> None:
        note(self.name, "states", states=states_of(self.task_instance))
        cancelled = self._cancelled_again.wait(60)
        note(self.name, "thread done", after_the_cancel=cancelled)

    def _push(self) -> None:
        ti: Any = self.task_instance
        XCom.set(
            key="return_value",
            value=dict(VALUE),
            dag_id=ti.dag_id,
            task_id=ti.task_id,
            run_id=ti.run_id,
            map_index=ti.map_index,
        )


class Deferring(BaseOperator):
    """Defers in its first try; later ones only say that they were there."""

    def __init__(
        self,
        *,
        fires: str = "event",
        seconds: float = AFTER_THE_RACE,
        fails: bool = False,
        timeout: timedelta | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.fires = fires
        self.seconds = seconds
        self.fails = fails
        self.timeout = timeout

    def execute(self, context: Context) -> None:
        note(self.task_id, "execute", try_number=context["ti"].try_number)
        if context["ti"].try_number > 1:
            return
        context["ti"].xcom_push(key="before", value=dict(VALUE))
        self.defer(
            trigger=ProbeTrigger(
                name=self.task_id, fires=self.fires, not_before=time.time() + self.seconds, mark=MARK
            ),
            method_name="execute_complete",
            kwargs={"kept": "kept"},
            timeout=self.timeout,
        )

    def execute_complete(self, context: Context, event: Any = None, kept: str | None = None) -> Any:
        note(self.task_id, "execute_complete", event=event, kept=kept)
        if self.fails:
            raise RuntimeError("as it was told")
        return event


class Remembering(BaseOperator):
    """Leaves a mark in the state store and in XCom, and ends its first try as told."""

    def __init__(self, *, killed: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.killed = killed

    def execute(self, context: Context) -> None:
        ti, store = context["ti"], context["task_state_store"]

        def look(what: str) -> None:
            note(
                self.task_id,
                what,
                try_number=ti.try_number,
                max_tries=ti.max_tries,
                state_store=store.get("mark"),
                xcom=ti.xcom_pull(task_ids=self.task_id, key="mark"),
            )

        look("found")
        if ti.try_number == 1:
            store.set("mark", dict(VALUE), retention=RETENTION)
            ti.xcom_push(key="mark", value=dict(VALUE))
            look("left")
            if self.killed:
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("as it was told")


class Rescheduled(BaseSensorOperator):
    """Looks three times, each time in a process of its own."""

    def poke(self, context: Context) -> bool:
        store = context["task_state_store"]
        seen: Any = store.get("seen") or 0
        store.set("seen", seen + 1)
        first = context["ti"].get_first_reschedule_date(context)
        note(self.task_id, "poke", seen=seen, first=None if first is None else first.timestamp())
        return bool(seen == 2)


class Killed(BaseOperator):
    """Works until it is killed, and says how long it lives after that."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._ti: Any = None
        self._killed_at: float | None = None

    def execute(self, context: Context) -> None:
        self._ti = context["ti"]
        note(self.task_id, "execute", max_tries=self._ti.max_tries)
        if self._ti.try_number > 1:
            return
        while self._killed_at is None or time.monotonic() < self._killed_at + 3.0:
            time.sleep(0.05)
        note(self.task_id, "three seconds later")
        time.sleep(300)

    def on_kill(self) -> None:
        note(self.task_id, "on_kill")
        thread = threading.Thread(target=self._ask, daemon=True)
        thread.start()
        thread.join(30)
        self._killed_at = time.monotonic()

    def _ask(self) -> None:
        note(self.task_id, "states", states=states_of(self._ti))


class OneOfMany(BaseOperator):
    """A mapped task: index 1 fails; each says what the state store had for it."""

    template_fields = ("index",)

    def __init__(self, *, index: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.index = index

    def execute(self, context: Context) -> int:
        store = context["task_state_store"]
        note("one_of_many", "store", index=self.index, had=store.get("index"))
        note("one_of_many", "states", states=states_of(context["ti"]))
        store.set("index", self.index)
        if self.index == 1:
            context["ti"].xcom_push(key="failure", value=dict(VALUE))
            raise RuntimeError("as it was told")
        return self.index


class Then(BaseOperator):
    """Comes after something."""

    def execute(self, context: Context) -> None:
        return


class Gathering(BaseOperator):
    """Pulls what the mapped tasks left."""

    def __init__(self, *, of: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.of = of

    def execute(self, context: Context) -> None:
        ti, indexes = context["ti"], [0, 1, 2]
        note(
            "gathered",
            "pulled",
            by_index=list(ti.xcom_pull(self.of, key="return_value", map_indexes=indexes)),
            failures=list(ti.xcom_pull(self.of, key="failure", map_indexes=indexes)),
            all=list(ti.xcom_pull(self.of, key="return_value")),
        )


class AtOnce(RetryPolicy):
    """Retries without the task's own delay, and says when it is asked."""

    def evaluate(
        self, exception: BaseException, try_number: int, max_tries: int, context: Context | None = None
    ) -> RetryDecision:
        note("retry_policy", "asked", about=type(exception).__name__)
        return RetryDecision(action=RetryAction.RETRY, retry_delay=timedelta(0), reason="at once")

    def serialize(self) -> dict[str, Any]:
        return {}
