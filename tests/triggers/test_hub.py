"""Many waits on one event loop: what they share, and what they never share."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from airflow_provider_uniapi_fal.hooks.fal import FalHook, watching_round
from airflow_provider_uniapi_fal.protocol import retrying, watching
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult
from airflow_provider_uniapi_fal.protocol.watching import RoundEnd, WaitMore, Watch
from airflow_provider_uniapi_fal.triggers import hub
from airflow_provider_uniapi_fal.triggers.hub import Waits, waits
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
    wait_until,
)

PICTURE = {"images": [{"url": "https://example.com/a.png"}]}
DONE = {"status": "COMPLETED", "request_id": "req-1", **PICTURE}
PENDING = {"status": "IN_QUEUE", "request_id": "req-1"}


def silent(line: str) -> None:
    return


def named(number: int | str, **options: Any) -> Watch:
    job = handle(
        request_id=f"req-{number}",
        status_path=f"/flux/requests/req-{number}/status",
        response_path=f"/flux/requests/req-{number}",
        **{name: options.pop(name) for name in ("fal_conn_id", "submitted_at") if name in options},
    )
    return Watch(job, **{"poke_interval": 0.05, **options})


def submitted(count: int, **arguments: Any) -> list[JobHandle]:
    return [FalHook().submit(MODEL, {**ARGUMENTS, **arguments}).handle for _ in range(count)]  # type: ignore[union-attr]


async def ends_of(waiting: Waits) -> dict[str, RoundEnd]:
    found = {}
    while waiting.open:
        watch, end = await waiting.next_end()
        found[watch.handle.request_id] = end
    return found


def waited(*watches: Watch) -> dict[str, RoundEnd]:
    async def run() -> dict[str, RoundEnd]:
        async with waits(say=silent) as waiting:
            for watch in watches:
                waiting.add(watch)
            return await ends_of(waiting)

    return asyncio.run(run())


def failure(end: RoundEnd) -> Failure:
    assert isinstance(end, Failure), end
    return end


def test_each_wait_ends_with_its_own_job_and_a_failed_one_touches_no_other(start: Start) -> None:
    start(run_seconds=0.2, faults=["job match=storm failure=refused"])
    good, bad = submitted(5), submitted(2, prompt="a storm")
    ends = waited(*(Watch(job, poke_interval=0.05) for job in good + bad))
    assert all(isinstance(ends[job.request_id], JobResult) for job in good)
    assert [failure(ends[job.request_id]).kind for job in bad] == [FailureKind.CONTENT_REFUSED] * 2


def test_an_unexpected_error_is_the_end_of_one_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    real = watching_round

    def broken(watch: Watch, told: bytes | None) -> Any:
        if watch.handle.request_id == "req-bad":
            raise ZeroDivisionError
        return real(watch, told)

    monkeypatch.setattr(hub, "watching_round", broken)
    with ScriptedServer(lambda call: call.json(DONE)) as server:
        set_connection(monkeypatch, server.url)
        ends = waited(named("bad"), named("good"))
    assert isinstance(ends["req-good"], JobResult)
    broken_off = failure(ends["req-bad"])
    assert "ZeroDivisionError" in broken_off.what
    assert (broken_off.may_run, broken_off.billed) == (True, "maybe")


@pytest.mark.parametrize("also", ["nothing else", "the triggerer's own log"])
def test_a_log_that_cannot_be_written_costs_no_wait_its_end(
    monkeypatch: pytest.MonkeyPatch, also: str
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    if also == "the triggerer's own log":
        monkeypatch.setattr(hub.log, "error", full)
    answers = iter([PENDING, PENDING])

    async def run() -> RoundEnd:
        async with waits(say=full) as waiting:
            waiting.add(named("a"))
            _, end = await asyncio.wait_for(waiting.next_end(), 20)
            return end

    with ScriptedServer(lambda call: call.json(next(answers, DONE))) as server:
        set_connection(monkeypatch, server.url)
        assert isinstance(asyncio.run(run()), JobResult)


def test_a_connection_that_is_not_there_ends_its_waits_and_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(lambda call: call.json(DONE)) as server:
        set_connection(monkeypatch, server.url)
        ends = waited(named("lost", fal_conn_id="nowhere"), named("good"))
    assert isinstance(ends["req-good"], JobResult)
    assert failure(ends["req-lost"]).may_run


def test_no_more_looks_are_under_way_than_the_bound_and_none_is_starved(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "MAX_LOOKS_AT_ONCE", 4)
    lock, now, most = threading.Lock(), 0, 0

    def answer(call: Exchange) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        call.json(DONE)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        ends = waited(*(named(number) for number in range(60)))
        assert len(ends) == 60
        assert all(isinstance(end, JobResult) for end in ends.values())
        assert most <= 4
        assert server.connections <= 4


def test_few_looks_are_under_way_while_none_waits_long_for_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "FEW_LOOKS_AT_ONCE", 3)
    monkeypatch.setattr(hub, "TURN_SECONDS", 600.0)
    with ScriptedServer(lambda call: call.json(DONE)) as server:
        set_connection(monkeypatch, server.url)
        ends = waited(*(named(number) for number in range(60)))
        assert all(isinstance(end, JobResult) for end in ends.values())
        assert server.connections <= 3


def test_a_slow_gateway_is_asked_by_more_looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "FEW_LOOKS_AT_ONCE", 3)
    together = threading.Barrier(20)

    def answer(call: Exchange) -> None:
        if call.path.endswith("/status"):
            together.wait(30)  # none is answered before twenty have asked
        call.json(DONE)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        ends = waited(*(named(number) for number in range(20)))
        assert all(isinstance(end, JobResult) for end in ends.values())


def test_a_wait_whose_time_is_over_waits_for_no_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "FEW_LOOKS_AT_ONCE", 3)
    monkeypatch.setattr(hub, "TURN_SECONDS", 600.0)
    monkeypatch.setattr(hub, "STATUS_SECONDS", 600.0)
    hanging, over = threading.Semaphore(0), threading.Event()

    def answer(call: Exchange) -> None:
        if "req-bad" in call.path:
            hanging.release()
            over.wait(60)
        call.json(PENDING)

    async def run() -> tuple[Watch, RoundEnd]:
        async with waits(say=silent) as waiting:
            for number in range(3):
                waiting.add(named(f"bad-{number}"))
            for _ in range(3):
                assert await asyncio.to_thread(hanging.acquire, timeout=30)
            waiting.add(named("late", deadline=time.time() + 0.3))
            return await asyncio.wait_for(waiting.next_end(), 30)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        try:
            watch, end = asyncio.run(run())
        finally:
            over.set()
    assert watch.handle.request_id == "req-late"
    assert failure(end).kind is FailureKind.TIMEOUT


@pytest.mark.parametrize("hanging", [12, 60])
def test_jobs_whose_looks_hang_keep_no_other_from_being_looked_at(
    monkeypatch: pytest.MonkeyPatch, hanging: int
) -> None:
    monkeypatch.setattr(hub, "MAX_LOOKS_AT_ONCE", 4)
    monkeypatch.setattr(hub, "MAX_SLOW_LOOKS", 8)
    monkeypatch.setattr(hub, "SLOW_SECONDS", 0.1)
    monkeypatch.setattr(hub, "STATUS_SECONDS", 0.5)
    over = threading.Event()

    def answer(call: Exchange) -> None:
        if "req-bad" in call.path:
            over.wait(30)
        else:
            call.json(DONE)

    async def run() -> dict[str, RoundEnd]:
        async with waits(say=silent) as waiting:
            for number in range(hanging):
                waiting.add(named(f"bad-{number}"))
            await until(lambda: len(server.seen) >= 4)
            for number in range(5):
                waiting.add(named(number))
            ends = {}
            for _ in range(5):
                watch, end = await asyncio.wait_for(waiting.next_end(), 20)
                ends[watch.handle.request_id] = end
            [line] = hub._lines[asyncio.get_running_loop()].values()
            assert len(line._looks) <= 4
            assert line._slow_looks <= 8
            return ends

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        try:
            ends = asyncio.run(run())
        finally:
            over.set()
    assert all(isinstance(end, JobResult) for end in ends.values())
    assert set(ends) == {f"req-{number}" for number in range(5)}


def test_a_status_that_takes_its_time_is_waited_for_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "STATUS_SECONDS", 0.1)

    def answer(call: Exchange) -> None:
        if "/status" in call.path:
            time.sleep(0.7)
        call.json(DONE)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        assert isinstance(waited(named("a"))["req-a"], JobResult)
        # 0.1, 0.2, 0.4 and 0.8 seconds, and the result; a loaded machine may need one more.
        assert 5 <= len(server.seen) <= 7


def test_a_crowd_that_is_due_at_once_begins_few_looks_in_a_turn_of_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def run() -> dict[str, RoundEnd]:
        async with waits(say=silent) as waiting, turns_of_looks(monkeypatch) as begun:
            # The first one opens the session, for which all others would wait.
            waiting.add(named("first"))
            await waiting.next_end()
            for number in range(60):
                waiting.add(named(number))
            ends = await ends_of(waiting)
        assert max(Counter(begun).values()) <= hub.LOOKS_A_TURN
        return ends

    with ScriptedServer(lambda call: call.json(DONE)) as server:
        set_connection(monkeypatch, server.url)
        assert len(asyncio.run(run())) == 60


@asynccontextmanager
async def turns_of_looks(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[int]]:
    """Give a list of the turns of the event loop in which looks began."""
    begun: list[int] = []
    turn = 0
    real = watching_round

    def counted(watch: Watch, told: bytes | None) -> Any:
        begun.append(turn)
        return real(watch, told)

    async def turns() -> None:
        nonlocal turn
        while True:
            turn += 1
            await asyncio.sleep(0)

    monkeypatch.setattr(hub, "watching_round", counted)
    counting = asyncio.ensure_future(turns())
    yield begun
    counting.cancel()


@pytest.mark.parametrize("in_a_pause", [False, True])
def test_a_deadline_that_many_have_in_common_lets_no_more_of_them_look_at_once(
    monkeypatch: pytest.MonkeyPatch, in_a_pause: bool
) -> None:
    monkeypatch.setattr(hub, "MAX_LOOKS_AT_ONCE", 20)
    lock, now, most, over = threading.Lock(), 0, 0, False

    def answer(call: Exchange) -> None:
        nonlocal now, most
        with lock:
            now += 1
            most = max(most, now)
        time.sleep(0.01)
        with lock:
            now -= 1
        if in_a_pause and not over:
            call.answer(b"", status=429, Retry_After="600")
        else:
            call.json(PENDING)

    async def run() -> dict[str, RoundEnd]:
        nonlocal over
        async with waits(say=silent) as waiting:
            deadline = time.time() + 3
            for number in range(60):
                waiting.add(named(number, poke_interval=600.0, deadline=deadline))
            await until(lambda: bool(server.seen) if in_a_pause else len(server.seen) == 60)
            over = True
            async with turns_of_looks(monkeypatch) as begun:
                ends = await ends_of(waiting)
        assert max(Counter(begun).values()) <= hub.LOOKS_A_TURN
        return ends

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        ends = asyncio.run(run())
    assert {failure(end).kind for end in ends.values()} == {FailureKind.TIMEOUT}
    assert len(ends) == 60
    assert most <= 20


def test_a_crowd_that_leaves_is_not_searched_for_each_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = 0

    def same(one: object, other: object) -> bool:
        nonlocal compared
        compared += 1
        return one is other

    with ScriptedServer(lambda call: call.answer(b"", status=429, Retry_After="600")) as server:
        set_connection(monkeypatch, server.url)

        async def run() -> None:
            async with waits(say=silent) as waiting:
                waiting.add(named("first"))
                await until(lambda: bool(server.seen))
                await until(lambda: len(asyncio.all_tasks()) == 1)
                for number in range(100):
                    waiting.add(named(number))
                [line] = hub._lines[asyncio.get_running_loop()].values()
                await until(lambda: len(line._due) >= 100)
                monkeypatch.setattr(hub._Wait, "__eq__", same)

        asyncio.run(run())
    assert compared == 0


def test_waits_of_different_triggers_share_the_pool_and_the_last_one_closes_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ScriptedServer(lambda call: call.json(DONE)) as server:
        set_connection(monkeypatch, server.url)

        async def run() -> None:
            async with waits(say=silent) as first:
                async with waits(say=silent) as second:
                    second.add(named("b"))
                    await second.next_end()
                    first.add(named("a"))
                await first.next_end()
                assert server.open_connections == 1

        asyncio.run(run())
        assert server.connections == 1
        wait_until(lambda: server.open_connections == 0)


def test_two_connections_have_two_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = set()

    def answer(call: Exchange) -> None:
        keys.add((call.path.split("/")[4].split("?")[0], call.headers["Authorization"]))
        call.json(DONE)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url, key="sk-first-key")
        set_connection(monkeypatch, server.url, key="sk-other-key", conn_id="fal_other")
        waited(named("a"), named("b", fal_conn_id="fal_other"))
    assert keys == {("req-a", "Key sk-first-key"), ("req-b", "Key sk-other-key")}


def test_a_wait_is_no_task_while_nothing_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(lambda call: call.json(PENDING)) as server:
        set_connection(monkeypatch, server.url)

        async def run() -> None:
            async with waits(say=silent) as waiting:
                for number in range(200):
                    waiting.add(named(number, poke_interval=60.0))
                await until(lambda: len(server.seen) == 200)
                await until(lambda: len(asyncio.all_tasks()) == 1)
                assert waiting.open == 200
            assert len(asyncio.all_tasks()) == 1

        asyncio.run(run())


async def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came about"
        await asyncio.sleep(0.01)


def nothing_is_left() -> bool:
    loop: Any = asyncio.get_running_loop()
    timers = [timer for timer in loop._scheduled if not timer.cancelled()]
    return not hub._lines.get(loop) and not timers and len(asyncio.all_tasks()) == 1


@pytest.mark.parametrize("when", ["before the first look", "in a look", "between looks", "in a pause"])
def test_leaving_drops_what_waits_and_leaves_nothing_behind(
    monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    answers = threading.Event()

    def answer(call: Exchange) -> None:
        if when == "in a look":
            answers.wait(10)
        if when == "in a pause":
            call.answer(b"", status=429, Retry_After="60")
        else:
            call.json(PENDING)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)

        async def run() -> None:
            async with waits(say=silent) as waiting:
                for number in range(20):
                    waiting.add(named(number, poke_interval=0.02 if when == "in a pause" else 60.0))
                if when != "before the first look":
                    await until(lambda: len(server.seen) == 20)
                if when in ("between looks", "in a pause"):
                    await until(lambda: len(asyncio.all_tasks()) == 1)
                if when == "in a pause":
                    waiting.add(named("late", deadline=time.time() + 50))
                    await asyncio.sleep(0.1)
            answers.set()
            assert nothing_is_left()

        try:
            asyncio.run(run())
        finally:
            answers.set()
        wait_until(lambda: server.open_connections == 0)


@pytest.mark.parametrize("then", ["goes on", "ends as if nothing were"])
def test_a_look_that_a_cancellation_is_lost_on_is_left_behind_by_nobody(
    then: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    began = 0

    async def deaf(line: Any, wait: Any) -> RoundEnd:
        nonlocal began
        began += 1
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if then == "goes on":
                await asyncio.sleep(60)
        return WaitMore(0.0)

    set_connection(monkeypatch, "http://127.0.0.1:9")
    monkeypatch.setattr(hub._Line, "_look", deaf)
    monkeypatch.setattr(hub, "CANCEL_AGAIN_SECONDS", 0.05)

    async def run() -> None:
        async with waits(say=silent) as waiting:
            for number in range(3):
                waiting.add(named(number))
            await wait_until_begun()
        assert len(asyncio.all_tasks()) == 1
        await asyncio.sleep(0.1)
        assert began == 3

    async def wait_until_begun() -> None:
        while began < 3:
            await asyncio.sleep(0.01)

    asyncio.run(run())


def test_those_who_stay_are_not_touched_by_those_who_leave(start: Start) -> None:
    start(run_seconds=0.5)
    [staying] = submitted(1)

    async def run() -> RoundEnd:
        async with waits(say=silent) as first:
            first.add(Watch(staying, poke_interval=0.05))
            async with waits(say=silent) as second:
                second.add(named("unknown"))
            _, end = await first.next_end()
            return end

    assert isinstance(asyncio.run(run()), JobResult)


def test_news_is_told_in_the_context_of_who_waits(start: Start) -> None:
    start(run_seconds=0.1)
    whose: contextvars.ContextVar[str] = contextvars.ContextVar("whose", default="nobody's")
    told: set[tuple[str, str]] = set()

    async def one(name: str, job: JobHandle) -> None:
        whose.set(name)

        def say(line: str) -> None:
            told.add((whose.get(), line.split()[1].rstrip(":")))

        async with waits(say=say) as waiting:
            waiting.add(Watch(job, poke_interval=0.05))
            await waiting.next_end()

    async def both(jobs: list[JobHandle]) -> None:
        await asyncio.gather(one("a's", jobs[0]), one("b's", jobs[1]))

    jobs = submitted(2)
    asyncio.run(both(jobs))
    assert {name for name, _ in told} == {"a's", "b's"}
    assert {(name, request) for name, request in told if request in {job.request_id for job in jobs}} == {
        ("a's", jobs[0].request_id),
        ("b's", jobs[1].request_id),
    }


def test_ends_that_are_there_are_all_returned_at_once_and_each_once(start: Start) -> None:
    start(run_seconds=0.0)
    jobs = submitted(6)

    async def run() -> list[str]:
        async with waits(say=silent) as waiting:
            for job in jobs:
                waiting.add(Watch(job, poke_interval=0.05))
            first, _ = await waiting.next_end()
            await until(lambda: not waiting._waiting)
            some, rest = waiting.ends_by_now(3), waiting.ends_by_now(100)
            assert (len(some), len(rest), waiting.ends_by_now(100), waiting.open) == (3, 2, [], 0)
            return [watch.handle.request_id for watch in (first, *(watch for watch, _ in some + rest))]

    assert sorted(asyncio.run(run())) == sorted(job.request_id for job in jobs)


def test_nothing_to_wait_for_is_an_error_and_no_endless_wait() -> None:
    async def run() -> None:
        async with waits(say=silent) as waiting:
            with pytest.raises(LookupError):
                await waiting.next_end()

    asyncio.run(run())


# --- the shared answer to 429 -------------------------------------------------------------------------------


def test_a_429_slows_all_down_and_fails_none(start: Start) -> None:
    emulator = start(run_seconds=0.3, faults=["rate-limit on=status times=3 retry_after=3.0"], urls="gateway")
    jobs = submitted(30)
    ends = waited(*(Watch(job, poke_interval=0.05) for job in jobs))
    assert all(isinstance(end, JobResult) for end in ends.values())
    asked = sorted(calls(emulator, "status") + calls(emulator, "result"), key=lambda call: call["time"])
    last = max(call["time"] for call in asked if call["status"] == 429)
    # Those that were under way arrive; then there is silence for as long as the server asked for.
    after = [call["time"] - last for call in asked if call["time"] > last + 1.5]
    assert after
    assert min(after) >= 2.9


def test_after_the_pause_they_do_not_all_ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    times: list[float] = []

    def answer(call: Exchange) -> None:
        times.append(time.monotonic())
        if len(times) == 1:
            call.answer(b"", status=429, Retry_After="1")
        else:
            call.json(PENDING)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)

        async def run() -> None:
            async with waits(say=silent) as waiting:
                waiting.add(named("first"))
                await until(lambda: len(times) == 1)
                await asyncio.sleep(0.1)
                for number in range(40):
                    waiting.add(named(number, poke_interval=30.0))
                await until(lambda: len(times) > 12)

        asyncio.run(run())
    within = [moment for moment in times[1:] if moment - times[1] < 0.3]
    assert times[1] - times[0] >= 0.95
    assert len(within) <= 6


def test_one_long_retry_after_puts_nobody_off_for_as_long_as_results_are_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(retrying, "LONGEST_REST", 0.2)
    answers = iter([429, 429])

    def answer(call: Exchange) -> None:
        if next(answers, None) is None:
            call.json(DONE)
        else:
            call.answer(b"", status=429, Retry_After="3600")

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        ends = waited(*(named(number) for number in range(5)))
    assert all(isinstance(end, JobResult) for end in ends.values())


@pytest.mark.parametrize("value", ["Wed, 21 Oct 99999999999999999999 07:28:00 GMT", "soon"])
def test_a_retry_after_that_cannot_be_read_ends_no_wait(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    answers = iter([429])

    def answer(call: Exchange) -> None:
        if next(answers, None) is None:
            call.json(DONE)
        else:
            call.answer(b"", status=429, Retry_After=value)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        assert isinstance(waited(named("a"))["req-a"], JobResult)


def test_a_pause_does_not_hold_up_the_end_of_a_waits_time(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(lambda call: call.answer(b"", status=429, Retry_After="600")) as server:
        set_connection(monkeypatch, server.url)
        began = time.time()
        ends = waited(named("a", deadline=began + 0.5), named("b", deadline=began + 1.0))
    assert {failure(end).kind for end in ends.values()} == {FailureKind.TIMEOUT}
    assert time.time() - began < 5
    assert len(server.seen) <= 6


def test_a_pause_is_kept_by_those_who_come_after_all_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    with ScriptedServer(lambda call: call.answer(b"", status=429, Retry_After="600")) as server:
        set_connection(monkeypatch, server.url)

        async def run(name: str) -> None:
            async with waits(say=silent) as waiting:
                waiting.add(named(name, deadline=time.time() + 1))
                await waiting.next_end()

        asyncio.run(run("a"))
        met = len(server.seen)
        asyncio.run(run("b"))
        # It looks at the end of its time only.
        assert [call.path.split("/")[4] for call in server.seen[met:]] == ["req-b"]


def test_what_is_remembered_of_gateways_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "_gateways", {})
    monkeypatch.setattr(hub, "MAX_REMEMBERED", 3)
    known = [hub._known_of(name) for name in ("a", "b", "c", "d")]
    assert list(hub._gateways) == ["b", "c", "d"]
    assert [hub._known_of(name) for name in ("b", "c", "d")] == known[1:]


def test_another_account_behind_the_connection_owes_no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(call: Exchange) -> None:
        if call.headers["Authorization"] == "Key sk-old-key":
            call.answer(b"", status=429, Retry_After="600")
        else:
            call.json(DONE)

    async def refused() -> None:
        async with waits(say=silent) as waiting:
            waiting.add(named("a"))
            await until(lambda: bool(hub._gateways["fal_default"].pace._in_a_row))

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url, key="sk-old-key")
        asyncio.run(refused())
        change_key("sk-new-key")
        # Whoever comes next does not know it yet; who reads the connection first, learns it for all.
        deadline = time.time() + 1
        ends = waited(
            *(named(name, deadline=deadline if name == "first" else None) for name in ("first", "b"))
        )
    assert all(isinstance(end, JobResult) for end in ends.values())


# --- the connection -----------------------------------------------------------------------------------------


def connections_read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    real: Callable[[str], Awaitable[Any]] = FalHook.aget_connection
    read: list[str] = []

    async def aget_connection(conn_id: str) -> Any:
        read.append(conn_id)
        return await real(conn_id)

    monkeypatch.setattr(FalHook, "aget_connection", staticmethod(aget_connection))
    return read


def cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, list[str]]:
    """Give a switch that keeps the connection from being read, and the readings that were tried."""
    away, tried = threading.Event(), connections_read(monkeypatch)
    real: Callable[[str], Awaitable[Any]] = FalHook.aget_connection

    async def aget_connection(conn_id: str) -> Any:
        found = await real(conn_id)
        if away.is_set():
            raise RuntimeError("The API server is away.")
        return found

    monkeypatch.setattr(FalHook, "aget_connection", staticmethod(aget_connection))
    return away, tried


def test_a_wait_that_comes_while_the_connection_cannot_be_read_takes_the_account_that_is_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(hub, "CONNECTION_SECONDS", 0.0)
    away, tried = cannot_be_read(monkeypatch)

    async def run() -> dict[str, RoundEnd]:
        async with waits(say=silent) as waiting:
            waiting.add(named("old", poke_interval=60.0))
            await until(lambda: bool(server.seen))
            away.set()
            for number in range(5):
                waiting.add(named(number))
            return {
                watch.handle.request_id: end for watch, end in [await waiting.next_end() for _ in range(5)]
            }

    def answer(call: Exchange) -> None:
        call.json(PENDING if "req-old" in call.path else DONE)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url)
        ends = asyncio.run(run())
    assert all(isinstance(end, JobResult) for end in ends.values())
    # Nor does each of them try it.
    assert len(tried) <= 3


def test_a_connection_that_cannot_be_read_for_a_while_ends_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    away, tried = cannot_be_read(monkeypatch)
    away.set()

    async def run() -> dict[str, RoundEnd]:
        async with waits(say=silent) as waiting:
            for number in range(20):
                waiting.add(named(number))
            await until(lambda: bool(tried))
            await asyncio.sleep(0.2)
            away.clear()
            return await ends_of(waiting)

    with ScriptedServer(lambda call: call.json(DONE)) as server:
        set_connection(monkeypatch, server.url)
        ends = asyncio.run(run())
    assert all(isinstance(end, JobResult) for end in ends.values())
    assert len(ends) == 20


@pytest.mark.parametrize("deadline", [None, 0.5])
def test_a_connection_that_can_never_be_read_ends_its_waits(
    monkeypatch: pytest.MonkeyPatch, deadline: float | None
) -> None:
    if deadline is None:
        monkeypatch.setattr(retrying, "backoff", lambda attempt, jitter: 0.01)
        monkeypatch.setattr(hub, "UNREAD_SECONDS", 0.01)
    away, tried = cannot_be_read(monkeypatch)
    away.set()
    with ScriptedServer(lambda call: call.json(DONE)) as server:
        set_connection(monkeypatch, server.url)
        ends = waited(*(named(n, deadline=deadline and time.time() + deadline) for n in range(5)))
    assert all("RuntimeError" in failure(end).what and failure(end).may_run for end in ends.values())
    assert 1 <= len(tried) <= 5 * hub.MAX_UNREAD
    assert not server.seen


def test_a_connection_of_another_type_ends_its_waits_before_anything_is_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with ScriptedServer(lambda call: call.json(DONE)) as server:
        elastic = {"conn_type": "elasticsearch", "host": server.url, "password": "a-secret-of-it"}
        monkeypatch.setenv("AIRFLOW_CONN_ES", json.dumps(elastic))
        ends = waited(*(named(number, fal_conn_id="es") for number in range(3)))
    assert not server.seen
    for end in ends.values():
        assert failure(end).kind is FailureKind.AUTH
        assert "'elasticsearch'" in failure(end).what
        assert failure(end).may_run


def test_the_connection_is_read_once_for_all(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    start(run_seconds=0.2)
    jobs = submitted(20)
    read = connections_read(monkeypatch)
    waited(*(Watch(job, poke_interval=0.05) for job in jobs))
    assert read == ["fal_default"]


def test_a_changed_key_is_taken_up_by_all_and_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []
    changed = threading.Event()

    def answer(call: Exchange) -> None:
        keys.append(call.headers["Authorization"].removeprefix("Key "))
        if keys[-1] == "sk-new-key":
            call.json(DONE)
        elif changed.is_set():
            call.json({"detail": "invalid key credentials"}, 401)
        else:
            call.json(PENDING, 202)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url, key="sk-old-key")
        read = connections_read(monkeypatch)

        async def run() -> dict[str, RoundEnd]:
            async with waits(say=silent) as waiting:
                for number in range(20):
                    waiting.add(named(number, poke_interval=0.2))
                await until(lambda: len(keys) >= 20)
                change_key("sk-new-key")
                changed.set()
                return await ends_of(waiting)

        ends = asyncio.run(run())
        assert all(isinstance(end, JobResult) for end in ends.values())
        assert len(ends) == 20
        assert read == ["fal_default"] * 2
        wait_until(lambda: server.open_connections == 0)


def test_a_key_that_is_refused_and_was_not_changed_is_not_read_again_for_each_wait(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(run_seconds=60.0)
    jobs = submitted(20)
    change_key("sk-wrong-key")
    read = connections_read(monkeypatch)
    ends = waited(*(Watch(job, poke_interval=0.05) for job in jobs))
    assert {failure(end).kind for end in ends.values()} == {FailureKind.AUTH}
    assert len(read) == 2


def test_a_key_that_is_revoked_before_the_new_one_is_there_ends_no_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(watching, "MAX_UNCLEAR", 2)
    monkeypatch.setattr(hub, "REFUSED_SECONDS", 0.05)
    keys: list[str] = []

    def answer(call: Exchange) -> None:
        keys.append(call.headers["Authorization"].removeprefix("Key "))
        if keys[-1] == "sk-new-key":
            call.json(DONE)
        else:
            call.json({"detail": "invalid key credentials"}, 401)

    async def run() -> dict[str, RoundEnd]:
        async with waits(say=silent) as waiting:
            for number in range(5):
                waiting.add(named(number))
            # More than any of them may be refused without being kept.
            await until(lambda: len(keys) >= 5 * 4)
            change_key("sk-new-key")
            return await ends_of(waiting)

    with ScriptedServer(answer) as server:
        set_connection(monkeypatch, server.url, key="sk-old-key")
        ends = asyncio.run(run())
    assert all(isinstance(end, JobResult) for end in ends.values())
    assert len(ends) == 5


@pytest.mark.parametrize("bound", ["the key's", "its own"])
def test_a_key_that_stays_refused_ends_its_waits_in_bounded_time(
    monkeypatch: pytest.MonkeyPatch, bound: str
) -> None:
    monkeypatch.setattr(watching, "MAX_UNCLEAR", 2)
    monkeypatch.setattr(hub, "REFUSED_SECONDS", 0.05)
    if bound == "the key's":
        monkeypatch.setattr(hub, "NEW_KEY_SECONDS", 0.5)
    deadline = time.time() + 1 if bound == "its own" else None
    with ScriptedServer(lambda call: call.json({"detail": "invalid key credentials"}, 401)) as server:
        set_connection(monkeypatch, server.url)
        ends = waited(*(named(number, deadline=deadline) for number in range(3)))
        assert len(server.seen) >= 3 * 3
    assert {failure(end).kind for end in ends.values()} == {FailureKind.AUTH}


def test_a_corrected_connection_is_taken_up_by_who_comes_later(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "CONNECTION_SECONDS", 0.0)
    first, second = start(run_seconds=60.0), None
    [before] = submitted(1)

    async def run() -> RoundEnd:
        nonlocal second
        async with waits(say=silent) as waiting:
            waiting.add(Watch(before, poke_interval=60.0))
            await until(lambda: len(calls(first, "status")) == 1)
            second = await asyncio.to_thread(start)
            [job] = await asyncio.to_thread(submitted, 1)
            waiting.add(Watch(job, poke_interval=0.05))
            _, end = await waiting.next_end()
            return end

    assert isinstance(asyncio.run(run()), JobResult)
    assert second is not None
    assert calls(second, "result")
