"""
Start child processes, and be certain that none of them outlives this one.

Every child leads a session of its own, so whatever it starts can be told from everything else on
the machine, also after a parent in between was killed. A small guard process does the ending: it
waits on a pipe, and when the pipe closes it kills all that is left. The pipe closes when
`Processes.stop` says so, and it closes as well when this process dies, in whatever way: an
exception, a signal, `os._exit`, SIGKILL. There is one way out, and every use of it is a test of it.

Children are killed, not asked: what runs here is made to be thrown away, and Airflow's scheduler
would first wait for its running tasks.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import psutil

MARKER = "UNIAPI_FAL_DEMO_PROCESSES"
"""Environment variable that marks our children, for one that opens a session of its own."""

STOP_TIMEOUT = 30.0
READY = b"ready\n"


class Child:
    """A started child process and everything that it starts."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.log = log
        self.pid = process.pid
        self._process = process

    @property
    def ended(self) -> bool:
        """Say whether the child itself has ended (what it started may still run)."""
        # Not Popen.poll(): that would reap the child, and its number, which names the session, could
        # then be given to a stranger while members of the session are still running.
        try:
            return psutil.Process(self.pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def members(self) -> list[psutil.Process]:
        """List the running processes of the child's session, the child included."""
        return _ours({self.pid}, marker=None)

    def tail(self, lines: int = 25) -> str:
        """Return the end of what the child wrote."""
        if not self.log.exists():
            return ""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:])

    def signal(self, signum: int, *, alone: bool = False) -> None:
        """Send a signal to everything in the child's session, or to the child `alone`."""
        for process in [psutil.Process(self.pid)] if alone else self.members():
            _send(process, signum)

    def kill(self) -> None:
        """Kill everything in the child's session, as losing its machine would."""
        _end({self.pid}, marker=None)


class Processes:
    """A set of child processes that ends, whole, with the `with` block or with this process."""

    def __init__(self) -> None:
        self.marker = secrets.token_hex(12)
        self.children: list[Child] = []
        self._popen: list[subprocess.Popen[bytes]] = []
        self._guard: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Processes:
        # A session of its own, so that Ctrl-C in a terminal does not reach it; -E, so that what the
        # environment says about Python does not either.
        self._guard = subprocess.Popen(
            [sys.executable, "-E", str(Path(__file__).resolve()), self.marker],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        if self._guard.stdout is None or self._guard.stdout.readline() != READY:
            self.stop()
            raise RuntimeError("the guard process did not start")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path
    ) -> Child:
        """Start a command in a session of its own, with its output appended to `log`."""
        if self._guard is None or self._guard.stdin is None:
            raise RuntimeError("the processes are not entered yet, or already stopped")
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env={**environment, MARKER: self.marker},
                start_new_session=True,
            )
        # Should we die before this line is written, the marker still finds the child.
        self._guard.stdin.write(f"{process.pid}\n".encode())
        self._guard.stdin.flush()
        self._popen.append(process)
        child = Child(name, process, log)
        self.children.append(child)
        return child

    def running(self) -> list[psutil.Process]:
        """List every process that was started here, or by one that was, and still runs."""
        return _ours({child.pid for child in self.children}, self.marker)

    def stop(self) -> None:
        """End everything that was started here; doing it twice does no harm."""
        guard, self._guard = self._guard, None
        if guard is None:
            return
        for pipe in (guard.stdin, guard.stdout):
            with contextlib.suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        guard.wait(STOP_TIMEOUT)
        # The guard has done this, unless someone killed it.
        _end({child.pid for child in self.children}, self.marker)
        for process in self._popen:
            process.wait(STOP_TIMEOUT)


def _ours(sessions: set[int], marker: str | None) -> list[psutil.Process]:
    """List the running processes of these sessions, the marked ones, and all their descendants."""
    parents: dict[int, int] = {}
    processes: dict[int, psutil.Process] = {}
    ours: set[int] = set()
    for process in psutil.process_iter():
        try:
            if process.status() == psutil.STATUS_ZOMBIE:
                continue
            parents[process.pid] = process.ppid()
            processes[process.pid] = process
            if os.getsid(process.pid) in sessions or (marker is not None and _is_marked(process, marker)):
                ours.add(process.pid)
        except (psutil.Error, OSError):
            continue
    while more := {pid for pid, parent in parents.items() if parent in ours} - ours:
        ours |= more
    return [processes[pid] for pid in sorted(ours)]


def _is_marked(process: psutil.Process, marker: str) -> bool:
    try:
        return process.environ().get(MARKER) == marker
    except (psutil.Error, OSError):
        return False


def _send(process: psutil.Process, signum: int) -> None:
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signum)


def _end(sessions: set[int], marker: str | None) -> None:
    """Kill until nothing is left: a process may start another one while we are looking."""
    while processes := _ours(sessions, marker):
        for process in processes:
            _send(process, signal.SIGKILL)
        time.sleep(0.01)


def guard(marker: str, lines: BinaryIO, ready: int) -> None:
    """Read the sessions to end, one a line, and end them when there are no more lines."""
    # Whoever started us may have been interrupted meanwhile and listen no more; the ending is done all the
    # same. A bare write, because a buffered one that failed is tried again, and complained of, at the exit.
    with contextlib.suppress(BrokenPipeError):
        os.write(ready, READY)
    _end({int(line) for line in lines}, marker)


if __name__ == "__main__":
    guard(sys.argv[1], sys.stdin.buffer, sys.stdout.fileno())
