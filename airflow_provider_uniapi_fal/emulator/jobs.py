"""
The queue as a pure model: the state of every job is a function of time.

Nothing here waits or ticks. Whoever looks says what time it is; the queue first catches up with all that has happened
until then, at the times at which it happened, and then answers. Times are seconds since the epoch.
"""

from __future__ import annotations

import heapq
import math
import random
from bisect import bisect_left, insort
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.settings import Behaviour

LOG = (
    (0.0, "Loading the model"),
    (0.15, "Denoising: 0 %"),
    (0.35, "Denoising: 25 %"),
    (0.55, "Denoising: 50 %"),
    (0.75, "Denoising: 75 %"),
    (0.95, "Encoding the media"),
)


class Phase(str, Enum):
    """Where a job is."""

    QUEUED = "queued"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Job:
    """One generation request, from the accepted post to its end."""

    number: int
    request_id: str
    model: str
    body: bytes
    behaviour: Behaviour
    submitted_at: float
    ready_at: float
    run_seconds: float
    seed: int
    headers: dict[str, str] = field(default_factory=dict)
    started_at: float | None = None
    finished_at: float | None = None
    cancelled: bool = False
    cancel_requested: bool = False
    requeues: int = 0
    """How often it still falls back into the queue."""

    @classmethod
    def begin(
        cls,
        *,
        number: int,
        request_id: str,
        model: str,
        body: bytes,
        behaviour: Behaviour,
        now: float,
        seed: int,
    ) -> Job:
        """Begin a job; its durations and its own seed follow from the emulator's seed and the job's number."""
        chance = random.Random(f"{seed}:{number}")
        queue_factor, run_factor = (1 + behaviour.spread * chance.uniform(-1, 1) for _ in range(2))
        return cls(
            number=number,
            request_id=request_id,
            model=model,
            body=body,
            behaviour=behaviour,
            submitted_at=now,
            ready_at=math.inf if behaviour.stuck else now + max(0.0, behaviour.queue_seconds * queue_factor),
            run_seconds=max(0.0, behaviour.run_seconds * run_factor),
            seed=chance.randrange(2**31),
            requeues=behaviour.requeues,
        )

    @classmethod
    def read(cls, fields: Mapping[str, Any], behaviour: Behaviour) -> Job:
        """Begin a job again that was written down."""
        return cls(**{**fields, "body": fields["body"].encode("latin-1"), "behaviour": behaviour})

    def as_mapping(self) -> dict[str, Any]:
        """Return all that a job begins with; all that becomes of it follows from that, and from its cancels."""
        names = (
            "number", "request_id", "model", "submitted_at", "ready_at", "run_seconds", "seed", "headers", "requeues",
        )  # fmt: skip
        own = {name: getattr(self, name) for name in names}
        return {**own, "body": self.body.decode("latin-1"), "behaviour": vars(self.behaviour)}

    @property
    def phase(self) -> Phase:
        """Where the job was when the queue last caught up."""
        if self.finished_at is not None:
            return Phase.FINISHED
        return Phase.QUEUED if self.started_at is None else Phase.RUNNING

    @property
    def turn(self) -> tuple[float, int]:
        """The order in which waiting jobs start."""
        return (self.ready_at, self.number)

    @property
    def inference_seconds(self) -> float | None:
        """How long the job ran, once it has."""
        if self.started_at is None or self.finished_at is None:
            return None
        return self.finished_at - self.started_at

    def next_change_at(self, now: float) -> float:
        """Return when the job itself starts or ends next; infinity while it waits for others."""
        if self.started_at is None:
            return self.ready_at if self.ready_at > now else math.inf
        # One that falls back into the queue does so half way.
        return self.started_at + (self.run_seconds / 2 if self.requeues else self.run_seconds)

    def log(self, now: float) -> list[tuple[float, str]]:
        """Return the lines logged so far, each with its time."""
        if self.started_at is None:
            return []
        until = now if self.finished_at is None else self.finished_at
        lines = ((self.started_at + share * self.run_seconds, message) for share, message in LOG)
        return [(when, message) for when, message in lines if when <= until]


class JobQueue:
    """All jobs, and at most ``slots`` of them running at once."""

    def __init__(self, slots: int = 0) -> None:
        self._slots = slots or math.inf
        self._clock = -math.inf
        self._busy = 0
        # Sorted by turn. Inserting moves memory, but 100,000 waiting jobs move in microseconds.
        self._waiting: list[tuple[float, int, Job]] = []
        self._ends: list[tuple[float, int, Job]] = []
        self.jobs: dict[str, Job] = {}

    def submit(self, job: Job) -> None:
        """Take in a new job."""
        self.advance(job.submitted_at)
        self.jobs[job.request_id] = job
        insort(self._waiting, (*job.turn, job))
        self.advance(job.submitted_at)

    def advance(self, now: float) -> None:
        """Catch up with everything that has happened until now, in its order."""
        while True:
            next_end = self._ends[0][0] if self._ends else math.inf
            next_start = max(self._waiting[0][0], self._clock) if self._waiting else math.inf
            if self._busy >= self._slots:
                next_start = math.inf
            event = min(next_end, next_start)
            if event > now or event == math.inf:
                break
            self._clock = event
            # An end comes before a start at the same moment: it frees the slot.
            if next_end <= next_start:
                self._end_next()
            else:
                self._start_next()
        self._clock = max(self._clock, now)

    def position(self, job: Job) -> int:
        """Return how many waiting jobs are ahead of a waiting job."""
        return bisect_left(self._waiting, (*job.turn,))

    @property
    def length(self) -> int:
        """How many jobs wait."""
        return len(self._waiting)

    def remove(self, job: Job) -> None:
        """Take a waiting job out of the queue, or stop a running one: it ends as cancelled."""
        job.cancelled = True
        self.finish(job)

    def finish(self, job: Job) -> None:
        """End a job now, wherever it is."""
        if job.phase is Phase.QUEUED:
            del self._waiting[self.position(job)]
        elif job.phase is Phase.RUNNING:
            self._busy -= 1
        job.finished_at = self._clock
        self.advance(self._clock)

    def _start_next(self) -> None:
        *_, job = self._waiting.pop(0)
        self._busy += 1
        job.started_at = self._clock
        # A job that falls back does so half way.
        seconds = job.run_seconds / 2 if job.requeues else job.run_seconds
        heapq.heappush(self._ends, (self._clock + seconds, job.number, job))

    def _end_next(self) -> None:
        when, _, job = heapq.heappop(self._ends)
        # A job that was ended before its time has already given its slot back.
        if job.finished_at is not None:
            return
        self._busy -= 1
        if not job.requeues:
            job.finished_at = when
            return
        job.requeues -= 1
        job.started_at = None
        job.ready_at = when + job.behaviour.queue_seconds
        insort(self._waiting, (*job.turn, job))
