"""What passes between trigger, triggerer and database; ``triggers/fal.py`` hangs on it."""

from __future__ import annotations

import asyncio
import inspect
import json
import uuid
from typing import Any

import pytest
from airflow.jobs.triggerer_job_runner import ToTriggerSupervisor, TriggerEventEntry
from airflow.sdk.serde import deserialize, serialize
from airflow.triggers.base import (
    BaseTrigger,
    DiscrimatedTriggerEvent,
    TaskFailedEvent,
    TaskSuccessEvent,
    TriggerEvent,
)
from pydantic import TypeAdapter, ValidationError

from tests.airflow_facts.probes import PAYLOAD, ProbeTrigger, QuietEvent

ENTRIES: TypeAdapter[Any] = TypeAdapter(TriggerEventEntry)
EVENTS: TypeAdapter[Any] = TypeAdapter(DiscrimatedTriggerEvent)
REQUESTS: TypeAdapter[Any] = TypeAdapter(ToTriggerSupervisor)
TASK = {"dag_id": "d", "run_id": "r", "task_id": "t", "map_index": -1}


def on_the_other_side(adapter: TypeAdapter[Any], value: Any) -> Any:
    return adapter.validate_python(json.loads(adapter.dump_json(value)))


def test_the_representation_of_an_event_shows_its_payload() -> None:
    # Hence FalQueueEvent: the triggerer writes the representation into the log.
    assert PAYLOAD in repr(TriggerEvent({"payload": PAYLOAD}))


def test_an_event_of_a_class_of_its_own_arrives_with_its_payload() -> None:
    # FalQueueEvent is no member of the union of events that the triggerer sends.
    event = QuietEvent({"payload": PAYLOAD})
    assert on_the_other_side(EVENTS, event).payload == {"payload": PAYLOAD}
    entry = on_the_other_side(ENTRIES, TriggerEventEntry(7, event, None))
    assert (entry.trigger_id, entry.event.payload) == (7, {"payload": PAYLOAD})


@pytest.mark.parametrize("event", [TaskSuccessEvent(), TaskFailedEvent()])
def test_an_end_arrives_as_an_end_without_xcoms(event: Any) -> None:
    arrived = on_the_other_side(EVENTS, event)
    assert (type(arrived), arrived.xcoms) == (type(event), None)


def test_a_trigger_reaches_xcoms_and_task_states_but_not_the_task_state_store() -> None:
    # The ledger is written by workers only; _push_result() and states_of() ask from the triggerer.
    for request in (
        {"type": "SetXCom", **TASK, "key": "k", "value": {"a": 1}},
        {"type": "GetTaskStates", "dag_id": "d", "task_ids": ["t"], "run_ids": ["r"], "map_index": -1},
        {"type": "GetConnection", "conn_id": "c"},
    ):
        assert REQUESTS.validate_python(request)
    ti_id = str(uuid.uuid4())
    for request in (
        {"type": "GetTaskStateStore", "ti_id": ti_id, "key": "k"},
        {"type": "SetTaskStateStore", "ti_id": ti_id, "key": "k", "value": 1},
    ):
        with pytest.raises(ValidationError):
            REQUESTS.validate_python(request)
    assert not hasattr(BaseTrigger, "task_state_store")


def test_a_trigger_has_an_async_on_kill_that_does_nothing() -> None:
    assert inspect.iscoroutinefunction(BaseTrigger.on_kill)
    assert asyncio.run(ProbeTrigger(name="n", fires="event").cleanup()) is None
    assert asyncio.run(BaseTrigger.on_kill(ProbeTrigger(name="n", fires="event"))) is None


def test_json_values_come_back_as_they_were() -> None:
    # Trigger arguments and events are JSON values, None and nesting included.
    values = {"none": None, "list": [1, 2.5, "ü"], "deep": {"a": {"b": [{"c": True}]}}, "empty": {}}
    assert deserialize(json.loads(json.dumps(serialize(values)))) == values
