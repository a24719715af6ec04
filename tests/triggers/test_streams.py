"""Waits that follow a status stream, and what they do where there is none."""

from __future__ import annotations

import asyncio
import threading
import time
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.protocol import cadence, streaming, watching
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult
from airflow_provider_uniapi_fal.protocol.streaming import Trust
from airflow_provider_uniapi_fal.protocol.watching import RoundEnd, Watch
from airflow_provider_uniapi_fal.triggers import hub
from airflow_provider_uniapi_fal.triggers.hub import waits
from tests.fakes import (
    ARGUMENTS,
    MODEL,
    Exchange,
    ScriptedServer,
    Start,
    calls,
    change_key,
    handle,
    set_connection,
)

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.streaming import WatchBy

DONE = {"status": "COMPLETED", "images": [{"url": "https://example.com/a.png"}]}

#: Jobs are so short that polls by the cadence come well after their end.
RUN = {"run_seconds": 0.7}


def submitted(count: int, **arguments: Any) -> list[JobHandle]:
    return [FalHook().submit(MODEL, {**ARGUMENTS, **arguments}).handle for _ in range(count)]  # type: ignore[union-attr]


def waited(jobs: list[JobHandle], **options: Any) -> list[tuple[float, RoundEnd]]:
    """Wait for jobs; return when each was known to have ended, and how."""

    async def run() -> list[tuple[float, RoundEnd]]:
        found = []
        async with waits(say=lambda line: None) as waiting:
            for job in jobs:
                waiting.add(Watch(job, **options))
            while waiting.open:
                _, end = await waiting.next_end()
                found.append((time.time(), end))
        assert len(asyncio.all_tasks()) == 1
        return found

    return asyncio.run(run())


def all_succeed(ends: list[tuple[float, RoundEnd]]) -> bool:
    return all(isinstance(end, JobResult) for _, end in ends)


def test_a_stream_takes_no_polls_and_tells_the_end_at_once(start: Start) -> None:
    emulator = start(stream="offered", **RUN)
    jobs = submitted(20)
    ends = waited(jobs, by="stream")
    assert all_succeed(ends)
    assert (len(calls(emulator, "stream")), len(calls(emulator, "result"))) == (20, 20)
    assert calls(emulator, "status") == []


@pytest.mark.parametrize("stream", ["missing", "not-allowed"])
@pytest.mark.parametrize("by", ["auto", "stream"])
def test_a_refusal_leads_to_polls_and_is_remembered(start: Start, stream: str, by: str) -> None:
    emulator = start(stream=stream, **RUN)
    assert all_succeed(waited(submitted(1), by=by))
    assert all_succeed(waited(submitted(3), by=by))
    assert len(calls(emulator, "stream")) == 1


@pytest.mark.parametrize("stream", ["buffered", "silent"])
def test_a_silent_stream_is_given_up_and_remembered(
    start: Start, monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    monkeypatch.setattr(hub, "SILENCE_SECONDS", 0.3)
    monkeypatch.setattr(hub, "OPENING_SECONDS", 0.3)
    emulator = start(stream=stream, run_seconds=1.0)
    for number in range(1, 5):
        assert all_succeed(waited(submitted(1), by="stream"))
        # One may be an accident of one connection.
        assert len(calls(emulator, "stream")) >= min(number, streaming.MAX_CUTS)
    assert len(calls(emulator, "stream")) == streaming.MAX_CUTS


@pytest.mark.parametrize("status", [401, 402, 403, 500, 504])
@pytest.mark.parametrize("by", ["auto", "stream"])
def test_streams_that_are_refused_without_end_are_asked_for_a_few_times_only(
    monkeypatch: pytest.MonkeyPatch, status: int, by: WatchBy
) -> None:
    streams, looks = 0, 0

    def answer(call: Exchange) -> None:
        nonlocal streams, looks
        if call.path.partition("?")[0].endswith("/stream"):
            streams += 1
            call.answer(b"", status=status)
        else:
            looks += 1
            call.json({"status": "IN_PROGRESS"} if looks < 8 else DONE)

    monkeypatch.setattr(cadence, "SHORTEST", 0.02)
    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        [(_, end)] = waited([handle()], by=by, share_of_age=0.0)
    assert isinstance(end, JobResult)
    # The last look fetches the result.
    assert (streams, looks) == (streaming.MAX_CUTS, 9)


def test_a_stream_that_is_refused_for_being_too_much_is_not_followed_by_a_poll_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times: list[tuple[str, float]] = []

    def answer(call: Exchange) -> None:
        kind = "stream" if call.path.partition("?")[0].endswith("/stream") else "look"
        times.append((kind, time.monotonic()))
        if kind == "stream":
            call.answer(b"", status=429, Retry_After="1")
        else:
            call.json(DONE)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        assert all_succeed(waited([handle(request_id=f"req-{number}") for number in range(5)], by="stream"))
    refused = max(moment for kind, moment in times if kind == "stream")
    assert min(moment for kind, moment in times if kind == "look") - refused > 0.9


def test_streams_that_are_cut_off_are_tried_a_few_times_only(start: Start) -> None:
    emulator = start(stream="cut", run_seconds=4.0)
    assert all_succeed(waited(submitted(4), by="stream"))
    assert 3 <= len(calls(emulator, "stream")) <= 4


def test_auto_lets_one_job_find_out_while_it_is_polled_like_the_others(start: Start) -> None:
    emulator = start(stream="offered", run_seconds=2.2)
    assert all_succeed(waited(submitted(5)))
    streams = [each["time"] for each in calls(emulator, "stream")]
    polls = len(calls(emulator, "status"))
    assert [moment for moment in streams if moment < streams[0] + 1.0] == streams[:1]
    assert polls >= 1
    assert all_succeed(waited(submitted(5)))
    assert len(calls(emulator, "stream")) == len(streams) + 5
    assert len(calls(emulator, "status")) == polls


def test_auto_follows_the_others_while_the_first_job_still_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    done = threading.Event()
    asked: list[str] = []

    def answer(call: Exchange) -> None:
        path = call.path.partition("?")[0]
        asked.append(path.rpartition("/requests/")[2])
        if path.endswith("/stream"):
            call.head(None, "text/event-stream")
            events(call, "IN_PROGRESS")
            if "req-long" in path:
                while not done.wait(0.05):
                    call.write(b": still here\n\n")
            events(call, "COMPLETED")
            call.hang_up()
        else:
            call.json({"status": "IN_PROGRESS"} if path.endswith("/status") else DONE)

    def job(name: str) -> Watch:
        path = f"/flux/requests/req-{name}"
        return Watch(handle(request_id=f"req-{name}", status_path=f"{path}/status", response_path=path))

    async def run() -> list[RoundEnd]:
        async with waits(say=lambda line: None) as waiting:
            waiting.add(job("long"))
            [line] = hub._lines[asyncio.get_running_loop()].values()
            deadline = time.monotonic() + 20
            while line._known.streams.trust("auto", time.monotonic()) is not Trust.FULL:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            for number in range(5):
                waiting.add(job(str(number)))
            ends = [(await waiting.next_end())[1] for _ in range(5)]
            assert waiting.open == 1
        return ends

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        try:
            ends = asyncio.run(run())
        finally:
            done.set()
    assert all(isinstance(end, JobResult) for end in ends)
    short = [each for each in asked if "long" not in each]
    assert sorted(short) == sorted(each for n in range(5) for each in (f"req-{n}/status/stream", f"req-{n}"))


@pytest.mark.parametrize("stream", ["silent", "buffered"])
def test_auto_is_not_held_up_by_a_gateway_that_does_not_pass_a_stream_on(start: Start, stream: str) -> None:
    start(stream=stream, run_seconds=1.0)
    [(moment, end)] = waited(jobs := submitted(1))
    assert isinstance(end, JobResult)
    assert moment - jobs[0].submitted_at < 8


def test_a_fixed_interval_is_polled(start: Start) -> None:
    emulator = start(stream="offered", **RUN)
    assert all_succeed(waited(submitted(2), poke_interval=0.2))
    assert calls(emulator, "stream") == []
    looks = [each["time"] for each in calls(emulator, "status")]
    assert min(later - earlier for earlier, later in pairwise(looks[::2])) > 0.15


def test_poll_never_streams(start: Start) -> None:
    emulator = start(stream="offered", **RUN)
    assert all_succeed(waited(submitted(2), by="poll"))
    assert calls(emulator, "stream") == []


def test_a_passing_fault_at_the_opening_says_nothing_about_streams(start: Start) -> None:
    emulator = start(stream="offered", faults=["server-error on=stream times=1"], run_seconds=2.0)
    assert all_succeed(waited(submitted(1), by="stream"))
    assert len(calls(emulator, "stream")) == 2


def test_at_the_end_of_its_time_a_streamed_job_is_cancelled(start: Start) -> None:
    emulator = start(stream="offered", stuck=True)
    [(_, end)] = waited(submitted(1), by="stream", deadline=time.time() + 0.5, cancel_on_timeout=True)
    assert isinstance(end, Failure)
    assert end.kind is FailureKind.TIMEOUT
    assert len(calls(emulator, "cancel")) == 1


def test_a_failed_job_fails_by_the_stream_as_by_a_poll(start: Start) -> None:
    start(stream="offered", failure="refused", **RUN)
    [(_, end)] = waited(submitted(1), by="stream")
    assert isinstance(end, Failure)
    assert end.kind is FailureKind.CONTENT_REFUSED


def events(call: Exchange, *statuses: str) -> None:
    """Begin a stream, or go on with one."""
    for status in statuses:
        call.write(b'data: {"status": "%s"}\n\n' % status.encode())


def test_a_changed_key_is_taken_up(monkeypatch: pytest.MonkeyPatch) -> None:
    changed = threading.Event()
    refused: list[str] = []

    def answer(call: Exchange) -> None:
        old = call.headers["Authorization"] == "Key sk-old-key"
        if call.path.partition("?")[0].endswith("/stream"):
            # One that has begun is not ended by a new key.
            call.head(None, "text/event-stream")
            events(call, "IN_PROGRESS")
            changed.wait(20)
            events(call, "COMPLETED")
            call.hang_up()
        elif old and changed.is_set():
            refused.append(call.path)
            call.json({"detail": "invalid key credentials"}, 401)
        else:
            call.json(DONE)

    async def run() -> list[RoundEnd]:
        async with waits(say=lambda line: None) as waiting:
            for number in range(3):
                path = f"/flux/requests/req-{number}"
                job = handle(request_id=f"req-{number}", status_path=f"{path}/status", response_path=path)
                waiting.add(Watch(job, by="stream"))
            deadline = time.monotonic() + 20
            while len(server.seen) < 3:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)
            change_key("sk-new-key")
            changed.set()
            return [(await waiting.next_end())[1] for _ in range(3)]

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url, key="sk-old-key")
        try:
            ends = asyncio.run(run())
        finally:
            changed.set()
    assert all(isinstance(end, JobResult) for end in ends), ends
    # Each goes on with the new key at once.
    assert 1 <= len(refused) <= 3


def test_a_key_that_is_refused_and_stays_so_ends_a_streamed_wait(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watching, "MAX_UNCLEAR", 2)
    emulator = start(stream="offered", run_seconds=0.5)
    jobs = submitted(2)
    change_key("sk-a-wrong-key")
    ends = waited(jobs, by="stream")
    assert [end.kind for _, end in ends if isinstance(end, Failure)] == [FailureKind.AUTH] * 2
    assert all(each["status"] == 401 for each in calls(emulator, "stream"))


def test_more_streams_than_the_pool_has_connections_starve_nobody(start: Start) -> None:
    emulator = start(stream="offered", run_seconds=3.0)
    jobs = submitted(130)
    ends = waited(jobs, by="stream")
    assert all_succeed(ends)
    assert len(calls(emulator, "stream")) == 130
    assert calls(emulator, "status") == []


def test_beyond_the_bound_jobs_are_polled(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "MAX_STREAMS", 3)
    emulator = start(stream="offered", **RUN)
    assert all_succeed(waited(submitted(6), by="stream"))
    streams = [each["time"] for each in calls(emulator, "stream")]
    assert len([moment for moment in streams if moment < streams[0] + 0.6]) == 3
    assert len({each["request_id"] for each in calls(emulator, "status")}) >= 3


def test_leaving_ends_the_streams(start: Start) -> None:
    emulator = start(stream="offered", stuck=True)
    jobs = submitted(3)

    async def run() -> None:
        async with waits(say=lambda line: None) as waiting:
            for job in jobs:
                waiting.add(Watch(job, by="stream"))
            deadline = time.monotonic() + 10
            while len(await asyncio.to_thread(calls, emulator, "stream")) < 3:
                assert time.monotonic() < deadline
        assert len(asyncio.all_tasks()) == 1
        assert not hub._lines.get(asyncio.get_running_loop())

    asyncio.run(run())
