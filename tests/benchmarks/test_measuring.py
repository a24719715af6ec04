from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from benchmarks.measuring import Usage

# Three children in turn that are waited for, too short-lived for looks now and then, and one that stays.
PARENT = """
import os, sys, time

def child(seconds, stays=False):
    if pid := os.fork():
        return pid
    while time.process_time() < seconds:
        pass
    if stays:
        print("burnt", flush=True)
        time.sleep(60)
    os._exit(0)

def wait_for_a_word():
    print("ready", flush=True)
    sys.stdin.readline()

os.waitpid(child(0.5), 0)
wait_for_a_word()
for _ in range(3):
    os.waitpid(child(0.1), 0)
child(0.2, stays=True)
wait_for_a_word()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what ended children have used")
def test_the_cpu_of_short_processes_is_counted_once_and_wholly() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    parent = psutil.Process(process.pid)
    try:
        assert process.stdout.readline() == "ready\n"
        with Usage(lambda: [parent, *parent.children(recursive=True)], parent=process.pid) as usage:
            process.stdin.write("\n")
            process.stdin.flush()
            assert {process.stdout.readline(), process.stdout.readline()} == {"ready\n", "burnt\n"}
    finally:
        for each in [*parent.children(recursive=True), parent]:
            each.kill()
        process.communicate()
    # Half a second, in ticks of each process that are rounded down; missed children would leave 0.2, double ones make 0.8.
    assert 0.4 <= usage.cpu <= 0.7
    assert usage.memory["parent"] > 1
