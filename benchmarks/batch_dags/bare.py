"""
The lower bound of the benchmark: a batch written for it alone, which keeps no account and checks nothing.

In a file of its own, so that reading it does not import the provider.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiohttp
from airflow.sdk import DAG, BaseOperator
from airflow.triggers.base import BaseTrigger, TriggerEvent

if TYPE_CHECKING:
    from airflow.sdk import Context


def account() -> tuple[str, dict[str, str]]:
    connection = json.loads(os.environ["AIRFLOW_CONN_FAL_DEFAULT"])
    return f"{connection['host']}/fal-ai", {"Authorization": f"Key {connection['password']}"}


class BareTrigger(BaseTrigger):
    """Look at each job every two seconds over one session, and fetch its result; nothing outlives it."""

    def __init__(self, *, ids: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.ids = ids

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return "benchmarks.batch_dags.bare.BareTrigger", {"ids": self.ids}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        base, headers = account()
        async with aiohttp.ClientSession(headers=headers) as session:

            async def one(request_id: str) -> str:
                url = f"{base}/flux/requests/{request_id}"
                while True:
                    async with session.get(f"{url}/status") as reply:
                        if (await reply.json())["status"] == "COMPLETED":
                            break
                    await asyncio.sleep(2.0)
                async with session.get(url) as reply:
                    return str((await reply.json())["images"][0]["url"])

            urls = await asyncio.gather(*map(one, self.ids))
        yield TriggerEvent(urls)


class BareOperator(BaseOperator):
    """Submit all, wait in one trigger, download: no ledger, no retries, no checks."""

    template_fields = ("table", "destination")

    def __init__(self, *, table: str, destination: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.table = table
        self.destination = destination

    def execute(self, context: Context) -> None:
        rows = [
            json.loads(line) for line in Path(self.table.removeprefix("file://")).read_text().splitlines()
        ]

        async def submit() -> list[str]:
            base, headers = account()
            gate = asyncio.Semaphore(10)
            async with aiohttp.ClientSession(headers=headers) as session:

                async def one(row: dict[str, Any]) -> str:
                    async with gate, session.post(f"{base}/flux/dev", json=row["arguments"]) as reply:
                        return str((await reply.json())["request_id"])

                return await asyncio.gather(*map(one, rows))

        self.defer(trigger=BareTrigger(ids=asyncio.run(submit())), method_name="land")

    def land(self, context: Context, event: list[str]) -> None:
        folder = Path(self.destination.removeprefix("file://"))
        folder.mkdir(parents=True)

        async def download() -> None:
            gate = asyncio.Semaphore(8)
            async with aiohttp.ClientSession() as session:

                async def one(index: int, url: str) -> None:
                    async with gate, session.get(url) as reply:
                        (folder / f"{index}.jpg").write_bytes(await reply.read())

                await asyncio.gather(*(one(index, url) for index, url in enumerate(event)))

        asyncio.run(download())


with DAG("bare", schedule=None, params={"table": "", "destination": ""}):
    BareOperator(task_id="night", table="{{ params.table }}", destination="{{ params.destination }}")
