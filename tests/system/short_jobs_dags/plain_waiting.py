"""What a deferrable operator usually looks like: it submits, defers at once, and its trigger polls until the end."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import requests
from airflow.sdk import BaseOperator, Context
from airflow.triggers.base import BaseTrigger, TriggerEvent

SECONDS_BETWEEN_LOOKS = 0.5


def authorization() -> dict[str, str]:
    return {"Authorization": f"Key {os.environ['PLAIN_KEY']}"}


class PlainOperator(BaseOperator):
    """Knows nothing of the race between a deferral and the executor's word of it."""

    template_fields = ("prompt",)

    def __init__(self, *, prompt: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prompt = prompt

    def execute(self, context: Context) -> None:
        submitted = requests.post(
            os.environ["PLAIN_SUBMIT_URL"], json={"prompt": self.prompt}, headers=authorization(), timeout=60
        )
        submitted.raise_for_status()
        trigger = PlainTrigger(status_url=submitted.json()["status_url"])
        self.defer(trigger=trigger, method_name="execute_complete")

    def execute_complete(self, context: Context, event: dict[str, Any]) -> dict[str, Any]:
        return event


class PlainTrigger(BaseTrigger):
    def __init__(self, *, status_url: str) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.status_url = status_url

    def serialize(self) -> tuple[str, dict[str, Any]]:
        return (f"{type(self).__module__}.{type(self).__qualname__}", {"status_url": self.status_url})

    async def run(self) -> AsyncIterator[TriggerEvent]:
        async with aiohttp.ClientSession(headers=authorization()) as session:
            while True:
                async with session.get(self.status_url) as reply:
                    status = await reply.json()
                if status["status"] == "COMPLETED":
                    break
                await asyncio.sleep(SECONDS_BETWEEN_LOOKS)
        yield TriggerEvent(status)
