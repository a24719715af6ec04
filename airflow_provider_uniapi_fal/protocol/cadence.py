"""
Pure decision: when to look at a job next.

A model that is not known yet is looked at after a share of the job's age: short jobs are known soon, long ones cost
few looks. How long the jobs of a model run is learned from those that end, and from then on a job is not looked at
before it can have ended, and closely when it is due, that is at ages at which others had ended: some jobs of a model
may be far shorter than the others. How long they were queued is believed only where a job fits: a queue comes and goes.
What was learned may be wrong: no rest is so long that a result would be lost, and a job that is overdue is looked at
less and less often, as one of an unknown model is.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import TypeVar

T = TypeVar("T")

#: Seconds between looks at a job of an unknown model: this share of its age, within these bounds.
SHORTEST = 1.5
LONGEST = 15.0
SHARE_OF_AGE = 0.37

#: Of a known model: looks are such a share of the time apart in which the jobs that are remembered had ended. First looks
#: are spread over a share of that: jobs that were submitted together do not ask together. Few end later than the last
#: that is remembered: the look for them may come so much later. Looks are not closer than this.
STEP = 0.18
FIRST_LOOK_SPREAD = 0.5
BEYOND = 2.0
CLOSEST = 0.25
CLOSEST_SHARE = 0.01
SHARE_OF_OVERTIME = 0.2

#: A queue that others have met may be gone: such a share of the time for which a job runs is taken for granted. It may
#: also fall faster than it did: the next look comes when such a share of the time that it should take is over.
SHARE_OF_QUEUE = 0.05
SHARE_OF_FALL = 0.75

#: The longest rest before a job can have ended. The queue may keep a large result for six minutes only.
LONGEST_REST = 60.0

#: Jobs of a model that must have ended before it counts as known, those remembered, and models remembered.
KNOWN_AFTER = 5
JOBS_REMEMBERED = 60
MODELS_REMEMBERED = 500

#: Of jobs that start together the short ones end first, and tell the wrong thing of the others. So what a job has taught
#: counts after so many times as long as the slow ones run; of a model with more such jobs, those that began first do now.
HELD_BACK = 1.1
MOST_HELD_BACK = 1000

#: The share of jobs at either end that is taken for exceptions.
EXCEPTIONS = 0.05

#: Jobs in which another process is told of a model, at most: more than make it known, and none of them is an exception.
GIST = 20


@dataclass(frozen=True)
class Span:
    """The seconds in which nearly all jobs of a model were done, from the fast ones to the slow ones."""

    low: float
    high: float

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Span:
        """Return the span of some durations, without the exceptions at its ends."""
        usual = _usual(seconds)
        return cls(usual[0], usual[-1])


@dataclass(frozen=True)
class Usual:
    """
    How long the jobs of a model take, in seconds; lists ascend and are without the exceptions.

    :param total: from the submit to the end
    :param running: from the start to the end
    :param unqueued: from the submit to the end, where there is next to no queue; with margins for faster and slower ones
    :param jobs: each that is remembered: how long it was queued, and its total
    """

    total: Span
    running: Sequence[float]
    unqueued: Sequence[float]
    jobs: Sequence[tuple[float, float]]

    @classmethod
    def of(cls, jobs: Iterable[tuple[float, float]]) -> Usual:
        """Learn from jobs: of each the seconds from the submit to the end, and from the start to the end."""
        known = [(total, min(running, total)) for total, running in jobs]
        return cls(
            Span.of(total for total, _ in known),
            _usual(running for _, running in known),
            _with_margin(_usual(min(total, running * (1 + SHARE_OF_QUEUE)) for total, running in known)),
            [(total - running, total) for total, running in known],
        )


def _usual(seconds: Iterable[float]) -> Sequence[float]:
    return _without_exceptions(sorted(seconds))


def _without_exceptions(ordered: Sequence[T]) -> Sequence[T]:
    exceptions = int((len(ordered) - 1) * EXCEPTIONS)
    return ordered[exceptions : len(ordered) - exceptions]


def _with_margin(ends: Sequence[float]) -> list[float]:
    """Add the ages until which the next job may lie outside of some ends: the fewer are known, the farther."""
    groups, share = _groups(ends), EXCEPTIONS + 1 / len(ends)
    first, last = groups[0], groups[-1]
    low = max(first[0] - share * (first[-1] - first[0]), first[0] / (1 + SHARE_OF_AGE))
    high = min(last[-1] + share * (last[-1] - last[0]), last[-1] * (1 + SHARE_OF_AGE))
    return [low, *ends, high]


class _Lessons:
    """What the jobs of one model have taught: those that count, and a heap of those held back, by their starts."""

    def __init__(self) -> None:
        self.jobs: deque[tuple[float, float]] = deque(maxlen=JOBS_REMEMBERED)
        self.held_back: list[tuple[float, float, float]] = []
        self.usual: Usual | None = None

    def count(self, total: float, running: float) -> None:
        self.jobs.append((total, running))
        if len(self.jobs) >= KNOWN_AFTER:
            self.usual = Usual.of(self.jobs)

    def catch_up(self, now: float) -> None:
        while self.held_back and self._counts(self.held_back[0][0], now):
            _, total, running = heappop(self.held_back)
            self.count(total, running)

    def _counts(self, started: float, now: float) -> bool:
        """Whether nearly all jobs that started then have ended, or there is nothing better to go by."""
        if self.usual is None or len(self.held_back) > MOST_HELD_BACK:
            return True
        return now >= started + HELD_BACK * self.usual.running[-1]


class Experience:
    """What this process has learned from the jobs that ended: the last ones of each of the last models."""

    def __init__(self) -> None:
        self._lessons: OrderedDict[str, _Lessons] = OrderedDict()

    def learn(self, model: str, *, total: float, running: float, ended: float | None = None) -> None:
        """
        Take note of one job that ended.

        :param total: seconds from its submit to its end
        :param running: seconds from its start to its end
        :param ended: when that was, in seconds since the epoch; None: what it tells counts at once
        """
        lessons = self._lessons.setdefault(model, _Lessons())
        self._lessons.move_to_end(model)
        total, running = max(total, 0.0), max(running, 0.0)
        if ended is None:
            lessons.count(total, running)
        else:
            heappush(lessons.held_back, (ended - running, total, running))
            lessons.catch_up(ended)
        if len(self._lessons) > MODELS_REMEMBERED:
            self._lessons.popitem(last=False)

    def usual(self, model: str, *, now: float) -> Usual | None:
        """Return how long jobs of a model take, or None while too few are known."""
        lessons = self._lessons.get(model)
        if lessons is None:
            return None
        lessons.catch_up(now)
        return lessons.usual

    def gist(self, model: str, *, now: float) -> list[tuple[float, float]]:
        """
        Return what teaches another process the same in a few jobs: of each how long it was queued, and how long it ran.

        The exceptions are left out, the fastest and the slowest of the others are in it; none while too few are known.
        """
        usual = self.usual(model, now=now)
        if usual is None:
            return []
        jobs = _without_exceptions(sorted(usual.jobs, key=lambda job: job[1]))
        last = len(jobs) - 1
        places = sorted({round(place * last / (GIST - 1)) for place in range(GIST)})
        return [(jobs[place][0], jobs[place][1] - jobs[place][0]) for place in places]


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
    usual: Usual | None = None,
    share_of_age: float = SHARE_OF_AGE,
    jitter: float,
) -> float:
    """
    Return the seconds until the next look at a job without a fixed interval.

    :param seen: what is known of the job
    :param usual: how long jobs of its model take, if that is known
    :param share_of_age: of an unknown model, the seconds between looks as a share of the job's age
    :param jitter: a random number from 0 to 1; spreads looks so that jobs submitted together do
        not ask together
    """
    return _unknown(seen, share_of_age, jitter) if usual is None else _known(seen, usual, jitter)


def first_look(seen: Seen, usual: Usual | None, *, jitter: float) -> float:
    """Return the seconds until the first look at a job that was not looked at yet, without a fixed interval."""
    if usual is None:
        return max(SHORTEST - seen.age, 0.0)
    return max(min(_when_due(_ends(seen, usual), 0.0, jitter) - seen.age, LONGEST_REST), 0.0)


def _unknown(seen: Seen, share_of_age: float, jitter: float) -> float:
    wait = min(max(seen.age * share_of_age, SHORTEST), LONGEST)
    # While it is still far back in the queue, nothing can have happened.
    return max(wait, min((seen.seconds_to_start or 0.0) / 2, LONGEST)) * (0.95 + 0.1 * jitter)


def _known(seen: Seen, usual: Usual, jitter: float) -> float:
    if seen.pending_until and seen.running_since is None:
        wait = _queued(seen, usual, jitter)
    else:
        wait = _when_due(_ends(seen, usual), seen.age, jitter) - seen.age
    return min(wait, LONGEST_REST)


def _queued(seen: Seen, usual: Usual, jitter: float) -> float:
    """Return the seconds until the next look at a job that was last seen in the queue."""
    running = _when_due(usual.running, 0.0, jitter)
    if seen.seconds_to_start is None:
        # However long others were queued, it may start now.
        return max(seen.pending_until + running - seen.age, min(seen.age * SHARE_OF_OVERTIME, LONGEST))
    if seen.seconds_to_start > running:
        return max(seen.seconds_to_start * SHARE_OF_FALL, running)
    # Who sees it start knows better when it will end.
    return max(seen.seconds_to_start, running * STEP, CLOSEST)


def _ends(seen: Seen, usual: Usual) -> Sequence[float]:
    """Return the ages at which a job may end, ascending, one as likely as the other."""
    if seen.running_since is None:
        return usual.unqueued
    if seen.pending_until:
        # It has started at some time between the two looks.
        doubt = max(seen.running_since - seen.pending_until, 0.0) / max(len(usual.running) - 1, 1)
        return [seen.pending_until + place * doubt + each for place, each in enumerate(usual.running)]
    # Of the others those that were queued no longer than it can have been.
    alike = [total for queued, total in usual.jobs if queued <= seen.running_since]
    return _with_margin(_usual(alike)) if 2 * len(alike) >= len(usual.jobs) else usual.unqueued


def _when_due(ends: Sequence[float], age: float, jitter: float) -> float:
    """Return the age for the next look at a job that ends at one of these ages."""
    *groups, last = _groups(ends)
    for group in groups:
        if age < group[-1]:
            return _within(group, age, jitter)
        # Once more before the gap is passed over.
        if age < _patience(group[-1]):
            return max(_patience(group[-1]), age + _closest(age))
    if age < last[-1]:
        return _within(last, age, jitter)
    # The longer it lasts against all experience, the less the experience is worth.
    return age + min(max(_beyond(last), _closest(age), (age - last[-1]) * SHARE_OF_OVERTIME), LONGEST)


def _groups(ends: Sequence[float]) -> list[Sequence[float]]:
    """Part the ends at wide gaps: some jobs of a model may be far shorter than the others."""
    groups, begin = [], 0
    for place in range(1, len(ends)):
        if ends[place] > ends[place - 1] * (1 + SHARE_OF_AGE):
            groups.append(ends[begin:place])
            begin = place
    return [*groups, ends[begin:]]


def _within(ends: Sequence[float], age: float, jitter: float) -> float:
    """Return the age for the next look at a job that most likely ends at one of these ages, which have no gap."""
    share = 1 - FIRST_LOOK_SPREAD * jitter if age < ends[0] else 1.0
    begin, step = max(age, ends[0]), STEP * (ends[-1] - ends[0])
    look = begin + share * step
    if look > ends[-1]:
        look = ends[-1] + BEYOND * (look - ends[-1])
    return max(min(look, _patience(begin)), begin + share * _closest(begin))


def _beyond(ends: Sequence[float]) -> float:
    """Return how long after the last of some ends the look for later ones comes."""
    return BEYOND * STEP * (ends[-1] - ends[0])


def _patience(age: float) -> float:
    """Return the age until which a job of an unknown model would be left alone."""
    return age + min(age * SHARE_OF_AGE, LONGEST)


def _closest(age: float) -> float:
    return max(CLOSEST, min(age * CLOSEST_SHARE, LONGEST))
