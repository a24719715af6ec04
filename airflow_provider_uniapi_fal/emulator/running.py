"""Start an emulator from Python: in a thread of this process, or as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import selectors
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from airflow_provider_uniapi_fal.emulator.command_line import as_arguments
from airflow_provider_uniapi_fal.emulator.control import add_control
from airflow_provider_uniapi_fal.emulator.families import FAMILIES
from airflow_provider_uniapi_fal.emulator.media import Studio
from airflow_provider_uniapi_fal.emulator.server import LARGEST_BODY, Gateway, add_routes, recorder
from airflow_provider_uniapi_fal.emulator.settings import Settings
from airflow_provider_uniapi_fal.emulator.state_file import StateFile

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.certificates import Certificate

START_SECONDS = 30.0
STOP_SECONDS = 10.0
# Calls that are still being answered when the emulator stops get this long.
GRACE_SECONDS = 0.2


class Emulator:
    """
    A running emulator, wherever it runs. All methods may be called from any thread.

    :param url: where it listens
    :param ca_file: what its clients must trust, if it speaks https
    """

    def __init__(self, url: str, ca_file: str | None = None) -> None:
        self.url = url
        self.ca_file = ca_file

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
        handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({})]
        if self.ca_file is not None:
            trust = ssl.create_default_context(cafile=self.ca_file)
            # The file may hold no authority but the server's own certificate.
            trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
            handlers.append(urllib.request.HTTPSHandler(context=trust))
        opener = urllib.request.build_opener(*handlers)
        try:
            with opener.open(request, timeout=START_SECONDS) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            with error:
                raise ValueError(json.load(error).get("error", "The emulator refused.")) from None


@dataclass(frozen=True)
class Address:
    """Where an emulator listens, and what its clients must trust, if it speaks https."""

    url: str
    ca_file: str | None


@contextlib.asynccontextmanager
async def serving(settings: Settings, *, say: Callable[[str], None] | None = None) -> AsyncIterator[Address]:
    """Serve on the running event loop, and give the address."""
    async with contextlib.AsyncExitStack() as stack:
        tls, ca_file = _tls(settings, stack)
        state_file = StateFile(settings.state) if settings.state else None
        if state_file is not None:
            stack.callback(state_file.close)
        studio = Studio(settings.render_threads)
        stack.callback(studio.close)
        gateway = Gateway(settings, studio, state_file)
        answering: set[asyncio.Task[Any]] = set()
        middlewares = [_noting(answering), recorder(gateway, say)]
        app = web.Application(client_max_size=LARGEST_BODY, middlewares=middlewares)
        for family in FAMILIES:
            add_routes(app, gateway, family)
        add_control(app, gateway)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=GRACE_SECONDS)
        await runner.setup()
        stack.push_async_callback(_end, answering)
        stack.push_async_callback(runner.cleanup)
        await web.TCPSite(runner, settings.host, settings.port, ssl_context=tls).start()
        host, port = runner.addresses[0][:2]
        scheme = "http" if tls is None else "https"
        yield Address(f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}", ca_file)


def _noting(answering: set[asyncio.Task[Any]]) -> Any:
    """Return the middleware that keeps the calls that are being answered."""

    @web.middleware
    async def note(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        task = asyncio.current_task()
        if task is not None:
            answering.add(task)
            task.add_done_callback(answering.discard)
        return await handler(request)

    return note


async def _end(answering: set[asyncio.Task[Any]]) -> None:
    """End what aiohttp leaves: it forgets a call whose client has gone, and does not wait for one that it cancels."""
    for task in answering:
        task.cancel()
    if answering:
        await asyncio.wait(answering, timeout=GRACE_SECONDS)


def _tls(settings: Settings, stack: contextlib.AsyncExitStack) -> tuple[ssl.SSLContext | None, str | None]:
    """Return what to serve https with, and the file that clients must trust."""
    cert, key, ca_file = settings.tls_cert, settings.tls_key, settings.tls_cert
    if settings.tls:
        made = _issue(Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="emulator-"))))
        cert, key = str(made.cert_file), str(made.key_file)
        ca_file = settings.ca_file or str(made.ca_file)
        if settings.ca_file:
            shutil.copyfile(made.ca_file, settings.ca_file)
    elif not cert:
        return None, None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:
        raise OSError(f"the certificate {cert} with the key {key} is of no use: {error}") from error
    return context, ca_file


def _issue(folder: Path) -> Certificate:
    # Only here, so that the library is needed for https alone.
    from airflow_provider_uniapi_fal.emulator.certificates import issue

    return issue(folder)


@contextlib.contextmanager
def running_emulator(**settings: Any) -> Iterator[Emulator]:
    """
    Run an emulator in a thread of this process, on a free port unless one is set; at the end it is gone.

    :param settings: the emulator's, by name
    """
    checked = Settings(**settings)
    thread = _ServerThread(checked)
    thread.start()
    try:
        address = thread.wait_for_address()
        yield Emulator(address.url, address.ca_file)
    finally:
        thread.stop()


class _ServerThread(threading.Thread):
    def __init__(self, settings: Settings) -> None:
        super().__init__(name="emulator", daemon=True)
        self._settings = settings
        self._ready = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = asyncio.Event()
        self._address = Address("", None)
        self._error: BaseException | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._serve())
        except BaseException as error:  # noqa: BLE001 - handed to the thread that waits
            self._error = error
        finally:
            self._ready.set()

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        async with serving(self._settings) as self._address:
            self._ready.set()
            await self._stopped.wait()

    def wait_for_address(self) -> Address:
        self._ready.wait(START_SECONDS)
        if self._error is not None:
            raise self._error
        return self._address

    def stop(self) -> None:
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop has ended by itself
                self._loop.call_soon_threadsafe(self._stopped.set)
        self.join(STOP_SECONDS)


class EmulatorProcess(Emulator):
    """
    An emulator in a process of its own: ``with EmulatorProcess(run_seconds=2) as emulator: ...``.

    It can be killed and started again, on the same port, with the same certificate and with all that it knew.

    :param start_seconds: seconds that it may take to start; default 30
    :param settings: the emulator's, by name
    """

    def __init__(self, *, start_seconds: float = START_SECONDS, **settings: Any) -> None:
        Settings(**settings)  # what is wrong with them is told here
        self._start_seconds = start_seconds
        self._folder = tempfile.TemporaryDirectory(prefix="emulator-")
        self._reserved: socket.socket | None = None
        self._settings, ca_file = self._with_files(settings)
        self._process = self._spawn()
        try:
            super().__init__(self._read_url(start_seconds), ca_file)
        except BaseException:
            self.stop()
            raise
        self._settings["port"] = int(self.url.rpartition(":")[2])

    @property
    def pid(self) -> int:
        """The process's id."""
        return self._process.pid

    def kill(self) -> None:
        """Kill the process on the spot; its port answers nobody until it is started again."""
        self._process.kill()
        self._wait()
        self._reserve_port()

    def restart(self, **changes: Any) -> None:
        """
        Start the process again, after killing it if need be.

        :param changes: settings that are others from now on
        """
        self.kill()
        self._settings.update(changes)
        self._process = self._spawn()
        try:
            self._read_url(self._start_seconds)
        except BaseException:
            self.stop()
            raise
        self._free_port()

    def stop(self) -> None:
        """Stop the process for good and wait for its end; a second time does nothing."""
        self._process.terminate()
        self._wait()
        self._free_port()
        self._folder.cleanup()

    def __enter__(self) -> EmulatorProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _with_files(self, settings: Mapping[str, Any]) -> tuple[dict[str, Any], str | None]:
        """Return the settings with a state file and a certificate that outlive the process, and the CA's file."""
        folder = Path(self._folder.name)
        lasting = {"state": str(folder / "state.jsonl"), **settings}
        if not lasting.pop("tls", False):
            return lasting, lasting.get("tls_cert")
        made = _issue(folder)
        lasting.update(tls_cert=str(made.cert_file), tls_key=str(made.key_file))
        ca_file = lasting.pop("ca_file", "")
        if ca_file:
            shutil.copyfile(made.ca_file, ca_file)
        return lasting, ca_file or str(made.ca_file)

    def _spawn(self) -> subprocess.Popen[bytes]:
        arguments = as_arguments(self._settings)
        return subprocess.Popen(  # noqa: S603 - our own module
            [sys.executable, "-m", "airflow_provider_uniapi_fal.emulator", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    def _wait(self) -> None:
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()

    def _reserve_port(self) -> None:
        """
        Hold the port while nobody listens on it.

        Else another process could be given it, or a client that calls in vain could be given it for its own end of
        the connection and reach itself. Other systems than Linux would not let the emulator have it back.
        """
        if sys.platform != "linux" or self._reserved is not None:
            return
        host = self._settings.get("host", "127.0.0.1")
        self._reserved = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
        self._reserved.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._reserved.bind((host, self._settings["port"]))

    def _free_port(self) -> None:
        if self._reserved is not None:
            self._reserved.close()
            self._reserved = None

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
        return line.decode().splitlines()[0].split()[-1]
