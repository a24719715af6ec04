"""One batch task over its tries: its journal stays, each leg has an operator of its own, as it has a process."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from airflow.sdk import ObjectStoragePath
from airflow.sdk.exceptions import TaskDeferred

from airflow_provider_uniapi_fal.operators.batch import FalBatchOperator
from tests.fakes import MODEL, PROMPT, StateStore, fired

if TYPE_CHECKING:
    from collections.abc import Mapping

MODES: dict[str, dict[str, Any]] = {
    "blocking": {"deferrable": False},
    "deferrable": {"deferrable": True, "defer_after": 0.0},
}


def table(count: int, **arguments: Any) -> list[dict[str, Any]]:
    """Return rows with small pictures and prompts of their own."""
    size = {"width": 64, "height": 48}
    return [
        {"key": f"row-{n:03}", "arguments": {"prompt": f"{PROMPT} {n:03}.", "image_size": size, **arguments}}
        for n in range(count)
    ]


class BatchTask:
    """One task of one run."""

    def __init__(self, place: str, *, retries: int = 2, run_id: str = "night", **options: Any) -> None:
        self.place = place
        self.options: dict[str, Any] = {
            "model": MODEL,
            "poke_interval": 0.05,
            "destination": place,
            **options,
        }
        self.try_number = 1
        self.max_tries = retries
        self.run_id = run_id
        self.xcoms: dict[str, Any] = {}
        self.outlet_events: dict[Any, Any] = {}
        self.store = StateStore()
        self.legs = 0

    def next_try(self, *, cleared: bool = False) -> BatchTask:
        self.try_number += 1
        self.max_tries += 3 if cleared else 0
        self.xcoms = {}
        return self

    @property
    def context(self) -> Any:
        ti = SimpleNamespace(
            dag_id="nights",
            run_id=self.run_id,
            task_id="batch",
            map_index=-1,
            try_number=self.try_number,
            max_tries=self.max_tries,
            xcom_push=self._push,
        )
        return {
            "ti": ti,
            "task_instance": ti,
            "outlet_events": self.outlet_events,
            "task_state_store": self.store,
        }

    def operator(self, **options: Any) -> FalBatchOperator:
        return FalBatchOperator(task_id="batch", **{**self.options, **options})

    def run(self, **options: Any) -> Any:
        """Run a try to its end, through as many deferrals as it takes."""
        deferred: TaskDeferred | None = None
        while True:
            self.legs += 1
            try:
                if deferred is None:
                    return self.operator(**options).execute(self.context)
                event = fired(deferred)
                running = self.operator(**options)
                return running.resume_execution(deferred.method_name, {"event": event}, self.context)
            except TaskDeferred as next_one:
                deferred = next_one

    def manifest(self) -> dict[str, dict[str, Any]]:
        """Return the rows of the manifest, by key."""
        text = ObjectStoragePath(f"{self.place}/manifest.jsonl").read_text()
        return {row["key"]: row for row in map(json.loads, text.splitlines())}

    def outcomes(self) -> dict[str, str]:
        return {key: row["outcome"] for key, row in self.manifest().items()}

    def _push(self, key: str, value: Any) -> None:
        self.xcoms[key] = json.loads(json.dumps(value))


def counts(made: Mapping[str, Any]) -> dict[str, int]:
    """Return the counts that are not 0."""
    return {outcome: count for outcome, count in made["counts"].items() if count}
