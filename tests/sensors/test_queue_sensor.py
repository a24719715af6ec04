from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime, timedelta, timezone
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import (
    AirflowRescheduleException,
    AirflowSensorTimeout,
    AirflowSkipException,
    TaskDeferred,
)

from airflow_provider_uniapi_fal.exceptions import (
    FalContentRefused,
    FalError,
    FalInputError,
    FalJobFailed,
    FalProtocolError,
    FalSensorTimeout,
    FalTimeout,
)
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.sensors import fal as sensors
from airflow_provider_uniapi_fal.sensors.fal import FalQueueSensor
from airflow_provider_uniapi_fal.transport import blocking
from airflow_provider_uniapi_fal.triggers import hub
from tests.fakes import (
    ARGUMENTS,
    KEY,
    MODEL,
    PROMPT,
    Start,
    Task,
    as_json,
    calls,
    fired,
    handle,
    set_connection,
)

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.job import JobHandle

MODES: dict[str, dict[str, Any]] = {
    "deferrable": {"deferrable": True, "defer_after": 0.0},
    "poke": {"deferrable": False, "mode": "poke"},
    "reschedule": {"deferrable": False, "mode": "reschedule"},
}
Wait = Callable[..., Any]


@pytest.fixture(autouse=True)
def without_the_pause_after_deferring(monkeypatch: pytest.MonkeyPatch) -> None:
    """No scheduler races with these tests; one test looks at the pause itself."""
    monkeypatch.setattr(sensors, "RACE_SECONDS", 0.0)


@pytest.fixture(params=MODES)
def mode(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the arguments of one of the modes."""
    return MODES[request.param]


@pytest.fixture
def wait(mode: dict[str, Any]) -> Wait:
    """
    Return a function that runs a sensor in one of the modes, the way Airflow does.

    Each leg of it has a sensor of its own, as each has a process of its own; what passes between them passes
    through the database.
    """

    def run(task: Task, **options: Any) -> Any:
        settings = {"poke_interval": 0.1, "timeout": 20, **mode, **options}

        def sensor() -> FalQueueSensor:
            return FalQueueSensor(task_id="wait", **settings)

        while True:
            try:
                return sensor().execute(task.context)
            except TaskDeferred as deferred:
                deferral = deferred
                break
            except AirflowRescheduleException as pause:
                now = datetime.now(timezone.utc)
                task.ti.first_reschedule = task.ti.first_reschedule or now
                time.sleep(max((pause.reschedule_date - now).total_seconds(), 0))
        return sensor().resume_execution(deferral.method_name, {"event": fired(deferral)}, task.context)

    return run


def submitted(**arguments: Any) -> JobHandle:
    return FalHook().submit(MODEL, {**ARGUMENTS, **arguments}).handle  # type: ignore[union-attr]


def gaps(seen: list[dict[str, Any]]) -> list[float]:
    times = [each["time"] for each in seen]
    return [later - earlier for earlier, later in pairwise(times)]


def test_every_mode_returns_the_same_result(start: Start, wait: Wait) -> None:
    emulator = start(queue_seconds=0.2, run_seconds=0.3)
    job = submitted(seed=7)
    result = as_json(wait(Task(), handle=job.to_json()))
    address = f"{emulator.url}/files/{job.request_id}/image-1.jpeg"
    assert result["handle"] == job.to_json()
    assert (result["seed"], result["billable_units"]) == (7, "1")
    assert result["data"]["images"][0]["url"] == address
    [file] = result["media"]
    assert (file["where"], file["url"], file["width"], file["height"]) == ("images[0]", address, 64, 48)
    assert result["seconds_running"] == pytest.approx(0.3, abs=0.02)
    assert result["seconds_queued"] == pytest.approx(0.2, abs=0.15)
    assert len(calls(emulator, "result")) == 1


def test_a_finished_job_is_delivered_at_the_first_look(start: Start, wait: Wait) -> None:
    emulator = start()
    assert wait(Task(), handle=submitted().to_json(), poke_interval=60, defer_after=5)["media"]
    assert len(calls(emulator, "status")) == 1


FAILURES = [
    ({"failure": "completed-error"}, FalJobFailed),
    ({"failure": "result-500"}, FalJobFailed),
    ({"failure": "status-failure"}, FalJobFailed),
    ({"failure": "result-422"}, FalInputError),
    ({"failure": "refused"}, FalContentRefused),
]


@pytest.mark.parametrize(("settings", "error"), FAILURES)
def test_every_mode_raises_the_same_error_and_leaves_it_in_xcom(
    start: Start, wait: Wait, settings: dict[str, Any], error: type[FalError]
) -> None:
    start(run_seconds=0.2, **settings)
    job = submitted()
    task = Task()
    with pytest.raises(error, match=job.request_id) as raised:
        wait(task, handle=job.to_json())
    assert PROMPT not in str(raised.value)
    assert task.xcoms["failure"]["message"] == str(raised.value)
    assert task.xcoms["failure"]["kind"] == error.kind.value


def test_the_end_of_the_wait_says_that_the_job_may_still_run(start: Start, wait: Wait) -> None:
    start(stuck=True)
    task = Task()
    began = time.monotonic()
    with pytest.raises(FalTimeout, match=r"timed out.*still in the queue.*may still be running") as raised:
        wait(task, handle=submitted().to_json(), timeout=0.5, poke_interval=0.2)
    assert 0.5 <= time.monotonic() - began < 5
    assert isinstance(raised.value, AirflowSensorTimeout)
    assert "A retry is not made by Airflow after a sensor's time-out" in str(raised.value)
    assert task.xcoms["failure"]["outcome"] == "timed_out"


@pytest.mark.parametrize("word", ["soft_fail", "never_fail"])
def test_a_time_out_is_skipped_on_demand_and_still_leaves_its_failure(
    start: Start, wait: Wait, word: str
) -> None:
    start(stuck=True)
    task = Task()
    with pytest.raises(AirflowSkipException):
        wait(task, handle=submitted().to_json(), timeout=0.3, poke_interval=0.2, **{word: True})
    assert task.xcoms["failure"]["outcome"] == "timed_out"


def test_soft_fail_skips_no_failed_job(start: Start, wait: Wait) -> None:
    start(failure="completed-error", run_seconds=0.2)
    with pytest.raises(FalJobFailed):
        wait(Task(), handle=submitted().to_json(), soft_fail=True)


@pytest.mark.parametrize("run_seconds", [0.0, 0.3])
def test_never_fail_skips_a_failed_job(start: Start, wait: Wait, run_seconds: float) -> None:
    start(failure="completed-error", run_seconds=run_seconds)
    with pytest.raises(AirflowSkipException):
        wait(Task(), handle=submitted().to_json(), never_fail=True)


def test_looks_keep_the_poke_interval(start: Start, wait: Wait) -> None:
    emulator = start(run_seconds=0.5)
    wait(Task(), handle=submitted().to_json(), poke_interval=timedelta(seconds=0.2))
    found = gaps(calls(emulator, "status"))
    assert len(found) in (2, 3)
    assert min(found) >= 0.19


def test_without_a_poke_interval_looks_adapt_to_the_age_of_the_job(start: Start, wait: Wait) -> None:
    emulator = start(run_seconds=60.0)
    with pytest.raises(FalTimeout):
        wait(Task(), handle=submitted().to_json(), poke_interval=None, timeout=3.5)
    looks = calls(emulator, "status")
    assert len(looks) == 3
    assert 1.3 <= gaps(looks)[0] <= 1.9


def test_an_address_or_an_id_lead_to_the_job_as_well(start: Start, wait: Wait) -> None:
    emulator = start()
    job = submitted()
    foreign = f"https://queue.fal.run/fal-ai{job.status_path}"
    for way in (
        {"status_url": f"{emulator.url}/fal-ai{job.status_path}"},
        {"status_url": foreign},
        {"request_id": job.request_id, "model": MODEL},
        {"request_id": job.request_id, "model": f"fal-ai/{MODEL}", "fal_conn_id": "fal_other"},
    ):
        result = wait(Task(), **way)
        assert result["handle"]["request_id"] == job.request_id
        assert result["handle"]["fal_conn_id"] == way.get("fal_conn_id", "fal_default")


def test_the_connection_is_the_handles_unless_one_is_given(
    start: Start, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(run_seconds=0.2)
    job = FalHook("fal_other").submit(MODEL, ARGUMENTS).handle  # type: ignore[union-attr]
    set_connection(monkeypatch, "http://127.0.0.1:1")
    assert wait(Task(), handle=job.to_json())["media"]
    set_connection(monkeypatch, emulator.url, conn_id="fal_third")
    set_connection(monkeypatch, "http://127.0.0.1:1", conn_id="fal_other")
    assert wait(Task(), handle=job.to_json(), fal_conn_id="fal_third")["media"]


def test_data_uris_are_left_out_of_xcom(start: Start, wait: Wait) -> None:
    start(run_seconds=0.2)
    result = wait(Task(), handle=submitted(sync_mode=True).to_json())
    assert "base64" not in json.dumps(result)
    assert result["media"][0]["url"] is None
    assert "characters left out" in result["data"]["images"][0]["url"]


def test_a_result_too_long_for_the_trigger_is_fetched_by_the_worker(
    start: Start, wait: Wait, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MAX_BODY_BYTES", 1500)
    start(run_seconds=0.3)
    job = submitted(sync_mode=True, image_size={"width": 256, "height": 256})
    result = wait(Task(), handle=job.to_json())
    assert [file["where"] for file in result["media"]] == ["images[0]"]
    assert result["seconds_running"] == pytest.approx(0.3, abs=0.02)


def test_a_retry_looks_again_and_submits_nothing(start: Start, wait: Wait) -> None:
    emulator = start(run_seconds=0.5)
    job = submitted()
    task = Task()
    with pytest.raises(FalTimeout):
        wait(task, handle=job.to_json(), timeout=0.2)
    task.next_try(cleared=True)
    assert wait(task, handle=job.to_json())["media"]
    assert len(calls(emulator, "submit")) == 1


def test_a_wait_outlasts_a_gateway_in_trouble(start: Start, wait: Wait) -> None:
    faults = [
        f"{fault} times=2" for fault in ("html on=status", "lost-reply on=status", "server-error on=result")
    ]
    start(run_seconds=0.2, faults=[*faults, "empty on=result times=1", "heartbeat on=status times=1"])
    assert wait(Task(), handle=submitted().to_json(), poke_interval=0.05)["media"]


LINES = ("Loading the model", "Denoising: 0 %", "Denoising: 50 %", "Encoding the media")


def test_log_lines_and_positions_are_told_once_each_across_processes(
    start: Start, wait: Wait, capsys: pytest.CaptureFixture[str]
) -> None:
    start(queue_seconds=0.2, run_seconds=0.6, concurrency=1)
    submitted(prompt="the one before")
    job = submitted()
    capsys.readouterr()
    # The worker watches for a while before it defers, so that both ends of the hand-over see the job.
    wait(Task(), handle=job.to_json(), defer_after=1.1)
    told = [line for line in capsys.readouterr().out.splitlines() if job.request_id in line]
    for text in (
        *(f"| {line}" for line in LINES),
        "is in the queue at position 0",
        "is running",
        "is completed",
    ):
        assert len([line for line in told if text in line]) == 1, text
    [running] = [line for line in told if "is running" in line]
    assert "queued for 0." in running or "queued for 1." in running


def test_log_lines_can_be_left_out(start: Start, wait: Wait, capsys: pytest.CaptureFixture[str]) -> None:
    emulator = start(run_seconds=0.2)
    wait(Task(), handle=submitted().to_json(), logs=False)
    assert "Denoising" not in capsys.readouterr().out
    assert {each["query"] for each in calls(emulator, "status")} == {""}


def test_neither_key_nor_prompt_reaches_the_log(
    start: Start, wait: Wait, capsys: pytest.CaptureFixture[str]
) -> None:
    start(run_seconds=0.2, failure="refused")
    with pytest.raises(FalContentRefused):
        wait(Task(), handle=submitted().to_json())
    output = capsys.readouterr()
    for secret in (KEY, PROMPT):
        assert secret not in output.out + output.err


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"handle": "req-1"}, "handle: "),
        ({"handle": {"request_id": "req-1"}}, "handle: "),
        ({"handle": {}}, "handle: "),
        ({"status_url": "https://api.uniapi.io/fal-ai/flux"}, "status_url: "),
        ({"status_url": ""}, "status_url: "),
        ({"request_id": "../../v1/models", "model": MODEL}, "request_id: "),
        ({"request_id": "req-1", "model": "flux/.."}, "model: "),
    ],
)
def test_what_leads_to_no_job_is_refused_by_the_name_of_its_field(
    start: Start, wait: Wait, given: dict[str, Any], says: str
) -> None:
    emulator = start()
    task = Task()
    with pytest.raises(FalInputError, match=says):
        wait(task, **given)
    assert task.xcoms["failure"]["kind"] == "input"
    assert emulator.requests() == []


@pytest.mark.parametrize("field", ["handle", "status_url", "request_id"])
def test_a_value_that_an_upstream_task_did_not_bring_is_refused_by_its_name(
    start: Start, mode: dict[str, Any], field: str
) -> None:
    start()
    given: dict[str, Any] = {field: "{{ none }}"}
    sensor = FalQueueSensor(task_id="wait", model=MODEL, **mode, **given)
    setattr(sensor, field, None)  # what an XComArg becomes when there is no such XCom
    with pytest.raises(FalInputError, match=f"{field}: "):
        sensor.execute(Task().context)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({}, "exactly one of"),
        ({"model": MODEL}, "exactly one of"),
        ({"handle": {}, "status_url": "u"}, "exactly one of"),
        ({"handle": {}, "request_id": "r", "model": MODEL}, "exactly one of"),
        ({"request_id": "r"}, "request_id needs model"),
        ({"handle": {}, "mode": "reschedule"}, "needs deferrable=False"),
        ({"handle": {}, "mode": "sleep"}, "mode"),
        ({"handle": {}, "poke_interval": 0}, "poke_interval"),
        ({"handle": {}, "poke_interval": -1}, "poke_interval"),
        ({"handle": {}, "poke_interval": "5"}, "poke_interval"),
        ({"handle": {}, "timeout": 0}, "timeout"),
        ({"handle": {}, "timeout": "60"}, "timeout"),
        ({"handle": {}, "defer_after": -1}, "defer_after"),
        ({"handle": {}, "watch": "webhook"}, "watch must be one of auto, poll, stream"),
        ({"handle": {}, "soft_fail": True, "never_fail": True}, "mutually exclusive"),
        ({"handle": {}, "intervall": 5}, "intervall"),
    ],
)
def test_what_cannot_work_is_refused_when_the_dag_is_parsed(options: dict[str, Any], says: str) -> None:
    with pytest.raises((ValueError, TypeError), match=says):
        FalQueueSensor(task_id="wait", **options)


def deferral_of(job: JobHandle, **options: Any) -> Any:
    sensor = FalQueueSensor(task_id="wait", handle=job.to_json(), **options)
    with pytest.raises(TaskDeferred) as deferral:
        sensor.execute(Task().context)
    return deferral.value


def test_it_waits_in_the_triggerer_unless_told_otherwise(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sensors, "RACE_SECONDS", 7.0)
    start(stuck=True)
    began = time.time()
    deferral = deferral_of(submitted(), timeout=100, poke_interval=30, defer_after=0)
    trigger = deferral.trigger
    assert began + 100 <= trigger.deadline <= time.time() + 100
    assert began + 7 <= trigger.hold_until <= time.time() + 7
    assert began + 30 <= trigger.next_look_at <= time.time() + 30
    assert trigger.poke_interval == 30
    # Airflow's own time-out says less and cancels nothing: it comes later than the trigger's.
    assert deferral.timeout > timedelta(seconds=160)
    assert deferral.method_name == "execute_complete"


@pytest.mark.parametrize(("configured", "defers"), [("True", True), ("False", False)])
def test_none_asks_airflows_configuration(
    start: Start, monkeypatch: pytest.MonkeyPatch, configured: str, defers: bool
) -> None:
    monkeypatch.setenv("AIRFLOW__OPERATORS__DEFAULT_DEFERRABLE", configured)
    assert FalQueueSensor(task_id="wait", handle={}, deferrable=None).deferrable is defers
    assert FalQueueSensor(task_id="wait", handle={}).deferrable is True


def test_a_short_job_is_not_deferred(start: Start) -> None:
    start(run_seconds=0.4)
    sensor = FalQueueSensor(task_id="wait", handle=submitted().to_json(), poke_interval=0.1, defer_after=5)
    assert sensor.execute(Task().context)["media"]


def test_every_time_may_be_given_as_a_timedelta(start: Start, wait: Wait) -> None:
    start(run_seconds=0.3)
    job = submitted().to_json()
    times = {"defer_after": 0.1, "poke_interval": 0.1, "timeout": 20}
    given: dict[str, Any] = {name: timedelta(seconds=value) for name, value in times.items()}
    assert wait(Task(), handle=job, **given)["media"]


@pytest.mark.parametrize("event", [None, "success", {}, {"status": "success"}])
def test_an_event_of_another_kind_never_means_success(event: Any) -> None:
    sensor = FalQueueSensor(task_id="wait", handle=handle().to_json(), soft_fail=True)
    task = Task()
    with pytest.raises(FalProtocolError):
        sensor.resume_execution("execute_complete", {"event": event}, task.context)
    assert task.xcoms["failure"]["may_run"]


def test_a_worker_that_cannot_read_so_much_says_so(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    start()
    job = submitted(sync_mode=True, image_size={"width": 256, "height": 256})
    monkeypatch.setattr(blocking.BlockingTransport.__init__, "__defaults__", (1500,))
    sensor = FalQueueSensor(task_id="wait", handle=job.to_json(), deferrable=False, logs=False)
    with pytest.raises(FalProtocolError, match="too long"):
        sensor.execute(Task().context)


def test_templates_are_rendered_at_any_depth() -> None:
    sensor = FalQueueSensor(task_id="wait", handle={"request_id": "{{ id }}"}, fal_conn_id="{{ conn }}")
    sensor.render_template_fields({"id": "r", "conn": "c"})  # type: ignore[typeddict-unknown-key]
    assert (sensor.handle, sensor.fal_conn_id) == ({"request_id": "r"}, "c")


@pytest.mark.parametrize(
    ("told", "error", "again"),
    [
        ({"error": "Trigger timeout"}, FalSensorTimeout, "a clear looks at the same job again"),
        ({"error": "Trigger failure", "traceback": None}, FalProtocolError, "looks at the same job again"),
    ],
)
def test_a_sensor_whose_wait_ends_without_an_event_names_the_fate(
    told: dict[str, Any], error: type[FalError], again: str
) -> None:
    task = Task()
    sensor = FalQueueSensor(task_id="wait", handle=handle().to_json())
    with pytest.raises(error) as raised:
        sensor.resume_execution("__fail__", told, task.context)
    assert (raised.value.billed, raised.value.may_run) == ("maybe", True)
    assert again in raised.value.retry_does
    assert task.xcoms["failure"]["request_id"] == "req-1"
    assert task.xcoms["failure"]["message"] == str(raised.value)


@pytest.mark.parametrize(
    ("told", "option", "skips"),
    [
        ("Trigger timeout", "soft_fail", True),
        ("Trigger failure", "soft_fail", False),
        ("Trigger timeout", "never_fail", True),
        ("Trigger failure", "never_fail", True),
    ],
)
def test_such_a_wait_is_skipped_on_what_a_poke_is_skipped_on(told: str, option: str, skips: bool) -> None:
    options: dict[str, Any] = {option: True}
    sensor = FalQueueSensor(task_id="wait", handle=handle().to_json(), **options)
    with pytest.raises(AirflowSkipException if skips else FalProtocolError):
        sensor.resume_execution("__fail__", {"error": told}, Task().context)
