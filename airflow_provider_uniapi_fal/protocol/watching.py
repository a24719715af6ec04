"""
One wait for one job: look, take in what was seen, fetch the result as soon as it is there, or look again.

Sensor, trigger and blocking operator run the same rounds. What a wait knows between rounds is a value with a
JSON form, because a sensor in reschedule mode begins each round in a new process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import pendulum

from airflow_provider_uniapi_fal.protocol import cadence, verbs
from airflow_provider_uniapi_fal.protocol.dialects.base import CancelOutcome, Dialect, LookAgain
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult, JobState, JobStatus, LogLine
from airflow_provider_uniapi_fal.protocol.messages import Sleep

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.messages import Flow, HttpReply, HttpRequest
    from airflow_provider_uniapi_fal.protocol.streaming import WatchBy

#: Answers that mean nothing definite, and refusals of the key or the account, in a row, before the wait gives up.
#: Passing faults are not counted. A gateway that mislays a key for a moment is not to end a thousand waits.
MAX_UNCLEAR = 10

#: Seconds after which it is looked whether a job that was asked to stop has stopped.
CANCEL_GRACE = 2.0

#: Where in the time in which a job can have ended it is taken to have ended.
EARLY_SHARE = 0.15

#: Seconds without news after which the log says that the wait goes on.
QUIET_SECONDS = 60.0

MAX_LINE_CHARS = 500
MAX_LINES_KEPT = 2000


_SETTINGS = (
    "handle",
    "deadline",
    "queue_deadline",
    "cancel_on_timeout",
    "poke_interval",
    "share_of_age",
    "by",
    "logs",
    "news",
    "last",
)


@dataclass(frozen=True)
class WaitMore:
    """
    The job is not done.

    :param seconds: look again after so many
    :param least: look again no sooner than after so many: a fixed interval, or what the server asked for
    :param key_refused: the key was refused: with another one it may be looked again at once
    """

    seconds: float
    least: float = 0.0
    key_refused: bool = False


@dataclass(frozen=True)
class FetchElsewhere:
    """
    The job is done, but its result is longer than this reader may read.

    :param handle: the job, with the paths under which it was found
    """

    handle: JobHandle


RoundEnd: TypeAlias = "WaitMore | FetchElsewhere | JobResult | Failure"


@dataclass
class Watch:
    """
    What a wait knows.

    :param handle: the job
    :param deadline: seconds since the epoch at which the wait ends, or None
    :param queue_deadline: seconds since the epoch by which the job must have started, or None
    :param cancel_on_timeout: ask the gateway to cancel the job when a clock has run out
    :param poke_interval: fixed seconds between looks, or None for adaptive
    :param share_of_age: adaptive, of an unknown model: seconds between looks as a share of the job's age
    :param by: how to learn of the end: ``poll``, ``stream`` or ``auto``; a fixed ``poke_interval`` is polled
    :param logs: ask for the model's log lines
    :param state: the last state seen
    :param pending_at: when it was last seen in the queue
    :param running_since: when it was first seen running
    :param looked_at: when it was last seen not to have ended
    :param completed_at: when it was first seen completed
    :param queued_since: when its position in the queue was first seen
    :param first_position: that position
    :param path: which of the job's alternative paths answers
    :param unclear: answers without meaning, in a row
    :param last: the last look in this process
    """

    handle: JobHandle
    deadline: float | None = None
    queue_deadline: float | None = None
    cancel_on_timeout: bool = False
    poke_interval: float | None = None
    share_of_age: float = cadence.SHARE_OF_AGE
    by: WatchBy = "auto"
    logs: bool = True
    state: JobState | None = None
    queue_position: int | None = None
    queued_since: float | None = None
    first_position: int | None = None
    pending_at: float | None = None
    running_since: float | None = None
    looked_at: float | None = None
    completed_at: float | None = None
    inference_time: float | None = None
    path: int = 0
    unclear: int = 0
    said_at: float = 0.0
    seen_lines: list[str] = field(default_factory=list)
    news: list[str] = field(default_factory=list)
    last: verbs.LastLook = field(default_factory=verbs.LastLook, repr=False, compare=False)

    def take_news(self) -> list[str]:
        """Return the lines for the task's log since the last call."""
        lines, self.news = self.news, []
        return lines

    def progress(self) -> dict[str, Any]:
        """Return what is worth keeping between rounds in different processes, as JSON values."""
        kept = {
            name: deepcopy(getattr(self, name)) for name in self.__dataclass_fields__ if name not in _SETTINGS
        }
        return {**kept, "state": self.state.value if self.state else None}

    def with_times(self, result: JobResult) -> JobResult:
        """Return the result with the seconds that its job was queued and running."""
        submitted = self.handle.submitted_at
        completed = self.completed_at or submitted
        running = self.inference_time
        if running is None and self.running_since is not None:
            running = completed - self.running_since
        # Both are seen late, never early, so that the smaller one is nearer to the truth.
        started = min(self.running_since or completed, completed - (running or 0.0))
        return replace(
            result,
            seconds_queued=round(max(started - submitted, 0.0), 3),
            seconds_running=None if running is None else round(running, 3),
        )

    def resume(self, progress: Mapping[str, Any]) -> None:
        """Take up what :meth:`progress` returned; unknown fields are passed over."""
        for name, value in progress.items():
            if name in self.__dataclass_fields__ and name not in _SETTINGS:
                setattr(self, name, JobState(value) if name == "state" and value else value)


def one_round(
    watch: Watch,
    dialect: Dialect,
    *,
    clock: Callable[[], float],
    jitter: Callable[[], float],
    experience: cadence.Experience | None = None,
    told: HttpReply | None = None,
) -> Flow[RoundEnd]:
    """
    Look once, and fetch the result at once if the job is done.

    :param experience: knows how long jobs take, and learns from this one; None: nothing is known
    :param told: a status that came by the stream: then none is asked for
    :return: the result, the failure, or how long to wait before the next round; lines for the log are left
        in :attr:`Watch.news`
    """
    handle = _as_found(watch, dialect)
    retry_after = None
    clear = False
    failed: JobStatus | None = None
    key_refused = False
    if watch.completed_at is None:
        if told is None:
            seen = yield from verbs.look(dialect, handle, logs=watch.logs, clock=clock, last=watch.last)
        else:
            seen = dialect.read_status(handle, told, clock())
        if isinstance(seen, Failure):
            if not _take_refusal(watch, seen, clock()):
                return seen
            key_refused = seen.kind is FailureKind.AUTH
        elif isinstance(seen, JobStatus):
            ended = _take_status(watch, seen, clock())
            if ended is not None:
                return ended
            clear = watch.completed_at is None and watch.unclear == 0
            failed = seen if seen.state in (JobState.FAILED, JobState.CANCELLED) else None
            if seen.state is JobState.SUCCEEDED and experience is not None:
                _learn(watch, experience)
        elif seen.oversized:
            watch.logs = False
            watch.news.append(f"{_name(watch)}: the model's log is too long to be followed.")
        else:
            ended = _take_unclear(watch, seen, clock())
            if ended is not None:
                return ended
            retry_after, key_refused = seen.retry_after, seen.key_refused
    if watch.completed_at is not None:
        read = yield from verbs.fetch(dialect, handle, clock=clock)
        if isinstance(read, JobResult) and failed is None:
            return watch.with_times(read)
        if isinstance(read, Failure) and read.kind not in _REFUSALS:
            return read
        if failed is not None:
            # The status is proof enough of the failure; the result would only have told more of it.
            return dialect.failure_of(handle, failed)
        if isinstance(read, Failure):
            if not _take_refusal(watch, read, clock()):
                return read
            key_refused = read.kind is FailureKind.AUTH
        if isinstance(read, LookAgain):
            if read.oversized:
                return FetchElsewhere(handle)
            ended = _take_unclear(watch, read, clock())
            if ended is not None:
                return ended
            retry_after, key_refused = read.retry_after, read.key_refused
    now = clock()
    clocks = _running_clocks(watch)
    late = next((kind for kind, deadline in clocks.items() if now >= deadline), None)
    if late is not None:
        return (yield from _end_late(watch, dialect, handle, late, clock=clock))
    wait = watch.poke_interval
    if wait is None:
        # A gateway that gives no clear answers is not asked closely.
        usual = experience.usual(watch.handle.model, now=now) if experience is not None and clear else None
        wait = cadence.next_look(
            _seen(watch, now), usual=usual, share_of_age=watch.share_of_age, jitter=jitter()
        )
    wait = max(wait, retry_after or 0.0)
    if clocks:
        wait = max(min(wait, min(clocks.values()) - now), 0.0)
    return WaitMore(
        wait,
        min(max(watch.poke_interval or 0.0, retry_after or 0.0), wait),
        key_refused=key_refused,
    )


def key_was_refused(end: RoundEnd) -> bool:
    """Whether a round could end otherwise with another key."""
    if isinstance(end, Failure):
        return end.kind is FailureKind.AUTH
    return isinstance(end, WaitMore) and end.key_refused


def seconds_to_first_look(
    watch: Watch, *, now: float, jitter: float, experience: cadence.Experience | None = None
) -> float:
    """Return how long a wait that begins, or that goes on in another process, may rest before it looks."""
    if watch.poke_interval is not None or watch.state is not None:
        return 0.0
    usual = None if experience is None else experience.usual(watch.handle.model, now=now)
    rest = cadence.first_look(_seen(watch, now), usual, jitter=jitter)
    return max(min([rest, *(deadline - now for deadline in _running_clocks(watch).values())]), 0.0)


def stream_request(watch: Watch, dialect: Dialect) -> HttpRequest | None:
    """Return the request for a job's status stream, or None if it has none or is to be polled."""
    if watch.by == "poll" or watch.poke_interval is not None or watch.completed_at is not None:
        return None
    return dialect.stream_request(_as_found(watch, dialect), logs=watch.logs)


def next_deadline(watch: Watch) -> float | None:
    """Return the first of the deadlines that count now, in seconds since the epoch; None if there is none."""
    if watch.deadline is None and watch.queue_deadline is None:
        return None
    return min(_running_clocks(watch).values(), default=None)


def timed_out(
    watch: Watch,
    kind: FailureKind,
    now: float,
    *,
    cancelled: CancelOutcome | None = None,
    stopped: bool = False,
) -> Failure:
    """
    Return the failure for a wait whose time is over.

    :param kind: ``TIMEOUT`` or ``QUEUE_TIMEOUT``, whichever clock has run out
    :param cancelled: what the gateway said when it was asked to cancel the job; None if it was not asked
    :param stopped: the job was seen to have stopped after that
    """
    removed = cancelled is CancelOutcome.REMOVED
    fate = (
        "It was removed from the queue and will not run."
        if removed
        else "It was stopped."
        if stopped
        else _ASKED.get(cancelled, "The gateway was asked to cancel it, but it may still run.")
    )
    clock = "queue_timeout" if kind is FailureKind.QUEUE_TIMEOUT else "timeout"
    spent = lasting(now - watch.handle.submitted_at)
    again = (
        "may submit: nothing is paid twice then."
        if removed
        else "finds it cancelled; a new submit may be paid for a second time."
        if stopped
        else "looks at the same job again, if it is still there."
    )
    return Failure(
        kind,
        what=f"The wait has timed out ({clock}) {spent} after the submit; {_last_seen(watch)}. {fate}",
        retry_does=again,
        advice=f"Give it more time with {clock}=…" + ("." if removed or stopped else ", or cancel it."),
        billed="no" if removed else "maybe",
        may_run=not (removed or stopped),
        transient=removed,
        request_id=watch.handle.request_id,
    )


#: What a time-out says of the job, by the answer to the cancellation.
_ASKED = {
    None: "It was not cancelled.",
    CancelOutcome.UNSUPPORTED: "The gateway passes no cancellations on: it may still run.",
    CancelOutcome.NOT_FOUND: "The gateway does not know the job that it was asked to cancel.",
    CancelOutcome.ALREADY_COMPLETED: "It was completed just then, but its result could not be had.",
}


def _as_found(watch: Watch, dialect: Dialect) -> JobHandle:
    """Return the handle with the paths that are asked now; those of the server's own are the first."""
    if watch.path == 0:
        return watch.handle
    paths = dialect.alternatives(watch.handle)
    return paths[watch.path % len(paths)]


def _seen(watch: Watch, now: float) -> cadence.Seen:
    """Return what the cadence is to know of a job."""
    submitted = watch.handle.submitted_at
    if watch.completed_at is not None:
        return cadence.Seen(max(now - watch.completed_at, 0.0))
    # By a clock of another machine it may have been submitted a little later than now.
    return cadence.Seen(
        max(now - submitted, 0.0),
        pending_until=max((watch.pending_at or submitted) - submitted, 0.0),
        running_since=None if watch.running_since is None else max(watch.running_since - submitted, 0.0),
        seconds_to_start=_seconds_to_start(watch),
    )


def _seconds_to_start(watch: Watch) -> float | None:
    """Tell by the fall of its position how long a job will still be queued."""
    since, first, position = watch.queued_since, watch.first_position, watch.queue_position
    if since is None or first is None or position is None or watch.pending_at is None:
        return None
    fallen = first - position
    return position * (watch.pending_at - since) / fallen if fallen > 0 else None


def _learn(watch: Watch, experience: cadence.Experience) -> None:
    """
    Learn how long a completed job took.

    It ended at some time since the last look before, and, where the gateway tells how long it ran, that long after
    some time at which it can have started. Rather an early moment of these is taken, because a look too early costs a
    call and one too late costs time; but where only the looks bound it, no early one by far: a job that was completed at
    the first look must not spoil what is known, many must change it.
    """
    submitted, completed = watch.handle.submitted_at, watch.completed_at or 0.0
    running, running_since = watch.inference_time, watch.running_since
    pending = watch.pending_at or submitted
    earliest, latest = watch.looked_at or submitted, completed
    if running is not None and running_since is not None:
        # A gateway may tell a part of the time only: it ran for as long as it was seen to run at least.
        running = max(running, earliest - running_since)
    if running is not None:
        earliest = max(earliest, pending + running)
    if running is not None and running_since is not None:
        latest = min(completed, max(running_since + running, earliest))
    else:
        earliest = max(earliest, completed - 0.2 * (completed - submitted))
    ended = min(earliest, latest) + EARLY_SHARE * (latest - min(earliest, latest))
    # What only the looks tell depends on how closely it was looked: it is to make the next ones better at once.
    held_back = None if running is None else ended
    if running is None:
        running = _ran(watch, ended, experience.usual(watch.handle.model, now=completed))
    experience.learn(watch.handle.model, total=ended - submitted, running=running, ended=held_back)


def _ran(watch: Watch, ended: float, usual: cadence.Usual | None) -> float:
    """Return how long a job ran of which only the looks tell it."""
    if watch.pending_at is None or watch.running_since is None:
        # Who was never seen in the queue most likely was not there for long.
        return ended - (watch.pending_at or watch.handle.submitted_at)
    shortest, longest = ended - watch.running_since, ended - watch.pending_at
    if usual is None:
        return (shortest + longest) / 2
    # If it may have taken as long as most do, it tells nothing new.
    return min(max(usual.running[len(usual.running) // 2], shortest), longest)


def _running_clocks(watch: Watch) -> dict[FailureKind, float]:
    """Return the deadlines that count now: the one for the queue ends when the job is first seen running."""
    clocks = {}
    if watch.queue_deadline is not None and watch.running_since is None and watch.completed_at is None:
        clocks[FailureKind.QUEUE_TIMEOUT] = watch.queue_deadline
    if watch.deadline is not None:
        clocks[FailureKind.TIMEOUT] = watch.deadline
    return clocks


def _end_late(
    watch: Watch, dialect: Dialect, handle: JobHandle, kind: FailureKind, *, clock: Callable[[], float]
) -> Flow[RoundEnd]:
    """End a wait whose time is over; a job that was completed just then is paid for, so its result is taken."""
    if not watch.cancel_on_timeout:
        return timed_out(watch, kind, clock())
    outcome = yield from verbs.cancel(dialect, handle)
    watch.news.append(
        f"{_name(watch)}: its time is over; asked to cancel it, the gateway says {outcome.value}."
    )
    if outcome is CancelOutcome.REMOVED and watch.running_since is not None:
        # What was seen running is in no queue, whatever the gateway calls it, and may be billed.
        outcome = CancelOutcome.REQUESTED
    stopped = False
    if outcome in (CancelOutcome.REQUESTED, CancelOutcome.UNCLEAR):
        yield Sleep(CANCEL_GRACE)
        seen = yield from verbs.look(dialect, handle, logs=False, clock=clock)
        if isinstance(seen, JobStatus) and seen.finished:
            watch.completed_at = clock()
            watch.inference_time = seen.inference_time
            stopped = seen.state is not JobState.SUCCEEDED
    if outcome is CancelOutcome.ALREADY_COMPLETED or (watch.completed_at is not None and not stopped):
        watch.completed_at = watch.completed_at or clock()
        read = yield from verbs.result(dialect, handle, clock=clock, jitter=lambda: 0.0)
        if isinstance(read, JobResult):
            return watch.with_times(read)
        if isinstance(read, Failure):
            return read
        if read.oversized:
            return FetchElsewhere(handle)
    return timed_out(watch, kind, clock(), cancelled=outcome, stopped=stopped)


def _last_seen(watch: Watch) -> str:
    if watch.completed_at is not None:
        return "it is completed, but its result could not be had"
    if watch.state is JobState.RUNNING:
        return "it is running"
    if watch.state is JobState.PENDING:
        position = "" if watch.queue_position is None else f", at position {watch.queue_position}"
        return f"it is still in the queue{position}"
    return "where it stands is not known"


def lasting(seconds: float) -> str:
    """Return a duration in words."""
    if seconds < 10:
        return f"{max(seconds, 0):.1f} seconds"
    return pendulum.duration(seconds=round(seconds)).in_words(locale="en")


def _take_status(watch: Watch, seen: JobStatus, now: float) -> Failure | None:
    _take_logs(watch, seen.logs)
    if seen.state is JobState.UNKNOWN:
        return _take_unclear(watch, LookAgain(f"the unknown state {seen.word!r}", bounded=True), now)
    watch.unclear = 0
    moved = seen.state is not watch.state or seen.queue_position != watch.queue_position
    if not seen.finished:
        watch.looked_at = now
    if seen.state is JobState.RUNNING and watch.running_since is None:
        watch.running_since = now
    if seen.state is JobState.PENDING:
        watch.pending_at = now
        if watch.first_position is None and seen.queue_position is not None:
            watch.queued_since, watch.first_position = now, seen.queue_position
    watch.state, watch.queue_position = seen.state, seen.queue_position
    if seen.finished:
        watch.completed_at = now
        watch.inference_time = seen.inference_time
        watch.news.append(
            f"{_name(watch)} is completed, {lasting(now - watch.handle.submitted_at)} after submit."
        )
    elif moved or now - watch.said_at >= QUIET_SECONDS:
        watch.said_at = now
        watch.news.append(_where_it_stands(watch, now))
    return None


def _take_unclear(watch: Watch, again: LookAgain, now: float) -> Failure | None:
    watch.news.append(f"{_name(watch)}: {again.reason}; looking again.")
    watch.said_at = now
    if again.not_found:
        watch.path += 1
    if again.bounded:
        watch.unclear += 1
    if watch.unclear < MAX_UNCLEAR:
        return None
    failure = verbs.unclear(watch.handle, again)
    return failure if watch.completed_at is None else replace(failure, may_run=False)


_REFUSALS = (FailureKind.AUTH, FailureKind.BALANCE)


def _take_refusal(watch: Watch, failure: Failure, now: float) -> bool:
    """Count a refusal of the key or the account; whether to look again. Any other failure ends the wait."""
    if failure.kind not in _REFUSALS:
        return False
    watch.unclear += 1
    if watch.unclear >= MAX_UNCLEAR:
        return False
    watch.news.append(f"{_name(watch)}: {failure.what} Looking again.")
    watch.said_at = now
    return True


def _take_logs(watch: Watch, lines: tuple[LogLine, ...]) -> None:
    """Put each of the model's lines into the news once; a server may send them all each time or only the last."""
    if not lines:
        return
    known = set(watch.seen_lines)
    # Of a longer log only the end: what is forgotten again would be said anew in each round.
    begin = max(len(lines) - MAX_LINES_KEPT, 0)
    for count, line in enumerate(lines[begin:], begin):
        # A line without a time may rightly come twice; its place in the list then tells it apart.
        mark = f"{line.timestamp or count}|{line.message}"
        digest = hashlib.sha256(mark.encode()).hexdigest()[:16]
        if digest in known:
            continue
        known.add(digest)
        watch.seen_lines.append(digest)
        text = "".join(c if c.isprintable() else " " for c in line.message).strip()[:MAX_LINE_CHARS]
        if text:
            watch.news.append(f"{_name(watch)} | {text}")
    del watch.seen_lines[:-MAX_LINES_KEPT]


def _where_it_stands(watch: Watch, now: float) -> str:
    submitted = watch.handle.submitted_at
    if watch.state is JobState.RUNNING:
        since = watch.running_since or now
        return (
            f"{_name(watch)} is running (queued for {lasting(since - submitted)}, "
            f"running for {lasting(now - since)})."
        )
    position = "" if watch.queue_position is None else f" at position {watch.queue_position}"
    again = " again" if watch.running_since else ""
    return f"{_name(watch)} is in the queue{again}{position} (queued for {lasting(now - submitted)})."


def _name(watch: Watch) -> str:
    return f"Request {watch.handle.request_id}"
