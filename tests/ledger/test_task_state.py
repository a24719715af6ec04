from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from airflow_provider_uniapi_fal.exceptions import FalProtocolError, FalSubmitOutcomeUnknown
from airflow_provider_uniapi_fal.ledger.record import JobRecord, Phase
from airflow_provider_uniapi_fal.ledger.task_state import KEY, RETENTION, TaskLedger
from tests.fakes import ForgetfulStore, StateStore, handle

RECORD = JobRecord(Phase.INTENT, "asked", 2, 1.0)


def test_what_was_written_is_read_and_what_was_forgotten_is_absent() -> None:
    ledger = TaskLedger(StateStore())
    assert ledger.read() is None
    ledger.write(RECORD)
    assert ledger.read() == RECORD
    ledger.put_back(None)
    assert ledger.read() is None


@pytest.mark.parametrize(
    "value",
    [{}, [], "", 0, False, "intent", {"phase": "intent"}, {**RECORD.to_json(), "phase": "paid twice"}],
)
def test_a_record_that_cannot_be_read_is_an_error_and_never_absent(value: Any) -> None:
    store = StateStore()
    store.set(KEY, value)
    with pytest.raises(FalSubmitOutcomeUnknown, match="cannot be read"):
        TaskLedger(store).read()


def test_a_store_that_cannot_be_reached_is_an_error_and_never_absent() -> None:
    class Unreachable(StateStore):
        def get(self, key: str, default: Any = None) -> Any:
            raise OSError("no answer")

    with pytest.raises(OSError, match="no answer"):
        TaskLedger(Unreachable()).read()


def test_an_intent_that_was_silently_dropped_is_noticed() -> None:
    with pytest.raises(FalProtocolError, match="did not keep the intent") as raised:
        TaskLedger(ForgetfulStore()).write(RECORD)
    assert (raised.value.failure.billed, raised.value.failure.may_run) == ("no", False)
    for told in ("Nothing was sent", "It was not billed", "A retry submits", "[workers] state_store_backend"):
        assert told in str(raised.value)


def test_only_an_intent_is_read_again_the_rest_relies_on_the_answer_to_its_write() -> None:
    asked = []

    class Asked(StateStore):
        def get(self, key: str, default: Any = None) -> Any:
            asked.append(key)
            return super().get(key, default)

    ledger = TaskLedger(Asked())
    ledger.write(RECORD)
    assert asked == [KEY]
    for phase in (Phase.SUBMITTED, Phase.DELIVERED):
        ledger.write(replace(RECORD, phase=phase, handle=handle()))
    assert asked == [KEY]


def test_a_record_is_kept_for_longer_than_airflow_keeps_state_by_default() -> None:
    kept = []

    class Watching(StateStore):
        def set(self, key: str, value: Any, *, retention: timedelta | None = None) -> None:
            kept.append(retention)
            super().set(key, value)

    TaskLedger(Watching()).write(RECORD)
    assert kept == [RETENTION]
    assert timedelta(days=30) < RETENTION
