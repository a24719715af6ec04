"""The trigger of a batch: it watches what the journal names, keeps each result there, and calls a worker in time."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from airflow.sdk import ObjectStoragePath
from airflow.sdk._shared.module_loading import import_string
from airflow.sdk.serde import deserialize, serialize

from airflow_provider_uniapi_fal.exceptions import FalSubmitOutcomeUnknown
from airflow_provider_uniapi_fal.hooks import fal as hooks
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.ledger import journal as journals
from airflow_provider_uniapi_fal.ledger.journal import Journal, Owner
from airflow_provider_uniapi_fal.ledger.rows import Entry, Step, Try, state_of
from airflow_provider_uniapi_fal.protocol import cadence
from airflow_provider_uniapi_fal.triggers import batch as triggers
from airflow_provider_uniapi_fal.triggers.batch import (
    FalBatchTrigger,
    LandSettings,
    WatchSettings,
    began_of,
    learn_from_event,
)
from airflow_provider_uniapi_fal.triggers.hub import Waits
from tests.fakes import ARGUMENTS, KEY, MODEL, PROMPT, as_json, calls, handle, posts, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_uniapi_fal.emulator.running import Emulator
    from airflow_provider_uniapi_fal.protocol.watching import Watch
    from tests.fakes import Start


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triggers, "GATHER_SECONDS", 0.05)


@pytest.fixture
def folder(tmp_path: Path) -> ObjectStoragePath:
    return ObjectStoragePath(f"file://{tmp_path}/night/manifest.journal")


def submit(folder: ObjectStoragePath, *keys: str) -> None:
    """Leave a journal as a worker leaves it that has submitted a job for each key."""
    journal = Journal.opened(folder, Owner("nights", "tonight", "batch"))
    entries = []
    for key in keys:
        accepted: Any = FalHook().submit(MODEL, {**ARGUMENTS, "prompt": f"{PROMPT} {key}"})
        entries.append(Entry(key, 1, Step.SUBMITTED, "asked", 1, 2, time.time(), handle=accepted.handle))
    journal.write(entries)


def trigger(folder: ObjectStoragePath, **options: Any) -> FalBatchTrigger:
    watch = {"began": time.time(), "poke_interval": 0.05, **options.pop("watch", {})}
    return FalBatchTrigger(journal=str(folder), watch=watch, try_number=1, max_tries=2, **options)


def as_airflow_restores_it(watching: FalBatchTrigger) -> FalBatchTrigger:
    path, kwargs = watching.serialize()
    restored = deserialize(as_json(serialize(kwargs)))
    return cast("FalBatchTrigger", import_string(path)(**cast("Any", restored)))


def fired(watching: FalBatchTrigger) -> dict[str, Any]:
    async def run() -> list[Any]:
        return [event.payload async for event in watching.run()]

    [payload] = asyncio.run(run())
    return cast("dict[str, Any]", deserialize(as_json(serialize(payload))))


def steps(folder: ObjectStoragePath) -> dict[str, Step]:
    return {key: state.step for key, state in Journal.reading(folder).rows.items()}


def test_it_is_restored_from_the_database_as_it_was(folder: ObjectStoragePath) -> None:
    watching = FalBatchTrigger.of(
        Journal(folder),
        WatchSettings(99.5, 10.0, 5.0, False, 2.0),
        LandSettings(7, 8.0, 3.0, 5),
        Try(3, 4),
        cancel_on_kill=True,
        hold_until=6.0,
    )
    restored = as_airflow_restores_it(watching)
    assert restored.serialize() == watching.serialize()
    assert WatchSettings(**restored.watch) == WatchSettings(99.5, 10.0, 5.0, False, 2.0)


def test_what_an_earlier_version_wrote_into_the_database_is_restored(folder: ObjectStoragePath) -> None:
    before: dict[str, Any] = {
        "journal": str(folder),
        "watch": {"began": 99.5, "timeout": 10.0},
        "land_every": 7,
        "land_after": 8.0,
        "land_ahead": 3.0,
        "try_number": 3,
        "max_tries": 4,
        "cancel_on_kill": True,
        "hold_until": 6.0,
    }
    path, kwargs = FalBatchTrigger(**before).serialize()
    assert {name: kwargs[name] for name in before} == before
    assert path == "airflow_provider_uniapi_fal.triggers.batch.FalBatchTrigger"


def test_what_lies_in_the_database_names_the_journal_and_no_job_key_or_prompt(
    start: Start, folder: ObjectStoragePath
) -> None:
    start(run_seconds=0.2)
    submit(folder, "a", "b")
    watching = trigger(folder)
    event = fired(watching)
    written = json.dumps([watching.serialize(), event])
    for secret in (
        KEY,
        PROMPT,
        *(s.handle.request_id for s in Journal.reading(folder).rows.values() if s.handle),
    ):
        assert secret not in written
    assert began_of(event) == watching.watch["began"]


def test_it_fires_when_all_have_ended_and_keeps_each_result_in_the_journal(
    start: Start, folder: ObjectStoragePath
) -> None:
    emulator = start(run_seconds=0.2)
    submit(folder, "a", "b", "c")
    event = fired(as_airflow_restores_it(trigger(folder)))
    assert (event["ready"], event["running"]) == (3, 0)
    assert set(steps(folder).values()) == {Step.SUCCEEDED}
    found = dict(Journal.reading(folder).results(["a", "b", "c"]))
    assert {key: result.media[0].where for key, result in found.items()} == dict.fromkeys("abc", "images[0]")
    assert (len(calls(emulator, "result")), calls(emulator, "media"), posts(emulator)) == (3, [], 3)


def test_two_rows_whose_jobs_have_one_request_id_are_two_waits(
    start: Start, folder: ObjectStoragePath
) -> None:
    start(run_seconds=0.2)
    submit(folder, "a")
    journal = Journal.reading(folder)
    journal.write([replace(journal.rows["a"].entry, key="b")])
    event = fired(trigger(folder))
    assert (event["ready"], event["running"]) == (2, 0)
    assert steps(folder) == {"a": Step.SUCCEEDED, "b": Step.SUCCEEDED}


@pytest.mark.parametrize(
    ("settings", "ready"), [({"land_every": 2}, 2), ({"land_every": 9, "land_after": 0.2}, 2)]
)
def test_it_fires_for_enough_results_or_after_some_time_while_others_run(
    start: Start, folder: ObjectStoragePath, settings: dict[str, Any], ready: int
) -> None:
    emulator = start()
    emulator.add_fault(fault="job", match=f"{PROMPT} c", stuck=True)
    submit(folder, "a", "b", "c")
    event = fired(trigger(folder, **settings))
    assert (event["ready"], event["running"]) == (ready, 1)
    assert steps(folder)["c"] is Step.SUBMITTED


@pytest.mark.parametrize("how", [{"land_every": 1, "land_after": 60.0}, {"land_after": 0.3}])
def test_a_job_that_fails_makes_room_which_calls_a_worker_if_rows_wait_for_it(
    start: Start, folder: ObjectStoragePath, how: dict[str, Any]
) -> None:
    emulator = start(run_seconds=30.0)
    emulator.add_fault(fault="job", match=f"{PROMPT} a", failure="refused", run_seconds=0)
    submit(folder, "a", "b")
    event = fired(trigger(folder, room_below=2, **how))
    assert (event["ready"], event["running"]) == (0, 1)
    assert steps(folder) == {"a": Step.ENDED, "b": Step.SUBMITTED}


def test_it_holds_its_event_while_a_resumed_task_may_be_failed_and_gathers_more(
    start: Start, folder: ObjectStoragePath
) -> None:
    start()
    submit(folder, "a", "b", "c")
    until = time.time() + 1.0
    event = fired(trigger(folder, land_every=1, hold_until=until))
    assert time.time() >= until
    assert event["ready"] == 3


def test_a_worker_whose_clock_is_an_hour_ahead_holds_no_event_up(
    start: Start, folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "RACE_SECONDS", 0.2)
    start()
    submit(folder, "a")
    watching = trigger(folder, land_every=1, hold_until=time.time() + 3600)

    async def run() -> list[Any]:
        return [event.payload async for event in watching.run()]

    [event] = asyncio.run(asyncio.wait_for(run(), 60))
    assert event["ready"] == 1


def test_a_job_that_was_submitted_by_a_clock_that_is_ahead_rests_no_longer_than_others() -> None:
    settings = WatchSettings(began=0.0)
    assert settings.rest(handle(submitted_at=5000.0), 1000.0) == triggers.REST_SECONDS
    assert settings.rest(handle(submitted_at=990.0), 1000.0) == triggers.REST_SECONDS - 10


def test_a_result_that_only_a_worker_can_fetch_calls_one_at_once(
    start: Start, folder: ObjectStoragePath
) -> None:
    emulator = start(
        faults=[{"fault": "oversized", "on": "result", "match": f"{PROMPT} a", "size": 2_000_000}]
    )
    emulator.add_fault(fault="job", match=f"{PROMPT} b", stuck=True)
    submit(folder, "a", "b")
    event = fired(trigger(folder))
    assert (event["ready"], event["running"]) == (1, 1)
    assert Journal.reading(folder).rows["a"].spool is None


def test_what_ends_while_results_are_written_down_is_not_asked_for_again(
    start: Start, folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(run_seconds=0.2)
    keys = "abcdef"
    submit(folder, *keys)
    monkeypatch.setattr(triggers, "GATHER_MOST", 2)
    ended: list[Any] = []
    end, write = Waits.ended, Journal.write

    def noted(waiting: Waits, *wait: Any) -> None:
        end(waiting, *wait)
        ended.append(wait)

    def slowly(journal: Journal, entries: Any) -> None:
        wait_until(lambda: len(ended) == len(keys))
        write(journal, entries)

    monkeypatch.setattr(Waits, "ended", noted)
    monkeypatch.setattr(Journal, "write", slowly)
    event = fired(trigger(folder, land_every=2))
    assert (event["ready"], event["running"]) == (len(keys), 0)


def test_a_store_that_fails_for_a_while_ends_no_wait_and_holds_up_no_other_trigger(
    start: Start, folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(run_seconds=0.2)
    submit(folder, "a", "b")
    put, waited = journals._put, list[threading.Thread]()

    def away(content: bytes, target: ObjectStoragePath) -> None:
        if len(waited) < journals.WRITE_ATTEMPTS - 1:
            raise OSError("SlowDown")
        put(content, target)

    def pause(attempt: int, jitter: float) -> float:
        waited.append(threading.current_thread())
        return 0.0

    monkeypatch.setattr(journals, "_put", away)
    monkeypatch.setattr(journals, "backoff", pause)
    event = fired(trigger(folder))
    assert (event["ready"], event["running"]) == (2, 0)
    assert steps(folder) == {"a": Step.SUCCEEDED, "b": Step.SUCCEEDED}
    assert len(waited) == journals.WRITE_ATTEMPTS - 1
    assert threading.main_thread() not in waited


def test_a_store_that_is_away_takes_no_thread_in_which_the_loop_of_all_triggers_resolves_names(
    start: Start, folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(run_seconds=0.2)
    submit(folder, "a")
    put, away, back = journals._put, threading.Event(), threading.Event()

    def hang(content: bytes, target: ObjectStoragePath) -> None:
        away.set()
        assert back.wait(60)
        put(content, target)

    monkeypatch.setattr(journals, "_put", hang)

    async def run() -> list[Any]:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        events = asyncio.ensure_future(_all(trigger(folder)))
        while not away.is_set():
            assert not events.done()
            await asyncio.sleep(0.01)
        try:
            await asyncio.wait_for(loop.getaddrinfo("localhost", 80), 30)
        finally:
            back.set()
        return await events

    assert len(asyncio.run(run())) == 1


async def _all(watching: FalBatchTrigger) -> list[Any]:
    return [event.payload async for event in watching.run()]


def test_a_few_jobs_of_a_model_that_is_not_known_tell_when_to_look_at_the_others(
    start: Start, folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "SCOUTS", 2)
    monkeypatch.setattr(cadence, "SHORTEST", 0.3)
    emulator = start(run_seconds=0.8)
    submit(folder, *"abcdefgh")
    event = fired(trigger(folder, watch={"poke_interval": None}))
    assert (event["ready"], event["running"]) == (8, 0)
    looks = [job["calls"]["status"] for job in emulator.account()["jobs"]]
    assert min(looks[:2]) > 1
    assert set(looks[2:]) == {1}


def test_jobs_are_looked_at_in_time_although_the_first_ones_tell_nothing(
    start: Start, folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "SCOUTS", 1)
    monkeypatch.setattr(triggers, "REST_SECONDS", 0.3)
    monkeypatch.setattr(cadence, "SHORTEST", 0.1)
    emulator = start(run_seconds=0.2)
    emulator.add_fault(fault="job", match=f"{PROMPT} a", stuck=True)
    submit(folder, "a", "b", "c")
    event = fired(trigger(folder, watch={"poke_interval": None}, land_every=2))
    assert (event["ready"], event["running"]) == (2, 1)


def test_a_batch_that_follows_streams_asks_for_no_status(start: Start, folder: ObjectStoragePath) -> None:
    emulator = start(run_seconds=0.5, stream="offered")
    submit(folder, "a", "b", "c")
    event = fired(as_airflow_restores_it(trigger(folder, watch={"poke_interval": None, "by": "stream"})))
    assert event["ready"] == 3
    assert (len(calls(emulator, "stream")), len(calls(emulator, "result"))) == (3, 3)
    assert calls(emulator, "status") == []


def test_many_waits_are_begun_a_few_at_a_time_so_that_other_triggers_have_their_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triggers, "BEGUN_TOGETHER", 2)
    begun: list[Watch] = []
    never = SimpleNamespace(add=begun.append, next_end=asyncio.Event().wait)

    async def run() -> list[int]:
        watching = triggers.Watching(cast("Any", never), WatchSettings(0.0, poke_interval=1.0), Try())
        for number in range(5):
            job = handle(request_id=f"{number:036}", submitted_at=0.0)
            entry = Entry(f"{number}", 1, Step.SUBMITTED, "asked", 1, 2, 0.0, handle=job)
            watching.add(state_of(entry, (1, number, "a"), "segment"))
        counts = []
        for _ in range(4):
            await watching.take(0.0, gather=0.0)
            counts.append(len(begun))
        await watching.close()
        return counts

    assert asyncio.run(run()) == [2, 4, 5, 5]


def test_another_triggerer_goes_on_where_the_first_one_was(start: Start, folder: ObjectStoragePath) -> None:
    emulator = start()
    emulator.add_fault(fault="job", match=f"{PROMPT} b", run_seconds=1.5)
    submit(folder, "a", "b")

    async def broken_off() -> None:
        watching = asyncio.ensure_future(anext(trigger(folder).run()))
        while steps(folder)["a"] is not Step.SUCCEEDED:
            await asyncio.sleep(0.02)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)

    asyncio.run(broken_off())
    event = fired(trigger(folder))
    assert (event["ready"], event["running"]) == (2, 0)
    assert len(calls(emulator, "result")) == 2


@pytest.mark.parametrize(
    ("job", "watch", "step"),
    [
        ({"failure": "refused"}, {}, Step.ENDED),
        ({"stuck": True}, {"queue_timeout": 0.2}, Step.ENDED),
        ({"stuck": True, "cancel": "ignored"}, {"timeout": 0.2}, Step.OUT_OF_SIGHT),
    ],
)
def test_one_that_fails_is_written_down_with_its_fate_and_touches_no_other(
    start: Start, folder: ObjectStoragePath, job: dict[str, Any], watch: dict[str, Any], step: Step
) -> None:
    emulator = start()
    emulator.add_fault(fault="job", match=f"{PROMPT} b", **job)
    submit(folder, "a", "b")
    fired(trigger(folder, watch=watch))
    assert steps(folder) == {"a": Step.SUCCEEDED, "b": step}
    failure = Journal.reading(folder).rows["b"].entry.failure
    assert failure is not None
    assert failure.may_run is (step is Step.OUT_OF_SIGHT)
    assert failure.request_id is not None


def test_a_journal_that_cannot_be_read_is_the_workers_error(start: Start, folder: ObjectStoragePath) -> None:
    start()
    submit(folder, "a")
    [segment] = (folder / "segments").iterdir()
    segment.write_text("garbage")
    event = fired(trigger(folder))
    with pytest.raises(FalSubmitOutcomeUnknown, match="journal cannot be read"):
        began_of(event)


@pytest.mark.parametrize(
    ("states", "cancels"),
    [({"deferred"}, 0), ({"running"}, 0), (set(), 0), ({"success"}, 2), ({"none"}, 0), ({"queued"}, 0)],
)
def test_a_kill_cancels_all_that_run_only_if_a_user_has_marked_the_task(
    start: Start,
    folder: ObjectStoragePath,
    monkeypatch: pytest.MonkeyPatch,
    states: set[str],
    cancels: int,
) -> None:
    emulator: Emulator = start(stuck=True)
    submit(folder, "a", "b")
    monkeypatch.setattr(triggers, "states_of", lambda ti: states)
    watching = trigger(folder, cancel_on_kill=True)
    watching.task_instance = cast("Any", SimpleNamespace(task_id="batch"))

    async def killed() -> None:
        running = asyncio.ensure_future(anext(watching.run()))
        await asyncio.sleep(0.2)
        # As Airflow does it: the handler itself is cancelled again after a while.
        handler = asyncio.ensure_future(watching.on_kill())
        await asyncio.sleep(0.01)
        handler.cancel()
        running.cancel()
        await asyncio.gather(handler, running, return_exceptions=True)

    asyncio.run(killed())
    wait_until(lambda: len(calls(emulator, "cancel")) == cancels)


@pytest.mark.parametrize(
    ("state", "due"),
    [
        ({"ready": 0, "since": 5.0, "running": 3, "urgent": False}, float("inf")),
        ({"ready": 0, "since": 5.0, "running": 0, "urgent": False}, 0.0),
        ({"ready": 99, "since": 5.0, "running": 1, "urgent": False}, 65.0),
        ({"ready": 100, "since": 5.0, "running": 1, "urgent": False}, 0.0),
        ({"ready": 1, "since": 5.0, "running": 1, "urgent": True}, 0.0),
    ],
)
def test_a_worker_is_called_for_enough_results_for_old_ones_or_at_the_end(
    state: dict[str, Any], due: float
) -> None:
    assert LandSettings().due(**state) == due


@pytest.mark.parametrize(
    ("about", "due"),
    [
        ({"over_at": 40.0}, 35.0),
        ({"over_at": 90.0}, 65.0),  # those that are ready are not left until then
        ({"over_at": 17.0}, 12.0),
        ({"over_at": 15.0}, 65.0),  # long overdue
        ({"over_at": float("inf")}, 65.0),  # of an unknown model
        ({"over_at": 40.0, "ready": 0}, float("inf")),
        ({"over_at": 40.0, "running": 0}, 0.0),
    ],
)
def test_a_worker_is_called_a_little_before_the_last_job_should_end(
    about: dict[str, Any], due: float
) -> None:
    state: dict[str, Any] = {"ready": 1, "since": 5.0, "running": 3, "urgent": False, "now": 20.0}
    assert LandSettings(ahead=5.0).due(**{**state, **about}) == due


def test_without_that_setting_the_expected_end_calls_nobody() -> None:
    due = LandSettings().due(ready=1, since=5.0, running=3, urgent=False, over_at=40.0, now=20.0)
    assert due == 65.0


def know(seconds: float) -> None:
    """Let so many jobs have taken so long that two more make no difference."""
    for _ in range(cadence.JOBS_REMEMBERED):
        hooks.learn(MODEL, seconds_queued=0.0, seconds_running=seconds)


def test_a_worker_is_at_work_when_the_last_jobs_end(start: Start, folder: ObjectStoragePath) -> None:
    emulator = start()
    emulator.add_fault(fault="job", match=f"{PROMPT} c", run_seconds=60.0)
    know(30.0)
    submit(folder, "a", "b", "c")
    event = fired(as_airflow_restores_it(trigger(folder, land_ahead=30.0)))
    assert event["ready"] + event["running"] == 3
    assert event["ready"] >= 1
    assert event["running"] >= 1


def test_a_job_that_is_long_overdue_calls_no_worker(start: Start, folder: ObjectStoragePath) -> None:
    emulator = start()
    emulator.add_fault(fault="job", match=f"{PROMPT} c", run_seconds=2.0)
    know(0.001)
    submit(folder, "a", "b", "c")
    event = fired(trigger(folder, land_ahead=0.001))
    assert (event["ready"], event["running"]) == (3, 0)


def test_a_worker_is_told_how_long_the_jobs_take_that_still_run(
    start: Start, folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start()
    emulator.add_fault(fault="job", match=f"{PROMPT} b", run_seconds=60.0)
    know(30.0)
    submit(folder, "a", "b")
    event = fired(trigger(folder, land_every=1))
    assert (event["ready"], event["running"]) == (1, 1)
    monkeypatch.setattr(hooks, "EXPERIENCE", cadence.Experience())
    learn_from_event(event)
    assert hooks.usual_seconds(MODEL) == pytest.approx(30.0)


def test_of_a_model_of_which_no_job_runs_any_more_nothing_is_told(
    start: Start, folder: ObjectStoragePath
) -> None:
    start()
    know(30.0)
    submit(folder, "a")
    assert fired(trigger(folder))["known"] == {}


def test_of_many_models_those_with_the_most_jobs_are_told(
    start: Start, folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triggers, "MODELS_TOLD", 1)
    emulator = start()
    emulator.add_fault(fault="job", match=f"{PROMPT} b", run_seconds=60.0)
    emulator.add_fault(fault="job", match=f"{PROMPT} c", run_seconds=60.0)
    know(30.0)
    for _ in range(cadence.KNOWN_AFTER):
        hooks.learn("another/model", seconds_queued=0.0, seconds_running=60.0)
    submit(folder, "a", "b", "c")
    journal = Journal.reading(folder)
    journal.write(
        [
            Entry(
                "x",
                1,
                Step.SUBMITTED,
                "asked",
                1,
                2,
                time.time(),
                handle=replace(handle(), model="another/model"),
            )
        ]
    )
    event = fired(trigger(folder, land_every=1, watch={"poke_interval": 0.05}))
    assert event["running"] == 3
    assert list(event["known"]) == [MODEL]


@pytest.mark.parametrize(
    "known",
    [None, [], "known", {MODEL: None}, {MODEL: [1.0]}, {MODEL: [["a", "b"]]}, {MODEL: [[1.0, 2.0, 3.0]]}],
)
def test_what_cannot_be_learned_from_an_event_ends_no_batch(
    known: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hooks, "EXPERIENCE", cadence.Experience())
    learn_from_event({"journal": "j", "began": 1.0, "known": known})
    learn_from_event({"journal": "j", "began": 1.0})
    assert hooks.usual_seconds(MODEL) is None


def test_what_was_landed_before_tells_how_long_the_other_jobs_take(
    start: Start, folder: ObjectStoragePath
) -> None:
    start(run_seconds=0.2)
    submit(folder, "a", "b")
    landed = {"seconds_queued": 1.0, "seconds_running": 2.0}
    journal = Journal.reading(folder)
    journal.write(
        Entry(f"{n}", 1, Step.SUBMITTED, "asked", 1, 2, time.time(), handle=handle()) for n in range(9)
    )
    journal.write(
        Entry(f"{n}", 1, Step.DELIVERED, "asked", 1, 2, time.time(), landed=landed) for n in range(9)
    )
    fired(trigger(folder, watch={"poke_interval": 0.05}))
    known = hooks.usual_seconds(MODEL)
    assert known is not None
    assert known > 2.0


def test_nothing_is_learned_of_a_model_that_nobody_waits_for(folder: ObjectStoragePath, start: Start) -> None:
    start()
    journal = Journal.opened(folder, Owner("nights", "tonight", "batch"))
    landed = {"seconds_queued": 1.0, "seconds_running": 2.0}
    journal.write(
        Entry(f"{n}", 1, Step.SUBMITTED, "asked", 1, 2, time.time(), handle=handle()) for n in range(9)
    )
    journal.write(
        Entry(f"{n}", 1, Step.DELIVERED, "asked", 1, 2, time.time(), landed=landed) for n in range(9)
    )
    triggers.learn_from(Journal.reading(folder))
    assert hooks.usual_seconds(MODEL) is None


def test_a_long_journal_teaches_no_more_jobs_than_are_remembered(
    start: Start, folder: ObjectStoragePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    start()
    journal = Journal.opened(folder, Owner("nights", "tonight", "batch"))
    landed = {"seconds_queued": 1.0, "seconds_running": 2.0}
    for step, more in ((Step.SUBMITTED, {"handle": handle()}), (Step.DELIVERED, {"landed": landed})):
        journal.write(Entry(f"{n}", 1, step, "asked", 1, 2, time.time(), **more) for n in range(500))
    journal.write([Entry("runs", 1, Step.SUBMITTED, "asked", 1, 2, time.time(), handle=handle())])
    learned: list[Any] = []
    monkeypatch.setattr(triggers, "learn", lambda *args, **kwargs: learned.append(args))
    triggers.learn_from(journal)
    assert len(learned) == cadence.JOBS_REMEMBERED
