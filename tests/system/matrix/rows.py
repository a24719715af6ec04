"""
The table: what may happen to a job, and how it ends after it.

Read a row as: if this happens, then so many jobs were paid for, so many were asked to be cancelled, and the run has
ended so.
"""

from __future__ import annotations

from dataclasses import replace

import psutil

from tests.system.matrix.cells import (
    BLOCKING,
    COLUMNS,
    DEFERRABLE,
    ENDING,
    SENSOR,
    SUBMIT,
    Cell,
    Ends,
    Row,
    eventually,
)

WAITING = (SENSOR, BLOCKING, DEFERRABLE)
GENERATING = (BLOCKING, DEFERRABLE)


# What happens


def nothing(cell: Cell) -> None:
    """Do no more than what gate, job and faults do."""


def killed_at_its_gate(cell: Cell) -> None:
    cell.until_at_gate()
    cell.kill_task()


def killed_in_its_wait(cell: Cell) -> None:
    cell.until_at_gate()
    cell.kill_task(cell.wait_task)


def killed_between_two_looks(cell: Cell) -> None:
    cell.until_looked_at()
    cell.kill_task()
    cell.until_tried_again(cell.submit_task, 1)


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


def worker_killed_in_its_wait(cell: Cell) -> None:
    cell.until_at_gate()
    cell.kill_worker(cell.wait_task)


def cleared_at_its_gate(cell: Cell) -> None:
    cell.until_at_gate()
    cell.clear_running(cell.submit_task)


def cleared_in_its_wait(cell: Cell) -> None:
    cell.until_at_gate()
    cell.clear_running(cell.wait_task)
    until_taken_up(cell)


def cleared_while_deferred(cell: Cell) -> None:
    cell.until_deferred()
    before = cell.try_number(cell.wait_task)
    cell.clear(cell.wait_task)
    # A held job is let go only when the next try has begun.
    cell.until_tried_again(cell.wait_task, before)


def cleared_while_deferred_and_cancelled_before_the_next_try(cell: Cell) -> None:
    """Let who waits learn of the clear before the next try begins, which is the usual order."""
    cell.until_deferred()
    with cell.without_a_slot():
        cell.clear(cell.wait_task)
        eventually(lambda: cell.cancels() == 1)
    until_taken_up(cell)


def submit_cleared_after_success(cell: Cell) -> None:
    if cell.column == SUBMIT:
        assert cell.ended() == "success"
    else:
        cell.until_deferred()
    cell.clear(*dict.fromkeys((cell.submit_task, cell.wait_task)))
    # A held job is let go only when the submit is through once more.
    cell.airflow.wait_for_task(
        cell.dag_id, cell.run_id, cell.submit_task, "success", try_number=2, timeout=300
    )


def taken_for_dead_and_woken(cell: Cell) -> None:
    """Freeze a worker until its task is to be tried again, and wake it while that waits for a slot."""
    cell.until_at_gate()
    supervisor, process = cell.worker(cell.wait_task)
    supervisor.suspend()
    process.suspend()
    with cell.without_a_slot():
        cell.airflow.wait_for_task(cell.dag_id, cell.run_id, cell.wait_task, "scheduled", timeout=300)
        supervisor.resume()
        process.resume()
        until_gone(process)
    until_taken_up(cell)


def until_taken_up(cell: Cell) -> None:
    """Let a held job go on until the next try has met it."""
    if cell.row.held and cell.column != SENSOR:
        eventually(lambda: "Re-attaching" in cell.story())


def cleared_after_failure(cell: Cell) -> None:
    assert cell.ended() == "failed"
    cell.clear()


def cleared_after_success(cell: Cell) -> None:
    assert cell.ended() == "success"
    # A submit alone has ended before its job has.
    cell.until_finished()
    cell.clear()


def only_its_wait_cleared_after_success(cell: Cell) -> None:
    assert cell.ended() == "success"
    cell.clear(cell.wait_task)


def marked_failed(cell: Cell) -> None:
    process = waiting(cell)
    cell.mark("failed")
    until_gone(process)


def marked_successful(cell: Cell) -> None:
    process = waiting(cell)
    cell.mark("success")
    until_gone(process)


def its_run_marked_failed(cell: Cell) -> None:
    process = waiting(cell)
    cell.mark_run("failed")
    until_gone(process)


def waiting(cell: Cell) -> psutil.Process | None:
    """Let the job be waited for; return the task's process, if a worker does that."""
    cell.until_waiting()
    return cell.process(cell.wait_task) if cell.column == BLOCKING else None


def until_gone(process: psutil.Process | None) -> None:
    """Wait for the end of a worker; a held job is let go only after it, so that it does not learn of its end."""
    if process is not None:
        eventually(lambda: not runs(process))


def runs(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def marked_failed_at_its_gate(cell: Cell) -> None:
    cell.until_at_gate()
    cell.mark("failed")


def marked_successful_at_its_gate(cell: Cell) -> None:
    cell.until_at_gate()
    cell.mark("success")


def its_run_marked_failed_at_its_gate(cell: Cell) -> None:
    cell.until_at_gate()
    cell.mark_run("failed")


# How it ends

NOT_YET_SUBMITTED = Ends(tries=2, words=["There is no record of a submit. Submitting."])
TAKEN_UP = Ends(tries=2, words=["Re-attaching to request"])
UNKNOWN = Ends(
    "failed",
    tries=2,
    outcome="unknown",
    words=["The outcome of the submit is unknown", "left no trace", "The job may still be running."],
    brings="",
)
LOOKED_AT_AGAIN = Ends(waits=2)
#: The submit is not tried again, so that the sensor's next try finds the same job.
OF_THE_WAIT = {SENSOR: LOOKED_AT_AGAIN, BLOCKING: TAKEN_UP, DEFERRABLE: TAKEN_UP}
ANOTHER_EXCEPTION = "an exception of the user's own"

CANCELLED = Ends(cancels=1, words=["asked to cancel it, the gateway says"], brings="handle")
LEFT_ALONE = Ends(brings="handle")
#: A sensor lets the job run: it belongs to the task that submitted it.
KILLED_BY_USER = {SENSOR: LEFT_ALONE, BLOCKING: CANCELLED, DEFERRABLE: CANCELLED, ENDING: CANCELLED}

MADE_ANEW = Ends(posts=2, cancels=1, tries=2, words=["asked to cancel it, the gateway says", "Cleared"])
#: The job goes on although it was asked to end.
GOES_ON = Ends(cancels=1, tries=2, words=["asked to cancel it, the gateway says", "Re-attaching to request"])


def timed_out(clock: str, *words: str) -> Ends:
    """Return how a job ends that each try asks to end when its time is over, and that does not."""
    said = f"({clock})"
    return Ends(
        "failed",
        outcome="timed_out",
        cancels_in_tries=said,
        tries=2,
        brings="handle",
        words=[said, *words, "Re-attaching"],
    )


def worded(ends: Ends, *words: str) -> Ends:
    return replace(ends, words=[*ends.words, *words])


def failed(ends: dict[str, Ends]) -> dict[str, Ends]:
    return {column: replace(each, state="failed") for column, each in ends.items()}


def each(columns: tuple[str, ...], ends: Ends) -> dict[str, Ends]:
    return dict.fromkeys(columns, ends)


# How the first job goes

STUCK = {"stuck": True}
ENDLESS = {"queue_seconds": 0, "run_seconds": 600}
OBEDIENT = {**ENDLESS, "obeys_cancel": True}
HELD_REPLY = [{"fault": "slow", "on": "submit", "seconds": 300, "times": 1}]

# Rows that take long come first: all are under way at once.

LOST_WORKERS = [
    Row(
        "a worker lost after the post, before the reply is recorded, leaves one paid job and an unknown",
        worker_killed_at_its_gate,
        each(COLUMNS, UNKNOWN),
        gate="before the record",
    ),
    Row(
        "a worker lost after the job was recorded costs nothing: the next try takes the job up",
        worker_killed_at_its_gate,
        each(COLUMNS, TAKEN_UP),
        gate="after the record",
    ),
    Row(
        "a worker lost while it waits costs nothing: the next try goes on waiting",
        worker_killed_in_its_wait,
        OF_THE_WAIT,
        gate="in the wait",
    ),
    Row(
        "a worker taken for dead that wakes while its retry waits for a slot cancels nothing",
        taken_for_dead_and_woken,
        each(GENERATING, worded(TAKEN_UP, "is not cancelled: the task's states are {'scheduled'}")),
        gate="in the wait",
        held=True,
        alone=True,
        variant="pooled_",
    ),
]

TIME_OUTS = [
    Row(
        "a job that never starts and is removed from the queue is submitted again by the retry",
        nothing,
        each(
            GENERATING,
            Ends(
                posts=2,
                cancels=1,
                tries=2,
                words=[
                    "(queue_timeout)",
                    "was removed from the queue and will not run",
                    "A retry submits again.",
                ],
            ),
        ),
        job=STUCK,
        variant="impatient_",
    ),
    Row(
        "a job that never starts and whose cancel is refused is looked at again by each retry",
        nothing,
        each(
            GENERATING,
            timed_out("queue_timeout", "passes no cancellations on: it may still run"),
        ),
        job={**STUCK, "cancel": "not-allowed"},
        variant="impatient_",
    ),
    Row(
        "a job that never starts and ignores its cancel is looked at again by each retry",
        nothing,
        each(
            GENERATING,
            timed_out("queue_timeout", "cancel it, but it may still run"),
        ),
        job={**STUCK, "cancel": "ignored"},
        variant="impatient_",
    ),
    Row(
        "a job that runs too long and is stopped fails at once in the retry; only a clear submits again",
        cleared_after_failure,
        each(
            GENERATING,
            Ends(
                posts=2,
                cancels=1,
                tries=3,
                words=["(timeout)", "It was stopped. It may have been billed.", "fails at once", "Cleared"],
            ),
        ),
        job=OBEDIENT,
        variant="impatient_",
    ),
    Row(
        "a job that runs too long and whose cancel is refused is looked at again by each retry",
        nothing,
        each(
            GENERATING,
            timed_out("timeout", "passes no cancellations on: it may still run"),
        ),
        job={**ENDLESS, "cancel": "not-allowed"},
        variant="impatient_",
    ),
    Row(
        "a job that runs too long and ignores its cancel is looked at again by each retry",
        nothing,
        each(GENERATING, timed_out("timeout", "cancel it, but it may still run")),
        job={**ENDLESS, "cancel": "ignored"},
        variant="impatient_",
    ),
    Row(
        "a job completed just before its cancel is paid for, and is delivered",
        nothing,
        each(GENERATING, Ends(cancels=1, words=["its time is over", "already_completed"])),
        job={**STUCK, "cancel": "already-completed"},
        variant="impatient_",
    ),
    Row(
        "a sensor whose time is over while the job is in the queue cancels nothing and is not tried again",
        nothing,
        {
            SENSOR: Ends(
                "failed",
                outcome="timed_out",
                brings="handle",
                words=[
                    "(timeout)",
                    "still in the queue",
                    "The job may still be running.",
                    "a sensor's time-out",
                ],
            )
        },
        job=STUCK,
        variant="impatient_",
    ),
    Row(
        "a sensor whose time is over while the job runs cancels nothing and is not tried again",
        nothing,
        {
            SENSOR: Ends(
                "failed",
                outcome="timed_out",
                brings="handle",
                words=["(timeout)", "it is running", "The job may still be running.", "a sensor's time-out"],
            )
        },
        job=ENDLESS,
        variant="impatient_",
    ),
    Row(
        "execution_timeout between post and record leaves one paid job and an unknown",
        nothing,
        each(COLUMNS, UNKNOWN),
        gate="before the record",
        variant="hasty_",
    ),
    Row(
        "execution_timeout after the record costs nothing: the next try takes the job up",
        nothing,
        each((SUBMIT, SENSOR), TAKEN_UP),
        gate="after the record",
        variant="hasty_",
    ),
    Row(
        "execution_timeout in the wait cancels nothing: the next try takes the job up",
        nothing,
        {
            SENSOR: LOOKED_AT_AGAIN,
            **each(GENERATING, worded(TAKEN_UP, "is not cancelled: the task's states are {'running'}")),
        },
        gate="in the wait",
        variant="hasty_",
    ),
]

KILLS = [
    Row(
        "a task killed before it says what it is about to do submits in its next try",
        killed_at_its_gate,
        each(COLUMNS, NOT_YET_SUBMITTED),
        gate="before the intent",
    ),
    Row(
        "a task killed just before its post submits no more, for nobody knows that it had not posted",
        killed_at_its_gate,
        each(COLUMNS, replace(UNKNOWN, posts=0)),
        gate="before the post",
    ),
    Row(
        "a task killed while the reply to its post is on its way pays once and fails as unknown",
        killed_while_the_reply_is_out,
        each(COLUMNS, UNKNOWN),
        faults=HELD_REPLY,
    ),
    Row(
        "a task killed before it records the reply pays once, and a clear does not pay again",
        killed_and_cleared,
        each(COLUMNS, replace(UNKNOWN, tries=3)),
        gate="before the record",
    ),
    Row(
        "a task killed after it recorded its job takes it up in its next try",
        killed_at_its_gate,
        each(COLUMNS, TAKEN_UP),
        gate="after the record",
    ),
    Row(
        "a task killed as it begins to wait goes on waiting in its next try",
        killed_in_its_wait,
        OF_THE_WAIT,
        gate="in the wait",
    ),
    Row(
        "a task killed between two looks goes on waiting in its next try",
        killed_between_two_looks,
        {BLOCKING: TAKEN_UP},
        held=True,
    ),
    Row(
        "a task killed with the result in its hands delivers the same result in its next try",
        killed_in_its_wait,
        OF_THE_WAIT,
        gate="before the delivery",
    ),
    Row(
        "an exception after the submit leads to a retry that takes the job up",
        nothing,
        each(COLUMNS, worded(TAKEN_UP, ANOTHER_EXCEPTION)),
        gate="after the record",
        then="raise",
    ),
    Row(
        "an exception once the result is there leads to a retry that delivers it",
        nothing,
        {column: worded(ends, ANOTHER_EXCEPTION) for column, ends in OF_THE_WAIT.items()},
        gate="before the delivery",
        then="raise",
    ),
]

CLEARS = [
    Row(
        "a submit cleared after it recorded its job takes up the same job",
        cleared_at_its_gate,
        each((SUBMIT, SENSOR), TAKEN_UP),
        gate="after the record",
    ),
    Row(
        "a submit that has succeeded and is cleared while its job runs takes up the same job",
        submit_cleared_after_success,
        {SUBMIT: TAKEN_UP, SENSOR: replace(TAKEN_UP, waits=2)},
        held=True,
    ),
    Row(
        "a wait cleared while it runs cancels its own job and makes another",
        cleared_in_its_wait,
        each(GENERATING, MADE_ANEW),
        job=OBEDIENT,
        gate="in the wait",
        alone=True,
    ),
    Row(
        "a sensor cleared while it runs cancels nothing and looks at the same job",
        cleared_in_its_wait,
        {SENSOR: LOOKED_AT_AGAIN},
        gate="in the wait",
    ),
    Row(
        "a wait cleared while it runs takes up the same job if that goes on after its cancel",
        cleared_in_its_wait,
        each(GENERATING, GOES_ON),
        gate="in the wait",
        held=True,
        alone=True,
    ),
    Row(
        "a wait cleared while deferred cancels its own job and makes another",
        cleared_while_deferred_and_cancelled_before_the_next_try,
        each((DEFERRABLE, ENDING), MADE_ANEW),
        job=OBEDIENT,
        alone=True,
        variant="pooled_",
    ),
    Row(
        "a wait cleared while deferred takes up the same job if that goes on",
        cleared_while_deferred_and_cancelled_before_the_next_try,
        each((DEFERRABLE, ENDING), GOES_ON),
        held=True,
        alone=True,
        variant="pooled_",
    ),
    Row(
        "a sensor cleared while deferred cancels nothing and looks at the same job",
        cleared_while_deferred,
        {SENSOR: LOOKED_AT_AGAIN},
        held=True,
    ),
    Row(
        "a job that failed for good is made again by a clear, and by no retry",
        cleared_after_failure,
        each((*WAITING, ENDING), Ends(posts=2, tries=2, words=["Submitting."])),
        job={"failure": "result-422"},
    ),
    Row(
        "a submit that was turned away is made by a clear, and by no retry",
        cleared_after_failure,
        each(COLUMNS, worded(NOT_YET_SUBMITTED, "FalBalanceError")),
        faults=[{"fault": "turned-away", "on": "submit", "because": "no-balance", "times": 1}],
    ),
    Row(
        "what was delivered is made anew by a clear",
        cleared_after_success,
        each(
            COLUMNS, Ends(posts=2, tries=2, words=["on_clear='regenerate' asks for a new one. Submitting."])
        ),
    ),
    Row(
        "what was delivered by the triggerer is delivered again by a clear: the ledger does not know of it",
        cleared_after_success,
        {ENDING: TAKEN_UP},
    ),
    Row(
        "a sensor that is cleared alone brings the same result again",
        only_its_wait_cleared_after_success,
        {SENSOR: LOOKED_AT_AGAIN},
    ),
]

MARKS = [
    Row(
        "a wait marked failed cancels its own job, once; a sensor cancels nothing",
        marked_failed,
        failed(KILLED_BY_USER),
        job=OBEDIENT,
        held=True,
    ),
    Row(
        "a wait marked successful cancels its own job, once; a sensor cancels nothing",
        marked_successful,
        KILLED_BY_USER,
        job=OBEDIENT,
        held=True,
    ),
    Row(
        "a run marked failed cancels the job of its wait, once; a sensor cancels nothing",
        its_run_marked_failed,
        failed(KILLED_BY_USER),
        job=OBEDIENT,
        held=True,
    ),
    Row(
        "a submit marked failed has handed its job on and cancels nothing",
        marked_failed_at_its_gate,
        failed({SUBMIT: LEFT_ALONE}),
        gate="after the record",
    ),
    Row(
        "a submit marked successful has handed its job on and cancels nothing",
        marked_successful_at_its_gate,
        {SUBMIT: LEFT_ALONE},
        gate="after the record",
    ),
    Row(
        "a submit whose run is marked failed has handed its job on and cancels nothing",
        its_run_marked_failed_at_its_gate,
        failed({SUBMIT: LEFT_ALONE}),
        gate="after the record",
    ),
]

ROWS = [*LOST_WORKERS, *TIME_OUTS, *KILLS, *CLEARS, *MARKS]
