"""The studio: renders media files when they are asked for, off the event loop, and keeps the last ones."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

from airflow_provider_uniapi_fal.emulator.pictures import UnreadablePictureError, paint
from airflow_provider_uniapi_fal.emulator.videos import film

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.inputs import Recipe

KEPT_BYTES = 128 * 1024 * 1024

__all__ = ["MediaFile", "Studio", "UnreadablePictureError"]


@dataclass(frozen=True)
class MediaFile:
    """A rendered file."""

    recipe: Recipe
    data: bytes


class Studio:
    """Renders at most ``threads`` files at once; asked twice for the same, it renders once."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(max_workers=max(1, threads), thread_name_prefix="studio")
        self._kept: OrderedDict[Recipe, MediaFile] = OrderedDict()
        self._kept_bytes = 0
        self._under_way: dict[Recipe, asyncio.Future[MediaFile]] = {}

    async def develop(self, recipe: Recipe) -> MediaFile:
        """Return the file of a recipe."""
        kept = self._kept.get(recipe)
        if kept is not None:
            self._kept.move_to_end(recipe)
            return kept
        work = self._under_way.get(recipe)
        if work is None:
            work = asyncio.get_running_loop().run_in_executor(self._pool, _render, recipe)
            self._under_way[recipe] = work
            work.add_done_callback(lambda done: self._finish(recipe, done))
        # One who waits may leave; the others still get their file.
        return await asyncio.shield(work)

    def close(self) -> None:
        """Render nothing any more."""
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _finish(self, recipe: Recipe, work: asyncio.Future[MediaFile]) -> None:
        del self._under_way[recipe]
        if work.cancelled() or work.exception() is not None:
            return
        self._kept[recipe] = work.result()
        self._kept_bytes += len(work.result().data)
        while self._kept_bytes > KEPT_BYTES and len(self._kept) > 1:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= len(oldest.data)


def _render(recipe: Recipe) -> MediaFile:
    return MediaFile(recipe, film(recipe) if recipe.kind == "video" else paint(recipe))
