"""
One wait for one job: look, take in what was seen, fetch the result as soon as it is there, or look again.

Sensor, trigger and blocking operator run the same rounds. What a wait knows between rounds is a value with a
JSON form, because a sensor in reschedule mode begins each round in a new process.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

import pendulum

from airflow_provider_uniapi_fal.protocol import cadence, verbs
from airflow_provider_uniapi_fal.protocol.dialects.base import Dialect, LookAgain
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult, JobState, JobStatus, LogLine

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.messages import Flow

#: Answers that mean nothing definite, in a row, before the wait gives up. Passing faults are not counted.
MAX_UNCLEAR = 10

#: Seconds without news after which the log says that the wait goes on.
QUIET_SECONDS = 60.0

MAX_LINE_CHARS = 500
MAX_LINES_KEPT = 2000


@dataclass(frozen=True)
class WaitMore:
    """The job is not done; look again after so many seconds."""

    seconds: float


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
    :param poke_interval: fixed seconds between looks, or None for adaptive
    :param logs: ask for the model's log lines
    :param state: the last state seen
    :param running_since: when it was first seen running
    :param completed_at: when it was first seen completed
    :param path: which of the job's alternative paths answers
    :param unclear: answers without meaning, in a row
    """

    handle: JobHandle
    deadline: float | None = None
    poke_interval: float | None = None
    logs: bool = True
    state: JobState | None = None
    queue_position: int | None = None
    running_since: float | None = None
    completed_at: float | None = None
    inference_time: float | None = None
    path: int = 0
    unclear: int = 0
    said_at: float = 0.0
    seen_lines: list[str] = field(default_factory=list)
    news: list[str] = field(default_factory=list)

    def take_news(self) -> list[str]:
        """Return the lines for the task's log since the last call."""
        lines, self.news = self.news, []
        return lines

    def progress(self) -> dict[str, Any]:
        """Return what is worth keeping between rounds in different processes, as JSON values."""
        kept = asdict(self)
        for name in ("handle", "deadline", "poke_interval", "logs", "news"):
            del kept[name]
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
            if name in self.__dataclass_fields__ and name != "handle":
                setattr(self, name, JobState(value) if name == "state" and value else value)


def one_round(
    watch: Watch, dialect: Dialect, *, clock: Callable[[], float], jitter: Callable[[], float]
) -> Flow[RoundEnd]:
    """
    Look once, and fetch the result at once if the job is done.

    :return: the result, the failure, or how long to wait before the next round; lines for the log are left
        in :attr:`Watch.news`
    """
    paths = dialect.alternatives(watch.handle)
    handle = paths[watch.path % len(paths)]
    retry_after = None
    failed: JobStatus | None = None
    if watch.completed_at is None:
        seen = yield from verbs.look(dialect, handle, logs=watch.logs, clock=clock)
        if isinstance(seen, Failure):
            return seen
        if isinstance(seen, JobStatus):
            ended = _take_status(watch, seen, clock())
            if ended is not None:
                return ended
            failed = seen if seen.state in (JobState.FAILED, JobState.CANCELLED) else None
        elif seen.oversized:
            watch.logs = False
            watch.news.append(f"{_name(watch)}: the model's log is too long to be followed.")
        else:
            ended = _take_unclear(watch, seen, clock())
            if ended is not None:
                return ended
            retry_after = seen.retry_after
    if watch.completed_at is not None:
        read = yield from verbs.fetch(dialect, handle, clock=clock)
        if isinstance(read, JobResult) and failed is None:
            return watch.with_times(read)
        if isinstance(read, Failure) and read.kind not in (FailureKind.AUTH, FailureKind.BALANCE):
            return read
        if failed is not None:
            # The status is proof enough of the failure; the result would only have told more of it.
            return dialect.failure_of(handle, failed)
        if isinstance(read, Failure):
            return read
        if isinstance(read, LookAgain):
            if read.oversized:
                return FetchElsewhere(handle)
            ended = _take_unclear(watch, read, clock())
            if ended is not None:
                return ended
            retry_after = read.retry_after
    now = clock()
    if watch.deadline is not None and now >= watch.deadline:
        return timed_out(watch, now)
    wait = cadence.next_look(
        now - (watch.completed_at or watch.handle.submitted_at),
        poke_interval=watch.poke_interval,
        retry_after=retry_after,
        jitter=jitter(),
    )
    return WaitMore(wait if watch.deadline is None else max(min(wait, watch.deadline - now), 0.0))


def timed_out(watch: Watch, now: float) -> Failure:
    """Return the failure for a wait whose time is over."""
    spent = lasting(now - watch.handle.submitted_at)
    where = {
        JobState.PENDING: f"it is still in the queue, at position {watch.queue_position}"
        if watch.queue_position is not None
        else "it is still in the queue",
        JobState.RUNNING: "it is running",
        JobState.SUCCEEDED: "it is completed, but its result could not be had",
    }.get(watch.state or JobState.UNKNOWN, "where it stands is not known")
    return Failure(
        FailureKind.TIMEOUT,
        what=f"The wait has timed out {spent} after the submit; {where}.",
        retry_does="is not made by Airflow after a sensor's time-out; cleared, the wait looks again.",
        advice="Give the wait more time with timeout=…, or cancel the job if it is not wanted any more.",
        billed="maybe",
        may_run=True,
        request_id=watch.handle.request_id,
    )


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
    if seen.state is JobState.RUNNING and watch.running_since is None:
        watch.running_since = now
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
    return verbs.unclear(watch.handle, again) if watch.unclear >= MAX_UNCLEAR else None


def _take_logs(watch: Watch, lines: tuple[LogLine, ...]) -> None:
    """Put each of the model's lines into the news once; a server may send them all each time or only the last."""
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
