"""
Pure decision: when to look at a job next.

A model that is not known yet is looked at after a share of the job's age: short jobs are known soon, long ones cost
few looks. How long the jobs of a model take is learned from those that end, and from then on a job is not looked at
before it can have ended, and closely when it is due. What was learned may be wrong: no rest is so long that a result
would be lost, and a job that is overdue is looked at less and less often, as one of an unknown model is.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

#: Seconds between looks at a job of an unknown model: this share of its age, within these bounds.
SHORTEST = 1.5
LONGEST = 15.0
SHARE_OF_AGE = 0.37

#: Of a known model: the time in which most jobs end is divided by this, but looks are not closer than this. First looks
#: are spread over a share of the time between two: jobs that were submitted together do not ask together, and who looks
#: the moment that the fastest job ends nearly always looks in vain.
LOOKS_WHILE_DUE = 5.5
FIRST_LOOK_SPREAD = 0.5
CLOSEST = 0.25
CLOSEST_SHARE = 0.01
SHARE_OF_OVERTIME = 0.2

#: The longest rest before a job can have ended. The queue may keep a large result for six minutes only.
LONGEST_REST = 60.0

#: Jobs of a model that must have ended before it counts as known, those remembered, and models remembered.
KNOWN_AFTER = 5
JOBS_REMEMBERED = 60
MODELS_REMEMBERED = 500

#: The share of jobs at either end that is taken for exceptions.
EXCEPTIONS = 0.05


@dataclass(frozen=True)
class Span:
    """The seconds in which nearly all jobs of a model were done, from the fast ones to the slow ones."""

    low: float
    high: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Span:
        """Return the span of some durations, without the exceptions at its ends."""
        ordered = sorted(seconds)
        last = len(ordered) - 1
        return cls(ordered[round(last * EXCEPTIONS)], ordered[round(last * (1 - EXCEPTIONS))])


@dataclass(frozen=True)
class Usual:
    """
    How long the jobs of a model take.

    :param total: from the submit to the end
    :param running: from the start to the end
    """

    total: Span
    running: Span


class Experience:
    """What this process has learned from the jobs that ended: the last ones of each of the last models."""

    def __init__(self) -> None:
        self._jobs: OrderedDict[str, deque[tuple[float, float]]] = OrderedDict()
        self._usual: dict[str, Usual] = {}

    def learn(self, model: str, *, total: float, running: float) -> None:
        """Take note of one job that ended, in seconds."""
        jobs = self._jobs.setdefault(model, deque(maxlen=JOBS_REMEMBERED))
        self._jobs.move_to_end(model)
        jobs.append((max(total, 0.0), max(running, 0.0)))
        if len(jobs) >= KNOWN_AFTER:
            totals, runnings = zip(*jobs, strict=True)
            self._usual[model] = Usual(Span.of(totals), Span.of(runnings))
        if len(self._jobs) > MODELS_REMEMBERED:
            forgotten, _ = self._jobs.popitem(last=False)
            self._usual.pop(forgotten, None)

    def usual(self, model: str) -> Usual | None:
        """Return how long jobs of a model take, or None while too few are known."""
        return self._usual.get(model)


@dataclass(frozen=True)
class Seen:
    """
    What is known of a job that has not ended; times are seconds after its submit.

    :param age: now
    :param pending_until: when it was last known to be waiting in the queue; 0 if it was never seen there
    :param running_since: when it was first seen running, or None
    :param seconds_to_start: how long it will still be queued, by the fall of its position; None: no telling
    """

    age: float
    pending_until: float = 0.0
    running_since: float | None = None
    seconds_to_start: float | None = None


def next_look(
    seen: Seen,
    *,
    poke_interval: float | None,
    retry_after: float | None = None,
    usual: Usual | None = None,
    share_of_age: float = SHARE_OF_AGE,
    jitter: float,
) -> float:
    """
    Return the seconds until the next look.

    A fixed ``poke_interval`` is kept. A server that asks for patience by Retry-After always gets it.

    :param seen: what is known of the job
    :param poke_interval: seconds between looks, or None for adaptive
    :param retry_after: seconds that the server asked to wait
    :param usual: how long jobs of its model take, if that is known
    :param share_of_age: of an unknown model, the seconds between looks as a share of the job's age
    :param jitter: a random number from 0 to 1; spreads adaptive looks so that jobs submitted together do
        not ask together
    """
    wait = poke_interval
    if wait is None:
        wait = _unknown(seen, share_of_age, jitter) if usual is None else _known(seen, usual, jitter)
    return max(wait, retry_after or 0.0)


def first_look(seen: Seen, usual: Usual | None, *, jitter: float) -> float:
    """Return the seconds until the first look at a job that was not looked at yet, without a fixed interval."""
    if usual is None:
        return max(SHORTEST - seen.age, 0.0)
    early, late = _due(seen, usual)
    spread = FIRST_LOOK_SPREAD * jitter * _while_due(early, late)
    return min(max(early + spread - seen.age, 0.0), LONGEST_REST)


def _unknown(seen: Seen, share_of_age: float, jitter: float) -> float:
    wait = min(max(seen.age * share_of_age, SHORTEST), LONGEST)
    # While it is still far back in the queue, nothing can have happened.
    return max(wait, min((seen.seconds_to_start or 0.0) / 2, LONGEST)) * (0.95 + 0.1 * jitter)


def _known(seen: Seen, usual: Usual, jitter: float) -> float:
    early, late = _due(seen, usual)
    interval = _while_due(early, late)
    rest = max(early + FIRST_LOOK_SPREAD * jitter * interval - seen.age, 0.0)
    wait = min(rest, LONGEST_REST) if rest > interval else min(interval, LONGEST)
    # The longer it lasts against all experience, the less the experience is worth.
    return max(wait, min((seen.age - usual.total.high) * SHARE_OF_OVERTIME, LONGEST))


def _while_due(early: float, late: float) -> float:
    """Return the seconds between looks at a job that may end at any time between two ages."""
    return max((late - early) / LOOKS_WHILE_DUE, CLOSEST, CLOSEST_SHARE * early)


def _due(seen: Seen, usual: Usual) -> tuple[float, float]:
    """Return the ages between which the job should end."""
    if seen.running_since is None:
        start = seen.pending_until + (seen.seconds_to_start or 0.0)
        earliest, latest = start + usual.running.low, start + usual.running.high
    else:
        earliest = seen.pending_until + usual.running.low
        # Who was never seen in the queue most likely was not there for long.
        latest = (seen.running_since if seen.pending_until else 0.0) + usual.running.high
    if seen.age < usual.total.high:
        # It goes as most do, so the whole way tells more than its parts, whose borders were not seen.
        return max(min(earliest, usual.total.high), usual.total.low), usual.total.high
    return earliest, max(latest, earliest)
