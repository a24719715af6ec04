from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Coroutine
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from airflow.sdk._shared.module_loading import import_string
from airflow.sdk.execution_time.xcom import XCom
from airflow.sdk.serde import deserialize, serialize
from airflow.triggers.base import TaskSuccessEvent

from airflow_provider_uniapi_fal.exceptions import (
    FalAuthError,
    FalContentRefused,
    FalError,
    FalInputError,
    FalJobCancelled,
    FalJobFailed,
    FalProtocolError,
    FalQueueTimeout,
    FalResultExpired,
    FalTimeout,
)
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult
from airflow_provider_uniapi_fal.protocol.watching import Watch
from airflow_provider_uniapi_fal.triggers import fal as triggers
from airflow_provider_uniapi_fal.triggers import hub
from airflow_provider_uniapi_fal.triggers.fal import FalQueueTrigger, result_of
from tests.fakes import (
    ARGUMENTS,
    KEY,
    MODEL,
    PROMPT,
    Exchange,
    ScriptedServer,
    Start,
    as_json,
    calls,
    change_key,
    handle,
    set_connection,
    wait_until,
)

if TYPE_CHECKING:
    from airflow.triggers.base import TriggerEvent

    from airflow_provider_uniapi_fal.emulator.running import Emulator

FIXTURES = Path(__file__).parent / "fixtures"
PICTURE = {"images": [{"url": "https://example.com/a.png"}]}


def submitted(**arguments: Any) -> JobHandle:
    return FalHook().submit(MODEL, {**ARGUMENTS, **arguments}).handle  # type: ignore[union-attr]


def trigger(job: JobHandle, **options: Any) -> FalQueueTrigger:
    settings: dict[str, Any] = {"poke_interval": 0.05, **options}
    return FalQueueTrigger(handle=job.to_json(), **settings)


async def events(watching: FalQueueTrigger) -> list[TriggerEvent]:
    return [event async for event in watching.run()]


def fired(watching: FalQueueTrigger) -> dict[str, Any]:
    """Run a trigger to its end; return its only event as the database gives it to the worker."""
    [event] = asyncio.run(events(watching))
    return cast("dict[str, Any]", deserialize(as_json(serialize(event.payload))))


def as_airflow_restores_it(watching: FalQueueTrigger) -> FalQueueTrigger:
    path, kwargs = watching.serialize()
    restored = deserialize(as_json(serialize(kwargs)))
    return cast("FalQueueTrigger", import_string(path)(**cast("Any", restored)))


def test_it_is_restored_from_the_database_as_it_was() -> None:
    watching = trigger(
        handle(),
        poke_interval=None,
        watch="stream",
        deadline=99.5,
        queue_deadline=88.5,
        cancel_on_timeout=True,
        cancel_on_kill=True,
        end_from_trigger=True,
        logs=False,
        progress={"state": "pending", "seen_lines": ["a"]},
        next_look_at=1.0,
        hold_until=2.0,
    )
    restored = as_airflow_restores_it(watching)
    assert type(restored) is FalQueueTrigger
    assert restored.serialize() == watching.serialize()
    assert vars(restored)["handle"] == handle(submitted_at=watching.handle["submitted_at"]).to_json()


def test_only_the_handle_is_needed() -> None:
    assert as_airflow_restores_it(FalQueueTrigger(handle=handle().to_json())).hold_until == 0.0


def test_what_lies_in_the_database_holds_neither_key_nor_prompt(start: Start) -> None:
    start(run_seconds=0.4)
    watching = trigger(submitted())
    event = fired(watching)
    assert KEY not in json.dumps([watching.serialize(), event])
    assert PROMPT not in json.dumps(watching.serialize())


def test_a_success_brings_the_result_at_once(start: Start) -> None:
    emulator = start(run_seconds=0.3)
    job = submitted()
    result = result_of(fired(as_airflow_restores_it(trigger(job))))
    assert result.handle == job
    assert [file.where for file in result.media] == ["images[0]"]
    assert result.seconds_running == pytest.approx(0.3, abs=0.01)
    assert len(calls(emulator, "result")) == 1
    assert len(calls(emulator, "submit")) == 1
    assert calls(emulator, "media") == []


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"failure": "completed-error"}, FalJobFailed),
        ({"failure": "result-500"}, FalJobFailed),
        ({"failure": "result-failure"}, FalJobFailed),
        ({"failure": "result-error"}, FalJobFailed),
        ({"failure": "result-422"}, FalInputError),
        ({"failure": "refused"}, FalContentRefused),
        ({"failure": "completed-error", "error_type": "client_cancelled"}, FalJobCancelled),
    ],
)
def test_a_failure_is_the_very_error_of_a_blocking_wait(
    start: Start, settings: dict[str, Any], error: type[FalError]
) -> None:
    start(**settings)
    job = submitted()
    event = fired(trigger(job))
    with pytest.raises(error) as deferred:
        result_of(event)
    with pytest.raises(error) as blocking:
        FalHook().result(job)
    assert deferred.value.failure.kind is blocking.value.failure.kind
    assert deferred.value.failure.request_id == job.request_id
    assert PROMPT not in str(deferred.value)


def test_at_the_deadline_it_says_that_the_job_may_still_run(start: Start) -> None:
    start(stuck=True)
    event = fired(trigger(submitted(), deadline=time.time() + 0.3, poke_interval=60.0))
    with pytest.raises(FalTimeout, match="may still be running"):
        result_of(event)


def test_a_result_too_long_for_an_event_is_fetched_by_the_worker(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "MAX_EVENT_BYTES", 100)
    emulator = start(run_seconds=0.3)
    job = submitted()
    event = fired(trigger(job))
    assert "result" not in event
    result = result_of(event)
    assert [file.where for file in result.media] == ["images[0]"]
    assert result.seconds_running == pytest.approx(0.3, abs=0.01)
    assert len(calls(emulator, "result")) == 2


def test_a_reply_too_long_for_the_event_loop_is_fetched_by_the_worker(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "MAX_BODY_BYTES", 800)
    start()
    job = submitted(sync_mode=True, image_size={"width": 256, "height": 256})
    event = fired(trigger(job, logs=False))
    assert "result" not in event
    assert "data:" not in json.dumps(event)
    [file] = result_of(event).media
    assert file.inline


def test_data_uris_never_enter_an_event(start: Start) -> None:
    start()
    event = fired(trigger(submitted(sync_mode=True)))
    assert "base64" not in json.dumps(event)
    assert event["result"]["media"][0]["url"] is None


def test_an_events_representation_tells_no_prompt(start: Start) -> None:
    start()
    [event] = asyncio.run(events(trigger(submitted())))
    assert PROMPT in json.dumps(cast("Any", event).payload)
    for text in (repr(event), str(event)):
        assert text == "FalQueueEvent<result>"


def fixture(name: str) -> Any:
    return json.loads((FIXTURES / name).read_text())


def test_the_kwargs_and_events_of_version_1_are_still_written(start: Start) -> None:
    path, kwargs = trigger(handle()).serialize()
    assert path == fixture("kwargs_v1.json")["classpath"]
    assert set(kwargs) >= set(fixture("kwargs_v1.json")["kwargs"])
    start(failure="refused")
    assert set(fired(trigger(submitted()))) == set(fixture("event_failure_v1.json"))


def test_the_kwargs_of_version_1_still_work(start: Start) -> None:
    start()
    stored = fixture("kwargs_v1.json")
    job = submitted()
    kwargs = {**stored["kwargs"], "handle": job.to_json(), "deadline": None}
    event = fired(import_string(stored["classpath"])(**kwargs))
    assert result_of(event).handle == job


def test_the_events_of_version_1_still_work(start: Start) -> None:
    start()
    result = result_of(fixture("event_result_v1.json"))
    assert (result.handle.request_id, result.seed, result.seconds_running) == ("req-1", 7, 2.5)
    assert [(file.where, file.width) for file in result.media] == [("images[0]", 64)]
    with pytest.raises(FalContentRefused, match="Request req-1: The model refused the content"):
        result_of(fixture("event_failure_v1.json"))
    job = submitted()
    to_fetch = {**fixture("event_to_fetch_v1.json"), "handle": job.to_json()}
    assert result_of(to_fetch).seconds_running == 2.5


def test_an_event_of_a_later_version_that_only_tells_more_works() -> None:
    later = fixture("event_result_v1.json")
    later["schema_version"] = 2
    later["cost"] = later["handle"]["cost"] = later["result"]["cost"] = "0.05"
    later["result"]["media"][0]["alt"] = "a lighthouse"
    assert result_of(later).seed == 7
    failed = fixture("event_failure_v1.json")
    failed["failure"]["refunded"] = True
    with pytest.raises(FalContentRefused):
        result_of(failed)


def broken(name: str, **changes: Any) -> dict[str, Any]:
    return {**fixture(name), **changes}


@pytest.mark.parametrize(
    "event",
    [
        None,
        "success",
        [],
        {},
        {"status": "success"},
        {"handle": None},
        {"handle": handle().to_json()},
        {"handle": {**handle().to_json(), "status_path": 7}, "progress": {}},
        broken("event_failure_v1.json", failure={"kind": "of a later version"}),
        broken("event_failure_v1.json", failure="it failed"),
        broken("event_failure_v1.json", failure={"kind": "timeout"}),
        broken("event_result_v1.json", result="a picture"),
        broken("event_result_v1.json", result={"media": [{"name": "a"}], "handle": handle().to_json()}),
        broken("event_to_fetch_v1.json", progress={"state": "dreaming"}),
        broken("event_to_fetch_v1.json", progress=None),
    ],
)
def test_an_event_that_cannot_be_understood_is_a_loud_error_and_never_a_success(event: Any) -> None:
    with pytest.raises(FalProtocolError, match=r"event cannot be understood.*same version") as raised:
        result_of(event)
    assert raised.value.may_run


def state(word: str, **more: Any) -> dict[str, Any]:
    return {"status": word, "request_id": "req-1", **more}


def test_many_triggers_share_one_pool_and_the_last_one_closes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    many = 20
    looks = 0

    def answer(call: Exchange) -> None:
        nonlocal looks
        looks += 1
        done = looks > 10 * many
        if call.path.split("?")[0].endswith("/status"):
            call.json(state("COMPLETED" if done else "IN_PROGRESS"))
        else:
            call.json(PICTURE)

    async def watch_all() -> list[list[TriggerEvent]]:
        jobs = [
            handle(request_id=f"req-{n}", status_path=f"/flux/requests/req-{n}/status") for n in range(many)
        ]
        return await asyncio.gather(*(events(trigger(job)) for job in jobs))

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        fired_events = asyncio.run(watch_all())
        assert [len(each) for each in fired_events] == [1] * many
        assert len(server.seen) > 10 * many
        assert server.connections <= many
        wait_until(lambda: server.open_connections == 0)


def test_looks_one_after_the_other_use_one_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(
        lambda call: call.json(state("COMPLETED" if len(server.seen) > 8 else "IN_QUEUE") | PICTURE)
    ) as server:
        set_connection(monkeypatch, server.url)
        assert "result" in fired(trigger(handle()))
        assert len(server.seen) == 10
        assert server.connections == 1


def cancelled_while(watching: FalQueueTrigger, server: ScriptedServer) -> Coroutine[Any, Any, None]:
    async def run() -> None:
        task = asyncio.ensure_future(events(watching))
        await asyncio.to_thread(wait_until, lambda: len(server.seen) > 0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == {asyncio.current_task()}

    return run()


@pytest.mark.parametrize("poke_interval", [0.01, 60.0])
def test_a_cancelled_trigger_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, poke_interval: float
) -> None:
    with ScriptedServer(lambda call: call.json(state("IN_QUEUE"))) as server:
        set_connection(monkeypatch, server.url)
        asyncio.run(cancelled_while(trigger(handle(), poke_interval=poke_interval), server))
        wait_until(lambda: server.open_connections == 0)
        assert all("/cancel" not in call.path for call in server.seen)


def test_a_key_changed_while_it_waits_is_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = []

    def answer(call: Exchange) -> None:
        keys.append(call.headers["Authorization"].removeprefix("Key "))
        if len(keys) == 1:
            change_key("sk-new")
            call.json(state("IN_PROGRESS"), 202)
        elif keys[-1] == "sk-old":
            call.json({"detail": "invalid key credentials"}, 401)
        elif call.path.endswith("logs=1"):
            call.json(state("COMPLETED"))
        else:
            call.json(PICTURE)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url, key="sk-old")
        result = result_of(fired(trigger(handle())))
        assert isinstance(result, JobResult)
        assert keys == ["sk-old", "sk-old", "sk-new", "sk-new"]
        wait_until(lambda: server.open_connections == 0)


def test_a_wrong_key_that_nobody_changed_ends_the_wait(start: Start) -> None:
    emulator = start(run_seconds=60.0)
    job = submitted()
    change_key("sk-wrong")
    with pytest.raises(FalAuthError, match="may still be running"):
        result_of(fired(trigger(job, poke_interval=0.01)))
    assert {each["status"] for each in calls(emulator, "status")} == {401}


def test_it_neither_looks_nor_fires_before_it_may(start: Start) -> None:
    emulator = start()
    job = submitted()
    began = time.time()
    event = fired(trigger(job, next_look_at=began + 0.4, hold_until=began + 0.9))
    assert time.time() >= began + 0.9
    looks = [each["time"] for each in calls(emulator, "status")]
    assert began + 0.4 <= looks[0] < began + 0.9
    assert result_of(event).handle == job


def test_a_failure_is_held_as_well(start: Start) -> None:
    start(failure="refused")
    until = time.time() + 0.4
    assert "failure" in fired(trigger(submitted(), hold_until=until))
    assert time.time() >= until


@pytest.mark.parametrize("looked", [False, True])
def test_a_worker_whose_clock_is_an_hour_ahead_holds_nothing_up(
    start: Start, monkeypatch: pytest.MonkeyPatch, looked: bool
) -> None:
    monkeypatch.setattr(triggers, "RACE_SECONDS", 0.2)
    start(run_seconds=0.1)
    ahead = time.time() + 3600
    job = replace(submitted(), submitted_at=ahead)
    progress = {"state": "running", "looked_at": ahead + 0.2, "said_at": ahead + 0.2} if looked else {}
    watching = trigger(job, next_look_at=ahead + 0.5, hold_until=ahead + 0.3, progress=progress)
    [event] = asyncio.run(asyncio.wait_for(events(watching), 60))
    assert "result" in event.payload


@pytest.mark.parametrize(
    ("rest", "options", "progress"),
    [
        # What the server asked for, and a fixed interval, are kept however long they are.
        (600.0, {}, {"said_at": 100.0}),
        (600.0, {"poke_interval": 600.0}, {}),
        # Where nobody has looked, none is meant to rest for so long.
        (60.0, {}, {}),
    ],
)
def test_a_rest_that_the_worker_meant_is_kept(
    rest: float, options: dict[str, Any], progress: dict[str, Any]
) -> None:
    watching = trigger(handle(submitted_at=50.0), next_look_at=700.0, progress=progress, **options)
    watch = Watch(handle(submitted_at=50.0))
    watch.resume(progress)
    assert watching._longest_rest(watch) == rest


def test_looks_keep_the_poke_interval(start: Start) -> None:
    emulator = start(run_seconds=1.0)
    fired(trigger(submitted(), poke_interval=0.3))
    looks = [each["time"] for each in calls(emulator, "status")]
    gaps = [later - earlier for earlier, later in pairwise(looks)]
    # On a busy machine a request comes later than it was sent, and the next one does not.
    assert 2 <= len(gaps) <= 4
    assert min(gaps) >= 0.2


def test_the_event_loop_is_never_held_up(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(call: Exchange) -> None:
        time.sleep(0.4)  # whoever waits for this on the event loop is reported
        if len(server.seen) < 3:
            call.json(
                state("IN_PROGRESS", logs=[{"message": "x" * 400, "timestamp": str(n)} for n in range(500)])
            )
        else:
            call.json(state("COMPLETED") | PICTURE)

    async def watch() -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        loop.slow_callback_duration = 0.2
        assert len(await events(trigger(handle()))) == 1

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        with caplog.at_level(logging.WARNING, "asyncio"):
            asyncio.run(watch())
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


def test_an_event_is_written_down_beside_the_event_loop(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []

    def event_of(*given: Any) -> dict[str, Any]:
        threads.append(threading.current_thread())
        return written(*given)

    written = triggers.event_of
    monkeypatch.setattr(triggers, "event_of", event_of)
    start(run_seconds=0.1)
    assert "result" in fired(trigger(submitted()))
    assert threads
    assert threading.main_thread() not in threads


def test_log_lines_and_positions_are_told_once_each(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start(queue_seconds=0.4, run_seconds=0.8, concurrency=1)
    submitted(prompt="the one before")
    job = submitted()
    capsys.readouterr()
    fired(trigger(job))
    lines = [line for line in capsys.readouterr().out.splitlines() if job.request_id in line]
    for text in (
        "| Loading the model",
        "| Denoising: 50 %",
        "| Encoding the media",
        "is running",
        "is completed",
    ):
        assert len([line for line in lines if text in line]) == 1, text
    assert len([line for line in lines if "in the queue at position 0" in line]) == 1


def test_what_the_worker_saw_before_is_not_told_again(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    start(run_seconds=60.0)
    job = submitted()
    fired(trigger(job, deadline=time.time() + 0.2))
    assert "is running" in capsys.readouterr().out
    watch = Watch(job)
    FalHook().one_round(watch)
    capsys.readouterr()
    fired(trigger(job, progress=as_json(watch.progress()), deadline=time.time() + 0.2))
    assert "is running" not in capsys.readouterr().out


def test_a_job_that_the_gateway_does_not_know_is_given_up(start: Start) -> None:
    start()
    with pytest.raises(FalResultExpired, match="may have been billed"):
        result_of(fired(trigger(handle(), poke_interval=0.01)))


# --- kills --------------------------------------------------------------------------------------------------


def cancels(emulator: Emulator) -> int:
    return len(calls(emulator, "cancel"))


@pytest.mark.parametrize(
    ("states", "count"),
    [
        ({"deferred"}, 0),
        (set(), 0),
        ({"failed"}, 1),
        ({"success"}, 1),
        ({"none"}, 1),
        ({"scheduled"}, 1),
        ({"queued"}, 1),
        ({"running"}, 0),
        ({"up_for_retry"}, 0),
    ],
)
def test_a_kill_cancels_the_job_once_and_only_if_a_user_has_killed_the_task(
    start: Start, monkeypatch: pytest.MonkeyPatch, states: set[str], count: int
) -> None:
    asked: list[Any] = []

    def states_of(ti: Any) -> set[str]:
        asked.append(ti)
        return states

    monkeypatch.setattr(triggers, "states_of", states_of)
    emulator = start(run_seconds=60.0)
    watching = trigger(submitted(), cancel_on_kill=True)
    task: Any = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=-1)
    watching.task_instance = task
    asyncio.run(watching.on_kill())
    assert asked == [task]
    assert cancels(emulator) == count


@pytest.mark.parametrize("state", ["scheduled", "queued"])
@pytest.mark.parametrize(
    ("job", "settings"),
    [
        ({}, {}),
        ({"failure": "completed-error"}, {}),
        ({"run_seconds": 60.0}, {"deadline": 1.0}),
        ({"run_seconds": 60.0}, {"queue_deadline": 1.0, "deadline": 4e9}),
        ({"run_seconds": 60.0, "faults": ["server-error on=status status=403"]}, {}),
        ({"run_seconds": 60.0, "faults": ["server-error on=status status=404"]}, {}),
    ],
    ids=["has ended", "has failed", "too late", "too late to begin", "refused", "not known"],
)
def test_a_trigger_that_may_have_fired_elsewhere_cancels_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch, state: str, job: dict[str, Any], settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(triggers, "states_of", lambda ti: {state})
    emulator = start(**job)
    watching = trigger(submitted(), cancel_on_kill=True, **settings)
    watching.task_instance = cast("Any", SimpleNamespace(task_id="t"))
    asyncio.run(watching.on_kill())
    assert cancels(emulator) == 0


def test_a_kill_cancels_nothing_unless_told_to(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "states_of", lambda ti: {"failed"})
    emulator = start(run_seconds=60.0)
    asyncio.run(trigger(submitted()).on_kill())
    assert cancels(emulator) == 0


@pytest.mark.parametrize("settings", [{}, {"failure": "refused"}, {"end_from_trigger": True}])
def test_a_kill_after_the_event_cancels_nothing(
    start: Start, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any]
) -> None:
    monkeypatch.setattr(triggers, "states_of", lambda ti: {"failed"})
    monkeypatch.setattr(FalQueueTrigger, "_push_result", lambda self, result: None)
    ends = {"end_from_trigger": settings.pop("end_from_trigger", False)}
    emulator = start(**settings)
    watching = trigger(submitted(), cancel_on_kill=True, **ends)

    async def at_the_event() -> None:
        async for _ in watching.run():
            # Airflow may cancel the trigger here, before it has gone on from its event.
            await watching.on_kill()

    asyncio.run(at_the_event())
    assert cancels(emulator) == 0


def test_a_cancel_outlives_the_second_cancellation_that_airflow_sends(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, answers = threading.Event(), threading.Event()

    def states_of(ti: Any) -> set[str]:
        asked.set()
        answers.wait(10)
        return {"failed"}

    monkeypatch.setattr(triggers, "states_of", states_of)
    emulator = start(run_seconds=60.0)
    watching = trigger(submitted(), cancel_on_kill=True)

    async def killed() -> None:
        killing = asyncio.ensure_future(watching.on_kill())
        await asyncio.to_thread(asked.wait, 10)
        killing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await killing
        assert cancels(emulator) == 0
        answers.set()
        await asyncio.to_thread(wait_until, lambda: cancels(emulator) == 1)

    try:
        asyncio.run(killed())
    finally:
        answers.set()


def test_a_time_out_in_the_triggerer_cancels_the_job_and_says_so(start: Start) -> None:
    emulator = start(stuck=True)
    late = trigger(submitted(), queue_deadline=time.time() + 0.2, cancel_on_timeout=True)
    with pytest.raises(FalQueueTimeout, match="was removed from the queue and will not run"):
        result_of(fired(as_airflow_restores_it(late)))
    assert cancels(emulator) == 1


# --- ending in the trigger ----------------------------------------------------------------------------------


def test_a_success_can_end_the_task_in_the_trigger_with_its_result_written_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(FalQueueTrigger, "_push_result", lambda self, result: written.append(result))
    start(run_seconds=0.2)
    job = submitted()
    [event] = asyncio.run(events(trigger(job, end_from_trigger=True)))
    assert type(event) is TaskSuccessEvent
    assert not event.xcoms  # Airflow would encode it a second time
    [result] = written
    assert JobResult.from_json(result).handle == job


def test_the_result_is_written_where_the_operator_would_have_returned_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(XCom, "set", lambda **values: written.append(values))
    watching = trigger(handle(), end_from_trigger=True)
    task: Any = SimpleNamespace(dag_id="d", task_id="t", run_id="r", map_index=3)
    watching.task_instance = task
    watching._push_result({"media": []})
    assert written == [
        {
            "key": "return_value",
            "value": {"media": []},
            "dag_id": "d",
            "task_id": "t",
            "run_id": "r",
            "map_index": 3,
        }
    ]


@pytest.mark.parametrize("ends", ["failure", "time-out", "too long"])
def test_everything_but_a_success_in_hand_still_resumes_the_worker(
    start: Start, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    written: list[dict[str, Any]] = []
    monkeypatch.setattr(FalQueueTrigger, "_push_result", lambda self, result: written.append(result))
    if ends == "too long":
        monkeypatch.setattr(triggers, "MAX_EVENT_BYTES", 100)
    start(failure="refused" if ends == "failure" else "none", stuck=ends == "time-out")
    watching = trigger(submitted(), end_from_trigger=True, deadline=time.time() + 0.3)
    [event] = asyncio.run(events(watching))
    assert type(event) is triggers.FalQueueEvent
    assert ("failure" in event.payload) is (ends != "too long")
    assert written == []


def test_a_connection_that_breaks_while_the_job_runs_leaves_the_job_in_doubt(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(run_seconds=60.0)
    job = submitted()
    set_connection(monkeypatch, emulator.url, connect_timeout="soon")
    with pytest.raises(FalInputError, match="connect_timeout") as raised:
        result_of(fired(trigger(job)))
    assert (raised.value.billed, raised.value.may_run) == ("maybe", True)
    assert raised.value.failure.request_id == job.request_id
