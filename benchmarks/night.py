"""
A bad night, shortened: ``python -m benchmarks.night``.

All goes sixty times as fast: the gateway, and the clock by which the provider rests, waits and gives up, so that what
it does is what it would do in a whole night. All seconds are of that clock. Jobs come all the time; the gateway answers 429 and 5xx in bursts, is
restarted once, its key is changed once, and it allows the account so many calls a second only. Half of the jobs are
followed by the status stream, of the others half are polled at a fixed interval. Counted: waits that were lost, waits
that failed, and the most requests in a second.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
from collections import Counter
from typing import Any

from airflow_provider_uniapi_fal.emulator.running import EmulatorProcess
from airflow_provider_uniapi_fal.exceptions import FalError
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.protocol.errors import Failure
from airflow_provider_uniapi_fal.protocol.job import JobResult
from airflow_provider_uniapi_fal.protocol.watching import Watch
from airflow_provider_uniapi_fal.triggers.hub import Waits, waits
from benchmarks.fast import run
from benchmarks.measuring import write

SCALE = 60.0
OLD_KEY, NEW_KEY = "benchmark-old-key", "benchmark-new-key"
INPUT = {"prompt": "a lighthouse", "image_size": {"width": 64, "height": 64}}

#: Calls that the account may make in a second: more than the waits make in the mean.
CALLS_A_SECOND = 2.0

#: How the waits learn of the end, one after the other.
WAYS: tuple[dict[str, Any], ...] = (
    {"by": "stream"},
    {"by": "poll"},
    {"by": "stream"},
    {"by": "poll", "poke_interval": 10.0},
)

#: What a 429 says is a time of the emulator's, which it would shorten.
RATE_LIMIT = f"rate-limit retry_after={60 * SCALE:g}"

#: When what happens, as shares of the night, and to how many calls, as shares of the jobs.
FAULTS = (
    (0.15, f"{RATE_LIMIT} on=status", 0.04),
    (0.30, "server-error on=status status=503", 0.2),
    (0.35, "html on=result status=502", 0.1),
    (0.55, "lost-reply on=status", 0.2),
    (0.75, f"{RATE_LIMIT} on=result", 0.04),
)
RESTART_AT = 0.45
AWAY_SECONDS = 60.0
NEW_KEY_AT = 0.65


def connect(url: str, key: str) -> None:
    value = {"conn_type": "uniapi_fal", "host": url, "password": key}
    os.environ["AIRFLOW_CONN_FAL_DEFAULT"] = json.dumps(value)


async def submit_all(waiting: Waits, jobs: int, seconds: float, lost: Counter[str]) -> None:
    """Submit jobs evenly over the first nine tenths of the night."""
    clock = asyncio.get_running_loop().time
    began = clock()
    for number in range(jobs):
        await asyncio.sleep(max(began + 0.9 * seconds * number / jobs - clock(), 0))
        try:
            accepted = await FalHook().asubmit("flux/dev", INPUT)
        except FalError as error:
            lost[f"submit: {type(error).__name__}"] += 1
            continue
        waiting.add(Watch(accepted.handle, **WAYS[number % len(WAYS)]))  # type: ignore[union-attr]


async def harm(emulator: EmulatorProcess, jobs: int, seconds: float) -> None:
    """Let happen what happens."""
    faults = [(share, f"{rule} times={math.ceil(calls * jobs)}") for share, rule, calls in FAULTS]
    plan: list[tuple[float, str]] = sorted([*faults, (RESTART_AT, "restart"), (NEW_KEY_AT, "new key")])
    clock = asyncio.get_running_loop().time
    began = clock()
    for share, what in plan:
        await asyncio.sleep(max(began + share * seconds - clock(), 0))
        print(f"{share * seconds / 60:.0f} minutes: {what}", flush=True)
        if what == "restart":
            await asyncio.to_thread(emulator.kill)
            await asyncio.sleep(AWAY_SECONDS)
            await asyncio.to_thread(emulator.restart)
        elif what == "new key":
            # As with any rotation, the connection has the new key before the old one is refused.
            connect(emulator.url, NEW_KEY)
            await asyncio.to_thread(emulator.restart, key=NEW_KEY)
        else:
            await asyncio.to_thread(emulator.add_fault, what)


async def night(emulator: EmulatorProcess, jobs: int, seconds: float) -> dict[str, Any]:
    """Live through it."""
    outcomes: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    async with waits(say=lambda line: None) as waiting:
        submitting = asyncio.ensure_future(submit_all(waiting, jobs, seconds, lost))
        harming = asyncio.ensure_future(harm(emulator, jobs, seconds))
        while not submitting.done() or waiting.open:
            if not waiting.open:
                await asyncio.sleep(1.0)
                continue
            _, end = await waiting.next_end()
            kind = "succeeded" if isinstance(end, JobResult) else "other"
            outcomes[end.kind.value if isinstance(end, Failure) else kind] += 1
        await harming
    return {"jobs": jobs, "outcomes": dict(outcomes), "not submitted": dict(lost)}


def main() -> None:
    """Measure, and print what was measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.night", description=__doc__)
    parser.add_argument("--jobs", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=30.0, help="length of the night")
    parser.add_argument("--short", action="store_true", help="few jobs, to see that it runs")
    parser.add_argument("--out", help="write the figures to this file, as JSON")
    options = parser.parse_args()
    if options.short:
        options.jobs, options.minutes = 20, 10.0
    seconds = options.minutes * 60
    settings: dict[str, Any] = {
        "queue_seconds": 60.0,
        "run_seconds": 120.0,
        "spread": 0.5,
        "urls": "gateway",
        "stream": "offered",
        "calls_a_second": CALLS_A_SECOND,
    }
    with EmulatorProcess(time_scale=SCALE, key=OLD_KEY, **settings) as emulator:
        connect(emulator.url, OLD_KEY)
        found = run(SCALE, night(emulator, options.jobs, seconds))
        account = emulator.account()
        seen = emulator.requests()
    requests = Counter(int(each["time"] * SCALE) for each in seen)
    minutes = Counter(int(each["time"] * SCALE / 60) for each in seen)
    found["accepted posts"] = account["totals"]["posts_accepted"]
    found["replies"] = account["totals"]["replies_by_status"]
    found["by operation"] = dict(Counter(each["operation"] for each in seen))
    found["requests"] = sum(requests.values())
    found["most requests in a second"] = max(requests.values())
    found["most requests in a minute"] = max(minutes.values())
    found["mean requests in a second"] = sum(requests.values()) / seconds
    print(json.dumps(found, indent=2))
    write(options.out, options, **found)


if __name__ == "__main__":
    main()
