"""An event loop, and a clock for the provider, on which time passes faster."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest import mock

from airflow_provider_uniapi_fal.hooks import fal as hooks
from airflow_provider_uniapi_fal.triggers import hub

T = TypeVar("T")


class FastLoop(asyncio.SelectorEventLoop):
    """
    An event loop whose seconds are shorter.

    :param scale: seconds of the loop in a real one
    """

    def __init__(self, scale: float) -> None:
        super().__init__()
        self._scale = scale
        select = self._selector.select  # type: ignore[attr-defined]

        def select_sooner(timeout: float | None = None) -> Any:
            return select(None if timeout is None else timeout / scale)

        self._selector.select = select_sooner  # type: ignore[attr-defined]

    def time(self) -> float:
        return super().time() * self._scale


@contextmanager
def faster(scale: float) -> Iterator[None]:
    """Let the clock of hook and hub go faster, too: by it they know how old a job is."""
    began = time.time()
    clock = SimpleNamespace(time=lambda: began + (time.time() - began) * scale)
    with mock.patch.object(hooks, "time", clock), mock.patch.object(hub, "time", clock):
        yield


def run(scale: float, coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end with everything faster: pauses, limits of time, intervals, ages."""
    loop = FastLoop(scale)
    try:
        with faster(scale):
            return loop.run_until_complete(coroutine)
    finally:
        left = asyncio.all_tasks(loop)
        for task in left:
            task.cancel()
        if left:
            loop.run_until_complete(asyncio.wait(left))
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()
