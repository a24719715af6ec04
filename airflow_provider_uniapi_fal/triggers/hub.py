"""Many waits on one event loop: each is looked at when it is due, and its end is handed out once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from airflow_provider_uniapi_fal.exceptions import FalError
from airflow_provider_uniapi_fal.hooks.fal import FalHook, watching_round
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.watching import RoundEnd, WaitMore, Watch

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.transport.nonblocking import NonblockingTransport

MAX_BODY_BYTES = 1024 * 1024


class Waits:
    """The waits of one user of the loop."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._ends: asyncio.Queue[tuple[Watch, RoundEnd]] = asyncio.Queue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._hooks: dict[str, FalHook] = {}

    def add(self, watch: Watch) -> None:
        """Begin to watch a job."""
        task = asyncio.ensure_future(self._wait(watch))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def next_end(self) -> tuple[Watch, RoundEnd]:
        """Return the next wait that ended, and how."""
        return await self._ends.get()

    @property
    def open(self) -> int:
        """How many have not ended, or were not handed out."""
        return len(self._tasks) + self._ends.qsize()

    async def drop(self) -> None:
        """Give up what still waits."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _wait(self, watch: Watch) -> None:
        try:
            end = await self._ended(watch)
        except FalError as error:
            end = error.failure.while_waiting(watch.handle.request_id)
        self._ends.put_nowait((watch, end))

    async def _ended(self, watch: Watch) -> RoundEnd:
        hook = self._hooks.setdefault(watch.handle.fal_conn_id, FalHook(watch.handle.fal_conn_id))
        account = await hook.aaccount()
        while True:
            async with hook.pool(MAX_BODY_BYTES) as transport:
                end = await self._rounds(watch, transport)
            refused = isinstance(end, Failure) and end.kind is FailureKind.AUTH
            if not refused or account == await hook.aaccount(again=True):
                return end
            account = hook.account

    async def _rounds(self, watch: Watch, transport: NonblockingTransport) -> RoundEnd:
        while True:
            end = await transport.run(watching_round(watch))
            for line in watch.take_news():
                self._say(line)
            if not isinstance(end, WaitMore):
                return end
            await asyncio.sleep(end.seconds)


@asynccontextmanager
async def waits(*, say: Callable[[str], None]) -> AsyncIterator[Waits]:
    """Lend a place for waits; leaving it drops those that have not ended."""
    many = Waits(say)
    try:
        yield many
    finally:
        await many.drop()
