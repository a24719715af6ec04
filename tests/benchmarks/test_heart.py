from __future__ import annotations

import asyncio
import time
import timeit
from collections.abc import Callable
from pathlib import Path

from benchmarks.heart import Heart


def burn() -> None:
    until = time.thread_time() + 0.2
    while time.thread_time() < until:
        pass


async def beaten(block: Callable[[asyncio.AbstractEventLoop], object]) -> Heart:
    heart = Heart(Path(__file__).parent)
    beating = asyncio.ensure_future(heart.beat())
    await asyncio.sleep(0.05)
    before = heart.longest
    block(asyncio.get_running_loop())
    while heart.longest <= max(before, 0.1):
        await asyncio.sleep(0.01)
    beating.cancel()
    await asyncio.gather(beating, return_exceptions=True)
    return heart


def test_a_block_is_ours_if_our_code_was_on_the_stack() -> None:
    heart = asyncio.run(beaten(lambda loop: loop.call_soon(burn)))
    assert heart.longest >= 0.15
    assert heart.longest_ours >= 0.5 * heart.longest


def test_a_block_by_the_code_of_others_is_not_ours() -> None:
    heart = asyncio.run(
        beaten(lambda loop: loop.call_soon(timeit.timeit, "pass", "pass", time.thread_time, 30_000_000))
    )
    assert heart.longest >= 0.1
    assert heart.longest_ours <= 0.5 * heart.longest
