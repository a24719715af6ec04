"""
When Airflow skips a sensor, and on which clock it waits.

``sensors/fal.py`` skips a deferrable wait as Airflow skips one in poke mode, and ``exceptions.py`` derives its
classes so that each mode does the same.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from airflow.models import trigger as models
from airflow.sdk import BaseSensorOperator, PokeReturnValue, conf
from airflow.sdk.bases.operator import TRIGGER_FAIL_REPR, TriggerFailureReason
from airflow.sdk.exceptions import (
    AirflowException,
    AirflowFailException,
    AirflowRescheduleException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferralError,
    TaskDeferralTimeout,
)

TRIGGER_FAILED = "__fail__"


class OwnError(Exception):
    """No kind of Airflow's."""


class OwnTimeout(OwnError, AirflowSensorTimeout):
    """As our time-outs are made."""


class OwnFailure(OwnError, AirflowFailException):
    """As our hopeless errors are made."""


class Sensor(BaseSensorOperator):
    def __init__(self, *, raises: Exception | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._raises = raises

    def execute(self, context: Any) -> Any:
        return super().execute(context)

    def poke(self, context: Any) -> bool | PokeReturnValue:
        if self._raises is not None:
            raise self._raises
        self.poke_interval = 12.5
        return False

    def resumed(self, context: Any, event: Any = None) -> None:
        if self._raises is not None:
            raise self._raises


def sensor(raises: Exception | None = None, **options: Any) -> Sensor:
    return Sensor(task_id="sensor", raises=raises, **options)


class TaskInstance:
    def get_first_reschedule_date(self, context: Any) -> None:
        return None


CONTEXT: Any = {"ti": TaskInstance()}


def poked(task: Sensor) -> type[BaseException]:
    with pytest.raises(Exception) as caught:
        task.execute(CONTEXT)
    return caught.type


def resumed(task: Sensor, method: str = "resumed", **kwargs: Any) -> type[BaseException]:
    with pytest.raises(Exception) as caught:
        task.resume_execution(method, kwargs, CONTEXT)
    return caught.type


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
@pytest.mark.parametrize("error", [OwnTimeout(), OwnFailure()])
def test_soft_fail_skips_a_poke_on_time_outs_and_hopeless_errors(mode: str, error: Exception) -> None:
    assert poked(sensor(error, mode=mode, soft_fail=True)) is AirflowSkipException
    assert poked(sensor(error, mode=mode)) is type(error)


@pytest.mark.parametrize("mode", ["poke", "reschedule"])
@pytest.mark.parametrize("error", [OwnError(), AirflowException()])
def test_soft_fail_lets_a_poke_fail_on_everything_else(mode: str, error: Exception) -> None:
    assert poked(sensor(error, mode=mode, soft_fail=True)) is type(error)


@pytest.mark.parametrize("error", [OwnTimeout(), OwnFailure(), OwnError(), AirflowException()])
def test_never_fail_skips_a_poke_on_every_error(error: Exception) -> None:
    assert poked(sensor(error, never_fail=True)) is AirflowSkipException


@pytest.mark.parametrize("error", [OwnTimeout(), OwnFailure(), AirflowException(), TaskDeferralError()])
@pytest.mark.parametrize("option", ["soft_fail", "never_fail"])
def test_a_resumed_sensor_is_skipped_on_every_error_of_airflows(error: Exception, option: str) -> None:
    # More kinds than in poke mode: FalError is no AirflowException because of this.
    assert resumed(sensor(error, **{option: True})) is AirflowSkipException


@pytest.mark.parametrize("option", ["soft_fail", "never_fail"])
def test_a_resumed_sensor_is_never_skipped_on_an_error_that_is_not_airflows(option: str) -> None:
    # FalQueueSensor._skips_as_in_poke_mode() does it for never_fail.
    assert resumed(sensor(OwnError(), **{option: True})) is OwnError


def test_a_deferral_that_times_out_is_a_time_out_of_the_sensor() -> None:
    # No retry follows: the backstop behind the trigger's own deadline, BACKSTOP_SECONDS, only comes last.
    assert resumed(sensor(), TRIGGER_FAILED, error="Trigger timeout") is AirflowSensorTimeout
    assert resumed(sensor(TaskDeferralTimeout())) is AirflowSensorTimeout


def test_airflow_resumes_with_these_words_what_it_ends_without_an_event() -> None:
    # triggers/deferring.py reads them, and says what became of the job.
    assert TRIGGER_FAIL_REPR == models.TRIGGER_FAIL_REPR == TRIGGER_FAILED
    words = {"Trigger timeout", "Trigger failure"}
    for reasons in (TriggerFailureReason, models.TriggerFailureReason):
        assert {reason.value for reason in reasons} == words
    assert TriggerFailureReason("Trigger timeout") is TriggerFailureReason.TRIGGER_TIMEOUT


def test_a_trigger_that_raises_fails_the_task_without_asking_the_sensor() -> None:
    # triggers/fal.py: run() turns its errors into an event, so that the worker raises the typed error.
    assert resumed(sensor(), TRIGGER_FAILED, error="Trigger failure") is TaskDeferralError


def test_the_pause_before_the_next_poke_is_what_the_poke_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    # sensors/fal.py: _poke() shortens poke_interval to what is left until the deadline.
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        raise OwnError

    monkeypatch.setattr("airflow.sdk.bases.sensor.time.sleep", pause)
    assert poked(sensor(poke_interval=60)) is OwnError
    assert pauses == [12.5]
    assert poked(sensor(poke_interval=60, mode="reschedule")) is AirflowRescheduleException


def test_a_sensor_turns_timedeltas_into_seconds_and_refuses_texts() -> None:
    # sensors/fal.py compares timeout and poke_interval with numbers.
    made = sensor(timeout=timedelta(minutes=2), poke_interval=timedelta(seconds=3))
    assert (made.timeout, made.poke_interval) == (120.0, 3.0)
    for texts in ({"timeout": "3"}, {"poke_interval": "3"}):
        with pytest.raises((AirflowException, TypeError, ValueError)):
            sensor(None, **texts)


def test_a_sensors_time_out_has_a_default_and_deferring_is_off_by_default() -> None:
    # sensors/fal.py, operators/fal.py: timeout, and deferrable=None.
    assert sensor().timeout == conf.getfloat("sensors", "default_timeout") == 7 * 24 * 3600
    assert conf.getboolean("operators", "default_deferrable", fallback=True) is False
