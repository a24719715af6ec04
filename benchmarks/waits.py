"""
Many waits on one event loop, without a scheduler: ``python -m benchmarks.waits``.

What a loop spends on 1,000 waits at a fixed interval, by the hub, by a bare loop with one session, and with a session
for each poll; the same by 1,000 triggers in Airflow's own runner of triggers; what blocks the loop; the memory of 10,000
waits; how soon 1,000 ends in the same moment are known and recorded by a batch; and how many calls it takes to know the
end of a job how soon, for a model that is unknown, for one that is known, and by the stream.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import aiohttp
import psutil
from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal.emulator.running import EmulatorProcess
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.ledger.journal import Journal, Owner
from airflow_provider_uniapi_fal.ledger.rows import Entry, Step
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult
from airflow_provider_uniapi_fal.protocol.watching import Watch
from airflow_provider_uniapi_fal.triggers.batch import FalBatchTrigger
from airflow_provider_uniapi_fal.triggers.fal import FalQueueTrigger
from airflow_provider_uniapi_fal.triggers.hub import Waits, waits
from benchmarks.heart import Heart
from benchmarks.measuring import write
from benchmarks.peers import PlainTrigger
from benchmarks.setting import KEY, LATENCY, LATENCY_SPREAD, a_gateway
from benchmarks.triggerer import run_triggers

MODEL = "flux/dev"
INPUT = {"prompt": "a lighthouse", "image_size": {"width": 64, "height": 64}}


def say(line: str) -> None:
    return


async def by_hub(jobs: list[JobHandle], interval: float, seconds: float) -> None:
    async with waits(say=say) as waiting:
        for job in jobs:
            waiting.add(Watch(job, poke_interval=interval, logs=False))
        await asyncio.sleep(seconds)


async def by_bare_loop(jobs: list[JobHandle], interval: float, seconds: float) -> None:
    async with aiohttp.ClientSession(connector=_connector()) as session:
        await _poll_all(jobs, interval, seconds, lambda url: _poll(session, url))


async def by_session_per_poll(jobs: list[JobHandle], interval: float, seconds: float) -> None:
    async def poll(url: str) -> None:
        async with aiohttp.ClientSession(connector=_connector()) as session:
            await _poll(session, url)

    await _poll_all(jobs, interval, seconds, poll)


def _connector() -> aiohttp.TCPConnector:
    return aiohttp.TCPConnector(ssl=_CONTEXT)


# Made once for all: a context for each poll would cost far more.
_CONTEXT = ssl.create_default_context(cafile=os.environ.get("REQUESTS_CA_BUNDLE"))


async def _poll(session: aiohttp.ClientSession, url: str) -> None:
    async with session.get(url, headers={"Authorization": f"Key {KEY}"}) as reply:
        await reply.json()


async def _poll_all(
    jobs: list[JobHandle], interval: float, seconds: float, poll: Callable[[str], Awaitable[None]]
) -> None:
    async def wait(job: JobHandle) -> None:
        while True:
            await poll(f"{os.environ['BENCH_URL']}/fal-ai{job.status_path}")
            await asyncio.sleep(interval)

    tasks = [asyncio.ensure_future(wait(job)) for job in jobs]
    await asyncio.sleep(seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def by_our_triggers(jobs: list[JobHandle], interval: float, seconds: float) -> None:
    await run_triggers(
        [FalQueueTrigger(handle=job.to_json(), poke_interval=interval, logs=False) for job in jobs], seconds
    )


async def by_plain_triggers(jobs: list[JobHandle], interval: float, seconds: float) -> None:
    """Run the peer's triggers, which have their own interval, and a session for each poll."""
    paths = [f"/fal-ai{str(job.status_path).removesuffix('/status')}" for job in jobs]
    await run_triggers([PlainTrigger(job=path) for path in paths], seconds)


LOOPS = {
    "hub": by_hub,
    "bare loop": by_bare_loop,
    "session per poll": by_session_per_poll,
    "FalQueueTriggers in Airflow's runner": by_our_triggers,
    "plain triggers in Airflow's runner": by_plain_triggers,
}

#: So often these ways are measured, in turns: costs that are near each other differ less than single runs do.
ROUNDS = 5
IN_TURNS = ("hub", "bare loop")

#: Of the first ways, the one whose CPU is compared with the second one's.
COMPARED = (
    ("hub", "bare loop"),
    ("hub", "session per poll"),
    ("FalQueueTriggers in Airflow's runner", "plain triggers in Airflow's runner"),
)

#: Seconds between polls, of all ways, and those before CPU and polls are counted: a triggerer starts but once.
INTERVAL = 2.0
WARM_UP = 5.0


async def rate(way: str, jobs: list[JobHandle], seconds: float) -> dict[str, Any]:
    """Tell the CPU seconds that a way takes between two moments, which are told as well."""
    # Reading a first connection imports much of Airflow, which a triggerer has done long before.
    await FalHook().aaccount()
    running = asyncio.ensure_future(LOOPS[way](jobs, INTERVAL, WARM_UP + seconds))
    await asyncio.sleep(WARM_UP)
    spent, began = time.process_time(), time.time()
    await asyncio.sleep(seconds)
    spent, ended = time.process_time() - spent, time.time()
    await running
    return {"cpu": spent, "began": began, "ended": ended}


async def blocks(jobs: list[JobHandle], seconds: float) -> dict[str, Any]:
    """Tell what blocks the loop of the hub, and for how long."""
    await FalHook().aaccount()
    heart = Heart()
    beating = asyncio.ensure_future(heart.beat())
    await by_hub(jobs, INTERVAL, seconds)
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)
    return {
        "longest_turn_of_the_loop": heart.longest,
        "of_it_with_our_code_on_the_stack": heart.longest_ours,
        "longest_collection": heart.longest_collection,
    }


async def memory(jobs: list[JobHandle], count: int) -> dict[str, Any]:
    process = psutil.Process()
    async with waits(say=say) as waiting:
        # One look opens the session and reads the connection; the rest of the memory is the waits'.
        waiting.add(Watch(jobs[0], poke_interval=600.0))
        await asyncio.sleep(2)
        before = process.memory_info().rss
        watches = [Watch(jobs[number % len(jobs)], poke_interval=600.0) for number in range(count)]
        for watch in watches:
            waiting.add(watch)
        while any(watch.state is None for watch in watches):  # noqa: ASYNC110 - nobody tells of a first look
            await asyncio.sleep(0.5)
        return {"added_mb": (process.memory_info().rss - before) / 1e6, "tasks": len(asyncio.all_tasks())}


async def known(groups: list[tuple[str, int, str]]) -> dict[str, Any]:
    """Wait for jobs in groups, one after the other; what is learned from one helps the next."""
    found: dict[str, Any] = {}
    async with waits(say=say) as waiting:
        for name, count, by in groups:
            found[name] = await _wait_for(waiting, count, by)
    return found


async def _wait_for(waiting: Waits, count: int, by: str) -> dict[str, float]:
    hook = FalHook()
    submitted = await asyncio.gather(*(hook.asubmit(MODEL, INPUT) for _ in range(count)))
    for each in submitted:
        waiting.add(Watch(each.handle, by=by))  # type: ignore[union-attr,arg-type]
    found = {}
    while waiting.open:
        watch, end = await waiting.next_end()
        if not isinstance(end, JobResult):
            raise TypeError(str(end))
        found[watch.handle.request_id] = time.time()
    return found


async def recorded(
    jobs: list[JobHandle], journal: Journal, release: Callable[[], None], release_at: float, **watch: Any
) -> dict[str, Any]:
    """Let all jobs of a batch end at once; tell after how many seconds all results are in its journal."""
    watch["began"] = time.time()
    trigger = FalBatchTrigger(journal=str(journal.folder), watch=watch, land_every=len(jobs) + 1)

    async def fired() -> float:
        async for event in trigger.run():
            ready = event.payload["ready"]
            if ready != len(jobs):
                raise RuntimeError(f"only {ready} results are there")
        return time.monotonic()

    firing = asyncio.ensure_future(fired())
    await asyncio.sleep(release_at - time.time())
    await asyncio.to_thread(release)
    released = time.monotonic()
    return {"jobs": len(jobs), "recorded_after": await firing - released}


#: How the jobs of a batch that end at once are watched; without a fixed interval the model is known.
AT_ONCE: dict[str, dict[str, Any]] = {
    "at once, polls every second": {"poke_interval": 1.0},
    "at once, polls every two seconds": {"poke_interval": 2.0},
    "at once, known model": {},
}

#: The share by which jobs differ.
SPREAD = 0.1

#: Several turns, so that polls are spread over the second as they are in a long wait.
BEFORE_RELEASE = 8.0


def measure_at_once(count: int, job_seconds: float) -> dict[str, Any]:
    """Measure how soon many ends in the same moment are known and recorded, with 30 to 80 ms on the way."""
    return {name: _at_once(name, count, job_seconds, watch) for name, watch in AT_ONCE.items()}


def _at_once(name: str, count: int, job_seconds: float, watch: dict[str, Any]) -> dict[str, Any]:
    with (
        tempfile.TemporaryDirectory() as folder,
        # Results name media: they are rendered before, or the emulator's brush is what is measured.
        EmulatorProcess(
            tls=True,
            key=KEY,
            queue_seconds=0.0,
            run_seconds=job_seconds,
            spread=SPREAD,
            urls="gateway",
            same_media=True,
            latency=LATENCY,
            latency_spread=LATENCY_SPREAD,
        ) as emulator,
    ):
        _connect(emulator)
        if "poke_interval" not in watch:
            asyncio.run(known([("first", 20, "poll"), ("then", 40, "poll")]))
        emulator.add_fault(fault="body", on="status", status="IN_PROGRESS")
        jobs = [JobHandle.from_json(each) for each in _submit(emulator, count)]
        # None is told to have ended before all have; as if they had been submitted in time for that moment.
        release_at = max(time.time(), jobs[-1].submitted_at + job_seconds) + BEFORE_RELEASE
        jobs = [
            replace(
                job,
                submitted_at=release_at - job_seconds * random.uniform(1 - SPREAD, 1 + SPREAD),
            )
            for job in jobs
        ]
        journal = Journal.opened(
            ObjectStoragePath(f"file://{folder}/night.journal"), Owner("benchmark", "tonight", "batch")
        )
        journal.write(
            Entry(job.request_id, 1, Step.SUBMITTED, "asked", 1, 1, time.time(), handle=job) for job in jobs
        )
        found = asyncio.run(recorded(jobs, journal, emulator.clear_faults, release_at, **watch))
    print(name, found, flush=True)
    return found


def _submit(emulator: EmulatorProcess, count: int) -> list[dict[str, Any]]:
    async def submit() -> list[JobHandle]:
        hook = FalHook()
        found = []
        for _ in range(0, count, 50):
            found += await asyncio.gather(*(hook.asubmit(MODEL, INPUT) for _ in range(min(50, count))))
        return [each.handle for each in found]  # type: ignore[union-attr]

    return [handle.to_json() for handle in asyncio.run(submit())]


def _in_a_process(emulator: EmulatorProcess, *arguments: str) -> Any:
    output = subprocess.run(
        [sys.executable, "-m", "benchmarks.waits", "--inside", *arguments],
        env={**os.environ, "BENCH_URL": emulator.url},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=900,
    ).stdout
    return json.loads(output.splitlines()[-1])


def _inside(arguments: list[str]) -> None:
    what, *rest = arguments
    if what == "known":
        found = asyncio.run(known([tuple(group) for group in json.loads(rest[0])]))
    else:
        jobs = [JobHandle.from_json(each) for each in json.loads(Path(rest[0]).read_text())]
        if what == "memory":
            found = asyncio.run(memory(jobs, int(rest[1])))
        elif what == "blocks":
            found = asyncio.run(blocks(jobs, float(rest[1])))
        else:
            found = asyncio.run(rate(what, jobs, float(rest[1])))
    print(json.dumps(found))


def _connect(emulator: EmulatorProcess) -> None:
    value = {"conn_type": "uniapi_fal", "host": emulator.url, "password": KEY}
    os.environ["AIRFLOW_CONN_FAL_DEFAULT"] = json.dumps(value)
    os.environ["REQUESTS_CA_BUNDLE"] = os.environ["SSL_CERT_FILE"] = str(emulator.ca_file)
    os.environ["BENCH_KEY"] = KEY


def _per_poll(told: dict[str, float], emulator: EmulatorProcess, count: int) -> dict[str, float]:
    polls = sum(told["began"] <= each["time"] < told["ended"] for each in emulator.requests())
    return {
        "cpu": told["cpu"],
        "polls": polls,
        "cpu_ms_a_poll": 1000 * told["cpu"] / max(polls, 1),
        "share_of_the_asked_rate": polls / (count / INTERVAL * (told["ended"] - told["began"])),
    }


def measure_loops(count: int, seconds: float, in_memory: int, turns: int = ROUNDS) -> dict[str, Any]:
    """Measure CPU and memory with jobs that never end."""
    with (
        tempfile.TemporaryDirectory() as folder,
        EmulatorProcess(tls=True, key=KEY, stuck=True) as emulator,
    ):
        _connect(emulator)
        jobs = Path(folder) / "jobs.json"
        jobs.write_text(json.dumps(_submit(emulator, count)))
        rounds: dict[str, list[dict[str, float]]] = {way: [] for way in LOOPS}
        for number in range(turns):
            for way in LOOPS:
                if number == 0 or way in IN_TURNS:
                    told = _in_a_process(emulator, way, str(jobs), str(seconds))
                    rounds[way].append(_per_poll(told, emulator, count))
                    print(way, rounds[way][-1], flush=True)
        found: dict[str, Any] = {"rounds": rounds}
        for ours, peers in COMPARED:
            # By poll: a way that does not keep up would seem to cost little.
            pairs = zip(rounds[ours], rounds[peers], strict=False)
            ratios = sorted(our["cpu_ms_a_poll"] / their["cpu_ms_a_poll"] for our, their in pairs)
            name = f"CPU a poll, {ours} / {peers}"
            found[name] = {"median": statistics.median(ratios), "all": ratios}
            print(f"{name}: {found[name]}", flush=True)
        found["blocks"] = _in_a_process(emulator, "blocks", str(jobs), str(seconds))
        print("blocks", found["blocks"], flush=True)
        found["memory"] = _in_a_process(emulator, "memory", str(jobs), str(in_memory))
        print("memory", found["memory"], flush=True)
    return found


def measure_known(seconds: float, unknown: int, known_jobs: int) -> dict[str, Any]:
    """Measure calls and delay, over TLS with 30 to 80 ms on the way."""
    with a_gateway(seconds, spread=SPREAD) as emulator:
        _connect(emulator)
        groups = [
            ("unknown model, polls", unknown, "poll"),
            ("known model, polls", known_jobs, "poll"),
            ("stream", known_jobs, "stream"),
        ]
        ended = _in_a_process(emulator, "known", json.dumps(groups))
        jobs = {job["request_id"]: job for job in emulator.account()["jobs"]}
        calls: dict[str, dict[str, int]] = {}
        told: dict[str, float] = {}
        for each in emulator.requests():
            if each["operation"] == "result":
                told.setdefault(each["request_id"], each["time"])
            count = calls.setdefault(each["request_id"], {})
            count[each["operation"]] = count.get(each["operation"], 0) + 1
    found = {}
    for name, moments in ended.items():
        # Who knows of the end asks for the result at once.
        known_after = sorted(told[request] - jobs[request]["finished_at"] for request in moments)
        late = sorted(moment - jobs[request]["finished_at"] for request, moment in moments.items())
        status = [calls[request].get("status", 0) for request in moments]
        found[name] = {
            "jobs": len(late),
            "status_calls_mean": statistics.mean(status),
            "status_calls_most": max(status),
            "all_calls_mean": statistics.mean(sum(calls[request].values()) for request in moments),
            "known_median": statistics.median(known_after),
            "known_p95": known_after[min(int(0.95 * len(late)), len(late) - 1)],
            "known_with_result_median": statistics.median(late),
            "known_with_result_p95": late[min(int(0.95 * len(late)), len(late) - 1)],
        }
        print(name, found[name], flush=True)
    return found


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.waits", description=__doc__)
    parser.add_argument("--short", action="store_true", help="few jobs, to see that it runs")
    parser.add_argument("--out", help="write the figures to this file, as JSON")
    parser.add_argument("--inside", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        _inside(options.inside)
        return
    if options.short:
        found = {
            **measure_loops(50, 2.0, 200, turns=1),
            **measure_at_once(50, 2.0),
            **measure_known(1.5, 5, 5),
        }
    else:
        found = {
            **measure_loops(1000, 20.0, 10_000),
            **measure_at_once(1000, 20.0),
            **measure_known(20.0, 20, 60),
        }
    write(options.out, options, **found)


if __name__ == "__main__":
    main()
