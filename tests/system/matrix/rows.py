"""
The table: what may happen to a job, and how it ends after it.

Read a row as: if this happens, then so many jobs were paid for, so many were asked to be cancelled, and the run has
ended so.
"""

from __future__ import annotations

from tests.system.matrix.cells import DEFERRABLE, Cell, Ends, Row

TAKEN_UP = Ends(tries=2, words=["Re-attaching to request"])


UNKNOWN = Ends(
    "failed",
    tries=2,
    outcome="unknown",
    words=["The outcome of the submit is unknown", "left no trace", "The job may still be running."],
    brings="",
)


def killed_at_its_gate(cell: Cell) -> None:
    cell.until_at_gate()
    cell.kill_task()


def killed_before_its_delivery(cell: Cell) -> None:
    cell.until_at_gate()
    cell.kill_task(cell.wait_task)


def killed_while_the_reply_is_out(cell: Cell) -> None:
    cell.until_accepted()
    cell.kill_task()


def killed_and_cleared(cell: Cell) -> None:
    killed_at_its_gate(cell)
    assert cell.ended() == "failed"
    cell.clear(cell.submit_task)


def worker_killed_at_its_gate(cell: Cell) -> None:
    cell.until_at_gate()
    cell.kill_worker()


def nothing(cell: Cell) -> None:
    """Do no more than what gate, job and faults do."""


HELD_REPLY = [{"fault": "slow", "on": "submit", "seconds": 300, "times": 1}]


KILLS = [
    Row(
        "a task killed before it says what it is about to do submits in its next try",
        killed_at_its_gate,
        {DEFERRABLE: Ends(tries=2, words=["There is no record of a submit. Submitting."])},
        gate="before the intent",
    ),
    Row(
        "a task killed just before its post submits no more, for nobody knows that it had not posted",
        killed_at_its_gate,
        {
            DEFERRABLE: Ends(
                "failed",
                posts=0,
                tries=2,
                outcome="unknown",
                words=UNKNOWN.words,
                brings="",
            )
        },
        gate="before the post",
    ),
    Row(
        "a task killed while the reply to its post is on its way pays once and fails as unknown",
        killed_while_the_reply_is_out,
        {DEFERRABLE: UNKNOWN},
        faults=HELD_REPLY,
    ),
    Row(
        "a task killed before it records the reply pays once, and a clear does not pay again",
        killed_and_cleared,
        {DEFERRABLE: Ends("failed", tries=3, outcome="unknown", words=UNKNOWN.words, brings="")},
        gate="before the record",
    ),
    Row(
        "a task killed after it recorded its job takes it up in its next try",
        killed_at_its_gate,
        {DEFERRABLE: TAKEN_UP},
        gate="after the record",
    ),
    Row(
        "a task killed with the result in its hands delivers the same result in its next try",
        killed_before_its_delivery,
        {DEFERRABLE: TAKEN_UP},
        gate="before the delivery",
    ),
    Row(
        "a worker lost after the post, before the reply is recorded, leaves one paid job and an unknown",
        worker_killed_at_its_gate,
        {DEFERRABLE: UNKNOWN},
        gate="before the record",
    ),
    Row(
        "a worker lost after the job was recorded costs nothing: the next try takes the job up",
        worker_killed_at_its_gate,
        {DEFERRABLE: TAKEN_UP},
        gate="after the record",
    ),
    Row(
        "an exception after the submit leads to a retry that takes the job up",
        nothing,
        {DEFERRABLE: Ends(tries=2, words=["an exception of the user's own", "Re-attaching to request"])},
        gate="after the record",
        then="raise",
    ),
    Row(
        "an exception once the result is there leads to a retry that delivers it",
        nothing,
        {DEFERRABLE: Ends(tries=2, words=["an exception of the user's own", "Re-attaching to request"])},
        gate="before the delivery",
        then="raise",
    ),
]
