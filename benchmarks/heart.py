"""What has blocked an event loop, for how long, and whose code it was."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from pathlib import Path
from types import FrameType

import airflow_provider_uniapi_fal

#: Where the provider's code lies.
OURS = Path(airflow_provider_uniapi_fal.__file__).parent

#: Seconds between looks at what the event loop's thread is doing.
SAMPLE_SECONDS = 0.002


class Heart:
    """
    Beats on the event loop; what keeps it from beating, and uses the CPU meanwhile, has blocked the loop.

    Time for which another process had the core does not count. Nor does Python's garbage collector, which comes upon
    whoever runs, and takes its time from all that Airflow has imported: it is counted by itself. Between two beats
    many callbacks may have run, of all that share the loop; a thread looks at the stack meanwhile, so that the share
    of a turn is known for which some code was on it.

    :param ours: the folder of the code that is looked for on the stack
    """

    def __init__(self, ours: Path = OURS) -> None:
        self._ours = f"{ours}/"
        self.longest = 0.0
        self.longest_ours = 0.0
        self.longest_collection = 0.0
        self._collected = 0.0
        self._began = 0.0
        self._looks = 0
        self._ours_seen = 0
        self._stop = threading.Event()

    async def beat(self) -> None:
        thread = threading.Thread(target=self._look, args=(threading.get_ident(),), daemon=True)
        gc.callbacks.append(self._collects)
        thread.start()
        try:
            while True:
                before, self._looks, self._ours_seen = time.thread_time() - self._collected, 0, 0
                await asyncio.sleep(0.001)
                # A beat may see several callbacks of one turn of the loop: this is an upper bound.
                took = time.thread_time() - self._collected - before
                self.longest = max(self.longest, took)
                self.longest_ours = max(self.longest_ours, took * self._ours_seen / max(self._looks, 1))
        finally:
            self._stop.set()
            gc.callbacks.remove(self._collects)

    def _look(self, loops_thread: int) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            frame = sys._current_frames().get(loops_thread)
            if frame is None or frame.f_code.co_name == "select":  # it waits
                continue
            self._looks += 1
            self._ours_seen += self._is_ours(frame)

    def _is_ours(self, frame: FrameType | None) -> bool:
        # Up to where the loop calls its callbacks: whoever has started the loop is on the stack, too.
        while frame is not None and frame.f_code is not asyncio.Handle._run.__code__:
            if frame.f_code.co_filename.startswith(self._ours):
                return True
            frame = frame.f_back
        return False

    def _collects(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = time.thread_time()
        elif threading.current_thread() is threading.main_thread():
            took = time.thread_time() - self._began
            self._collected += took
            self.longest_collection = max(self.longest_collection, took)
