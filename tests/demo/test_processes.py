from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from demo import processes as processes_module
from demo.processes import Child, Processes

# A child with a grandchild in the same session, one that opened a session of its own, and one that also has
# nothing of our environment.
FAMILY = textwrap.dedent(
    """
    import subprocess, sys, time
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    same = subprocess.Popen(sleep)
    other = subprocess.Popen(sleep, start_new_session=True)
    bare = subprocess.Popen(sleep, start_new_session=True, env={})
    print(same.pid, other.pid, bare.pid, flush=True)
    time.sleep(600)
    """
)

# A program that starts the family, says who they are, and then ends in the asked way.
PROGRAM = textwrap.dedent(
    """
    import os, signal, sys, time
    from pathlib import Path
    from demo.processes import Processes
    # A shell that starts the tests in the background ignores SIGINT, and its children inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    folder, ending, family = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
    with Processes() as processes:
        child = processes.start("family", [sys.executable, "-c", family],
                                environment=os.environ, folder=folder, log=folder / "family.log")
        while not (folder / "family.log").read_text().endswith("\\n"):
            time.sleep(0.02)
        print(child.pid, flush=True)
        if ending == "exception":
            raise RuntimeError("something else failed")
        if ending == "os._exit":
            os._exit(3)
        time.sleep(600)
    """
)


def wait_for(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for {what}"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def start_family(processes: Processes, folder: Path) -> tuple[Child, list[int]]:
    log = folder / "family.log"
    child = processes.start(
        "family", [sys.executable, "-c", FAMILY], environment=os.environ, folder=folder, log=log
    )
    wait_for(lambda: log.read_text().endswith("\n"), "the family")
    return child, [child.pid, *map(int, log.read_text().split())]


def test_leaving_ends_children_and_grandchildren_in_any_session(tmp_path: Path) -> None:
    with Processes() as processes:
        _, pids = start_family(processes, tmp_path)
        assert {process.pid for process in processes.running()} == set(pids)
    assert [pid for pid in pids if not gone(pid)] == []
    assert processes.running() == []


def test_grandchildren_end_although_the_child_was_killed_before(tmp_path: Path) -> None:
    with Processes() as processes:
        child, pids = start_family(processes, tmp_path)
        # Once its parent is gone, nothing tells this one from a stranger.
        psutil.Process(pids.pop()).kill()
        child.signal(signal.SIGKILL, alone=True)
        wait_for(lambda: child.ended, "the child's end")
        assert {process.pid for process in processes.running()} == set(pids[1:])
    assert [pid for pid in pids if not gone(pid)] == []


def test_everything_ends_also_when_the_guard_was_killed(tmp_path: Path) -> None:
    others = {child.pid for child in psutil.Process().children()}
    with Processes() as processes:
        _, pids = start_family(processes, tmp_path)
        (guard,) = {child.pid for child in psutil.Process().children()} - {pids[0], *others}
        psutil.Process(guard).kill()
        wait_for(lambda: gone(guard), "the guard's end")
    assert [pid for pid in pids if not gone(pid)] == []


def test_a_guard_whose_starter_was_interrupted_says_nothing_and_does_its_work(tmp_path: Path) -> None:
    # Ctrl-C while the guard starts: nobody reads its answer any more, and the pipe for the sessions is closed.
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    nobody_reads, its_output = os.pipe()
    os.close(nobody_reads)
    try:
        guard = subprocess.run(
            [sys.executable, "-E", processes_module.__file__, "a-marker-of-nobody"],
            input=f"{child.pid}\n".encode(),
            stdout=its_output,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
        assert (guard.returncode, guard.stderr) == (0, b"")
        assert child.wait(20) == -signal.SIGKILL
    finally:
        os.close(its_output)
        child.kill()
        child.wait()


def test_a_frozen_child_ends_too(tmp_path: Path) -> None:
    with Processes() as processes:
        child, pids = start_family(processes, tmp_path)
        child.signal(signal.SIGSTOP)
        assert not child.ended
    assert [pid for pid in pids if not gone(pid)] == []


def test_killing_one_child_leaves_the_others_alone(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with Processes() as processes:
        one, ones = start_family(processes, tmp_path / "one")
        _, twos = start_family(processes, tmp_path / "two")
        one.kill()
        assert [pid for pid in ones if not gone(pid)] == []
        assert [pid for pid in twos if gone(pid)] == []


def test_two_sets_do_not_touch_each_other(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with Processes() as staying:
        _, pids = start_family(staying, tmp_path / "one")
        with Processes() as leaving:
            start_family(leaving, tmp_path / "two")
        assert [pid for pid in pids if gone(pid)] == []


@pytest.mark.parametrize(
    "ending", ["exception", "os._exit", signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=str
)
def test_nothing_outlives_the_program_however_it_ends(ending: str | signal.Signals, tmp_path: Path) -> None:
    program = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(ending), FAMILY],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        cwd=tmp_path,
    )
    try:
        assert program.stdout is not None
        pids = [int(program.stdout.readline()), *map(int, (tmp_path / "family.log").read_text().split())]
        if isinstance(ending, signal.Signals):
            assert [pid for pid in pids if gone(pid)] == []
            program.send_signal(ending)
        program.wait(20)
        wait_for(lambda: all(gone(pid) for pid in pids), "the family's end")
    finally:
        program.kill()
        program.wait()
        if program.stdout is not None:
            program.stdout.close()


def test_the_end_of_a_childs_output_can_be_read(tmp_path: Path) -> None:
    with Processes() as processes:
        child = processes.start(
            "talker",
            [sys.executable, "-c", "print('one\\ntwo\\nthree')"],
            environment=os.environ,
            folder=tmp_path,
            log=tmp_path / "talker.log",
        )
        wait_for(lambda: child.ended, "the talker's end")
        assert child.tail(2) == "two\nthree"


def test_nothing_is_started_after_the_end(tmp_path: Path) -> None:
    processes = Processes()
    with processes:
        pass
    with pytest.raises(RuntimeError, match="already stopped"):
        processes.start(
            "late", [sys.executable, "-c", ""], environment={}, folder=tmp_path, log=tmp_path / "late.log"
        )
