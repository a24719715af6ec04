"""What is going to happen to whom: everything that can be drawn from the seed before the run begins."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from airflow_provider_uniapi_fal.emulator.faults import Rule

#: The DAGs, with the tasks that make one job in each, and their share of the jobs.
WAYS: dict[str, tuple[str, ...]] = {
    "generate_deferred": ("generate",),
    "generate_blocking": ("generate",),
    "submit_and_wait": ("media.submit", "media.wait"),
}
SHARES = {"generate_deferred": 65, "generate_blocking": 12, "submit_and_wait": 23}

SHARE_KILLED = 0.25


@dataclass(frozen=True)
class Fate:
    """
    What decides how a job ends.

    :param share: parts of the jobs that meet it
    :param outcomes: how a job may end that meets it
    :param rules: what the emulator does, for this job's prompt
    :param failed: how many of its accepted posts become jobs that fail
    :param unbilled: how many of those cost nothing, so that a retry may post again
    :param removed: how many of its accepted posts its own clock removes from the queue, with the same leave
    :param cancelled: the runner cancels it at the gateway, as somebody with the same key could
    """

    share: int
    outcomes: tuple[str, ...]
    rules: tuple[str, ...] = ()
    failed: int = 0
    unbilled: int = 0
    removed: int = 0
    cancelled: bool = False

    @property
    def posts(self) -> int:
        """How many of its posts may be accepted, at most."""
        return 1 + self.unbilled + self.removed


FATES: dict[str, Fate] = {
    "all is well": Fate(66, ("succeeded",)),
    "reply lost": Fate(4, ("unknown",), ("lost-reply on=submit times=1",)),
    "reply reset": Fate(3, ("unknown",), ("lost-reply on=submit times=1 reset=true",)),
    "request lost": Fate(3, ("unknown",), ("lost-request on=submit times=1 reset=true",)),
    "reply cut short": Fate(2, ("unknown",), ("truncated on=submit times=1 reset=true",)),
    "5xx, accepted": Fate(3, ("unknown",), ("server-error on=submit times=1 status=502 accepted=true",)),
    "5xx, not accepted": Fate(3, ("unknown",), ("server-error on=submit times=1 status=503",)),
    "html, accepted": Fate(3, ("unknown",), ("html on=submit times=1 status=504 accepted=true",)),
    "html under 200": Fate(2, ("unknown",), ("html on=submit times=1 status=200 accepted=true",)),
    "no balance": Fate(3, ("failed",), ("turned-away on=submit because=no-balance",)),
    "refused": Fate(4, ("refused",), ("job failure=refused",), failed=1),
    "bad input": Fate(3, ("failed",), ("job failure=result-422",), failed=1),
    "fails once, unbilled": Fate(
        4, ("succeeded",), ("job failure=result-500 times=1",), failed=1, unbilled=1
    ),
    "stuck in the queue": Fate(3, ("succeeded",), ("job stuck=true times=1",), removed=1),
    # Should nobody come to cancel it in time, its clock ends it.
    "cancelled by somebody": Fate(
        3, ("cancelled", "succeeded"), ("job stuck=true times=1",), removed=1, cancelled=True
    ),
}
"""The ends; one decides each job."""

LATE = ("slow", "trickle")
"""What carries a call out, and answers later."""

NOISE = (
    "rate-limit on=submit times=2 retry_after=1",
    "rate-limit on=submit times=6 retry_after=1",  # one try's patience ends at five
    "slow on=submit times=1 seconds=3",
    "trickle on=submit times=1 seconds=3",
    "heartbeat on=submit times=1",
    "server-error on=status times=2 status=500",
    "html on=status times=2",
    "lost-reply on=status times=2",
    "lost-reply on=status times=1 reset=true",
    "rate-limit on=status times=1 retry_after=2",
    "slow on=status times=1 seconds=3",
    "trickle on=status times=1 seconds=3",
    "truncated on=status times=1",
    "body on=status times=2 status=PAUSED",
    "server-error on=result times=2 status=503",
    "html on=result times=1",
    "lost-reply on=result times=1 reset=true",
    "truncated on=result times=1",
    "trickle on=result times=1 seconds=3",
    "job requeues=1",
    "job requeues=2",
)
"""What must not change how a job ends."""


@dataclass(frozen=True)
class Kill:
    """A task process to be killed, so many seconds after it is first seen running."""

    task_id: str
    after: float


@dataclass(frozen=True)
class PlannedJob:
    """One job asked for; the prompt is its own, and tells its posts from all others."""

    prompt: str
    way: str
    index: int
    fate: str
    noise: tuple[str, ...]
    kill: Kill | None

    @property
    def end(self) -> Fate:
        """What decides how it ends."""
        return FATES[self.fate]

    @property
    def outcomes(self) -> tuple[str, ...]:
        """How it may end, if no kill and no restart comes between."""
        if self.way != "submit_and_wait":
            return self.end.outcomes
        # A sensor submits nothing: to it, a job that failed has failed, and one that is stuck takes too long.
        if self.end.unbilled:
            return ("failed",)
        if self.end.removed:
            return ("cancelled", "timed_out") if self.end.cancelled else ("timed_out",)
        return self.end.outcomes

    @property
    def reply_takes(self) -> float:
        """How many seconds the reply to its post is on its way, by what was planned."""
        late = (Rule.read(rule) for rule in self.noise)
        seconds = (rule.option("seconds") for rule in late if rule.on == "submit" and rule.fault in LATE)
        return float(sum(seconds))

    @property
    def rules(self) -> tuple[str, ...]:
        """What the emulator is to do with it, in its own words; the first rule that fits a call strikes."""
        # A late reply to the submit, too, is a reply, and would keep the fate from its only post.
        before = [rule for rule in self.noise if rule.startswith("rate-limit on=submit")]
        after = [rule for rule in self.noise if rule not in before]
        return tuple(f"{rule} match='{self.prompt}'" for rule in (*before, *self.end.rules, *after))


@dataclass(frozen=True)
class Incident:
    """An accident of the whole, when so great a share of the posts has been accepted."""

    what: str
    at: float
    pause: float


@dataclass(frozen=True)
class Plan:
    """Everything that is drawn from the seed."""

    seed: int
    jobs: tuple[PlannedJob, ...]
    incidents: tuple[Incident, ...]

    def of_way(self, way: str) -> list[PlannedJob]:
        """Return the jobs of one DAG, in the order of their map indexes."""
        return [job for job in self.jobs if job.way == way]


def plan_of(count: int, seed: int) -> Plan:
    """Draw a plan; the same seed draws the same."""
    chance = random.Random(seed)
    ways = _dealt(count, SHARES, chance)
    fates = _dealt(count, {name: fate.share for name, fate in FATES.items()}, chance)
    places = dict.fromkeys(WAYS, 0)
    jobs = []
    for number, (way, fate) in enumerate(zip(ways, fates, strict=True)):
        noise = tuple(chance.sample(NOISE, chance.choice((0, 0, 1, 1, 2, 3))))
        target = chance.choice(WAYS[way])
        # A task that only submits is gone in a moment.
        kill = Kill(target, chance.uniform(0, 1.2 if target.endswith("submit") else 6.0))
        killed = chance.random() < SHARE_KILLED
        prompt = f"chaos {seed}, job {number:04d}."
        jobs.append(PlannedJob(prompt, way, places[way], fate, noise, kill if killed else None))
        places[way] += 1
    return Plan(seed, tuple(jobs), _incidents(count, chance))


def _dealt(count: int, shares: Mapping[str, int], chance: random.Random) -> list[str]:
    """Deal names by their shares, each at least once if there are enough jobs."""
    whole = sum(shares.values())
    deck = [name for name, share in shares.items() for _ in range(max(1, round(count * share / whole)))]
    most = max(shares, key=lambda name: shares[name])
    deck += [most] * (count - len(deck))
    while len(deck) > count and most in deck:
        deck.remove(most)
    chance.shuffle(deck)
    return deck[:count]


def _incidents(count: int, chance: random.Random) -> tuple[Incident, ...]:
    """Place the accidents in a run; a short one has one of each."""
    kinds: Any = ("emulator", "triggerer") if count < 100 else ("emulator", "triggerer") * 2
    step = 0.8 / len(kinds)
    return tuple(
        Incident(what, 0.1 + step * (place + chance.random()), chance.uniform(0.2, 2.0))
        for place, what in enumerate(kinds)
    )
