"""
What a user would pick instead of this provider, written as its users write it.

Each reads where the gateway is from the environment: ``BENCH_URL`` and ``BENCH_KEY``.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable
from typing import Any

import aiohttp
import requests
from airflow.sdk import BaseOperator, Context
from airflow.triggers.base import BaseTrigger, TriggerEvent

MODEL = "flux/dev"

#: Seconds between polls, of every way that does not choose its own.
POLL_SECONDS = 2.0

#: Submits under way at once, of every batch.
SUBMITS_AT_ONCE = 50


def headers() -> dict[str, str]:
    return {"Authorization": f"Key {os.environ['BENCH_KEY']}"}


def arguments(prompt: str) -> dict[str, Any]:
    return {"prompt": prompt, "image_size": {"width": 64, "height": 64}}


def submit(prompt: str) -> str:
    """Submit a job and return the path of its requests."""
    url = f"{os.environ['BENCH_URL']}/fal-ai/{MODEL}"
    reply = requests.post(url, json=arguments(prompt), headers=headers(), timeout=60)
    reply.raise_for_status()
    return f"/fal-ai/flux/requests/{reply.json()['request_id']}"


def loop_of_the_seed(prompt: str) -> None:
    """Submit, then ask every two seconds with a request of its own, in the worker."""
    job = os.environ["BENCH_URL"] + submit(prompt)
    while True:
        reply = requests.get(f"{job}/status", headers=headers(), timeout=60)
        if reply.status_code == 200 and reply.json()["status"] == "COMPLETED":
            break
        time.sleep(POLL_SECONDS)
    requests.get(job, headers=headers(), timeout=60).raise_for_status()


def subscribe_of_fal_client(prompt: str) -> None:
    """Wait in the worker with fal-client, as it comes."""
    import fal_client

    fal_client.subscribe(f"fal-ai/{MODEL}", arguments=arguments(prompt))


async def watch(session: aiohttp.ClientSession, job: str) -> None:
    while True:
        async with session.get(f"{job}/status") as reply:
            if (await reply.json())["status"] == "COMPLETED":
                return
        await asyncio.sleep(POLL_SECONDS)


class PlainOperator(BaseOperator):
    """One trigger for each job, and a session for each poll: how most deferrable operators are written."""

    template_fields = ("prompt",)

    def __init__(self, *, prompt: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prompt = prompt

    def execute(self, context: Context) -> None:
        self.defer(trigger=PlainTrigger(job=submit(self.prompt)), method_name="execute_complete")

    def execute_complete(self, context: Context, event: str) -> None:
        requests.get(os.environ["BENCH_URL"] + event, headers=headers(), timeout=60).raise_for_status()


class PlainTrigger(BaseTrigger):
    """Polls one job."""

    def __init__(self, *, job: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.job = job

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (f"{type(self).__module__}.{type(self).__qualname__}", {"job": self.job})

    async def run(self) -> AsyncIterator[TriggerEvent]:
        while True:
            async with (
                aiohttp.ClientSession(headers=headers()) as session,
                session.get(f"{os.environ['BENCH_URL']}{self.job}/status") as reply,
            ):
                if (await reply.json())["status"] == "COMPLETED":
                    break
            await asyncio.sleep(POLL_SECONDS)
        yield TriggerEvent(self.job)


async def submit_all(prompts: Iterable[str]) -> list[str]:
    """Submit jobs over one session, as many at once as the provider's batch does; return their paths."""
    url = f"{os.environ['BENCH_URL']}/fal-ai/{MODEL}"

    async def submit_one(session: aiohttp.ClientSession, prompt: str) -> str:
        async with session.post(url, json=arguments(prompt)) as reply:
            reply.raise_for_status()
            return f"/fal-ai/flux/requests/{(await reply.json())['request_id']}"

    connector = aiohttp.TCPConnector(limit=SUBMITS_AT_ONCE)
    async with aiohttp.ClientSession(headers=headers(), connector=connector) as session:
        return await asyncio.gather(*(submit_one(session, prompt) for prompt in prompts))


class BareBatchOperator(BaseOperator):
    """One trigger for all jobs, one session, and nothing else: the least that Airflow allows."""

    def __init__(self, *, prompts: Any, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prompts = prompts

    template_fields = ("prompts",)

    def execute(self, context: Context) -> None:
        jobs = asyncio.run(submit_all(self.prompts))
        self.defer(trigger=BareBatchTrigger(jobs=jobs), method_name="execute_complete")

    def execute_complete(self, context: Context, event: int) -> None:
        return


class BareBatchTrigger(BaseTrigger):
    """Polls all jobs, and fetches their results."""

    def __init__(self, *, jobs: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.jobs = jobs

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (f"{type(self).__module__}.{type(self).__qualname__}", {"jobs": self.jobs})

    async def run(self) -> AsyncIterator[TriggerEvent]:
        async with aiohttp.ClientSession(headers=headers()) as session:

            async def whole(job: str) -> None:
                await watch(session, job)
                async with session.get(job) as reply:
                    reply.raise_for_status()

            await asyncio.gather(*(whole(os.environ["BENCH_URL"] + job) for job in self.jobs))
        yield TriggerEvent(len(self.jobs))
