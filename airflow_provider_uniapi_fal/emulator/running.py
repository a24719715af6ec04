"""Start an emulator from Python: in a thread of this process, or as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import selectors
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from typing import Any

from aiohttp import web

from airflow_provider_uniapi_fal.emulator import fal
from airflow_provider_uniapi_fal.emulator.command_line import as_arguments
from airflow_provider_uniapi_fal.emulator.control import add_control
from airflow_provider_uniapi_fal.emulator.media import Studio
from airflow_provider_uniapi_fal.emulator.server import LARGEST_BODY, Gateway, add_routes, recorder
from airflow_provider_uniapi_fal.emulator.settings import Settings

START_SECONDS = 30.0
STOP_SECONDS = 10.0
# Calls that are still being answered when the emulator stops get this long.
GRACE_SECONDS = 0.2


class Emulator:
    """A running emulator, wherever it runs. All methods may be called from any thread."""

    def __init__(self, url: str) -> None:
        self.url = url

    def account(self) -> dict[str, Any]:
        """Return the account: totals, ``posts_by_arguments``, and every job."""
        return dict(self._call("GET", "account"))

    def requests(self) -> list[dict[str, Any]]:
        """Return every request seen, oldest first."""
        return list(self._call("GET", "requests"))

    def add_fault(self, rule: str | Mapping[str, Any] | None = None, /, **fields: Any) -> None:
        """Put a rule in force, given as a mapping, in words, or as keyword arguments."""
        self._call("POST", "faults", fields if rule is None else rule)

    def clear_faults(self) -> None:
        """Take all rules out of force."""
        self._call("DELETE", "faults")

    def reset(self) -> None:
        """Forget all jobs, requests and added rules."""
        self._call("POST", "reset")

    def health(self) -> dict[str, Any]:
        """Return that the emulator is well."""
        return dict(self._call("GET", "health"))

    def _call(self, method: str, name: str, payload: Any = None) -> Any:
        body = None if payload is None else json.dumps(payload).encode()
        request = urllib.request.Request(f"{self.url}/_emulator/{name}", data=body, method=method)  # noqa: S310
        # A proxy set for the outside world must not be asked for a local address.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=START_SECONDS) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(json.load(error).get("error", "The emulator refused.")) from None


@contextlib.asynccontextmanager
async def serving(settings: Settings, *, say: Callable[[str], None] | None = None) -> AsyncIterator[str]:
    """Serve on the running event loop, and give the address."""
    studio = Studio(settings.render_threads)
    gateway = Gateway(settings, studio)
    app = web.Application(client_max_size=LARGEST_BODY, middlewares=[recorder(gateway, say)])
    add_routes(app, gateway, fal.ROUTES)
    add_control(app, gateway)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=GRACE_SECONDS)
    await runner.setup()
    try:
        site = web.TCPSite(runner, settings.host, settings.port)
        await site.start()
        host, port = runner.addresses[0][:2]
        yield f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    finally:
        await runner.cleanup()
        studio.close()


@contextlib.contextmanager
def running_emulator(**settings: Any) -> Iterator[Emulator]:
    """Run an emulator in a thread of this process, on a free port unless one is set; at the end it is gone."""
    checked = Settings(**settings)
    thread = _ServerThread(checked)
    thread.start()
    try:
        yield Emulator(thread.wait_for_url())
    finally:
        thread.stop()


class _ServerThread(threading.Thread):
    def __init__(self, settings: Settings) -> None:
        super().__init__(name="emulator", daemon=True)
        self._settings = settings
        self._ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stopped = asyncio.Event()
        self._url = ""
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            self._loop.run_until_complete(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._error = error
        finally:
            self._loop.close()
            self._ready.set()

    async def _serve(self) -> None:
        async with serving(self._settings) as self._url:
            self._ready.set()
            await self._stopped.wait()

    def wait_for_url(self) -> str:
        self._ready.wait(START_SECONDS)
        if self._error is not None:
            raise self._error
        return self._url

    def stop(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended by itself
            self._loop.call_soon_threadsafe(self._stopped.set)
        self.join(STOP_SECONDS)


class EmulatorProcess(Emulator):
    """An emulator in a process of its own: ``with EmulatorProcess(run_seconds=2) as emulator: ...``."""

    def __init__(self, *, start_seconds: float = START_SECONDS, **settings: Any) -> None:
        command = [sys.executable, "-m", "airflow_provider_uniapi_fal.emulator", *as_arguments(settings)]
        self._process = subprocess.Popen(  # noqa: S603 - our own module
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        try:
            super().__init__(self._read_url(start_seconds))
        except BaseException:
            self.stop()
            raise

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def stop(self) -> None:
        """Stop the process and wait for its end; a second time does nothing."""
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def __enter__(self) -> EmulatorProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _read_url(self, seconds: float) -> str:
        stdout = self._process.stdout
        if stdout is None:
            raise RuntimeError("The emulator has no output to read its address from.")
        deadline = time.monotonic() + seconds
        line = b""
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while not line.endswith(b"\n"):
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise TimeoutError(f"The emulator did not start within {seconds:g} s.")
                part = os.read(stdout.fileno(), 4096)
                if not part:
                    raise RuntimeError(f"The emulator ended at its start with code {self._process.wait()}.")
                line += part
        return line.decode().split()[-1]
