"""Whole nights of looks at jobs whose queue comes and goes, or that are either short or long; the clock is simulated."""

from __future__ import annotations

import heapq
import random
from bisect import bisect_right
from statistics import mean, median

import pytest

from airflow_provider_uniapi_fal.protocol import watching
from airflow_provider_uniapi_fal.protocol.job import JobResult
from airflow_provider_uniapi_fal.protocol.watching import WaitMore, Watch
from tests.protocol.test_cadence import World
from tests.protocol.values import handle


def p95(values: list[float]) -> float:
    return sorted(values)[int(0.95 * len(values))]


def night(
    world: World,
    *,
    jobs: int = 300,
    at_once: int = 40,
    per_second: float = 50.0,
    metrics: bool = True,
    positions: bool = False,
) -> tuple[list[float], list[int]]:
    """
    Submit all jobs in a few seconds to an account that runs some at once, each for 20 s ± 10 %.

    What is learned from those that end first changes how the others are looked at.

    :return: of each job, in the order of the submits, the seconds until its end was known, and its looks
    """
    free = [0.0] * at_once
    plan = []
    for number in range(jobs):
        submitted = number / per_second
        start = max(submitted, heapq.heappop(free))
        running = world.twenty_seconds()[1]
        heapq.heappush(free, start + running)
        plan.append((submitted, start, running))
    starts = sorted(start for _, start, _ in plan)
    looks, late, due = [0] * jobs, [0.0] * jobs, []
    for number, (submitted, _, _) in enumerate(plan):
        watch = Watch(handle(submitted_at=world.now + submitted))
        rest = watching.seconds_to_first_look(
            watch, now=world.now + submitted, jitter=world.chance.random(), experience=world.experience
        )
        due.append((submitted + rest, number, watch))
    heapq.heapify(due)
    while due:
        now, number, watch = heapq.heappop(due)
        submitted, start, running = plan[number]
        looks[number] += 1
        before_it = bisect_right(starts, start) - bisect_right(starts, now) if positions else None
        end = world._round(watch, world.now + now, start - submitted, running, metrics, before_it)
        if isinstance(end, JobResult):
            late[number] = now + 2 * world.ROUND_TRIP - start - running
        else:
            assert isinstance(end, WaitMore)
            heapq.heappush(due, (now + world.ROUND_TRIP + end.seconds, number, watch))
    world.now += max(start + running for _, start, running in plan) + max(late)
    return late, looks


@pytest.mark.parametrize(
    ("metrics", "positions", "median_late", "p95_late", "most_late"),
    [(True, False, 2.5, 6.0, 9.0), (True, True, 1.5, 5.5, 15.5), (False, False, 2.5, 7.5, 15.5)],
)
@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_queue_that_comes_and_goes_hides_no_end(
    metrics: bool, positions: bool, median_late: float, p95_late: float, most_late: float, seed: int
) -> None:
    world = World(seed)
    night(world, metrics=metrics, positions=positions)
    for _ in range(2):
        late, looks = night(world, metrics=metrics, positions=positions)
        print(
            f"late: median {median(late):.2f}, p95 {p95(late):.1f}, most {max(late):.1f}; "
            f"the first 40: median {median(late[:40]):.1f}, most {max(late[:40]):.1f}; looks: {mean(looks):.1f}"
        )
        assert median(late) <= median_late
        assert p95(late) <= p95_late
        assert max(late) <= most_late
        assert mean(looks) <= 8
        # Nobody was before them in the queue, in this night as in the one before.
        assert max(late[:40]) <= (3.5 if metrics else 8.0)


@pytest.mark.parametrize("seed", range(5))
def test_of_60_jobs_that_are_submitted_together_none_takes_more_than_6_looks_for_what_the_first_ones_taught(
    seed: int,
) -> None:
    world = World(seed)
    for _ in range(20):
        world.wait(*world.twenty_seconds())
    late, looks = night(world, jobs=60, at_once=60, per_second=1000.0)
    print(
        f"late: median {median(late):.2f}, p95 {p95(late):.1f}; looks: mean {mean(looks):.1f}, most {max(looks)}"
    )
    assert max(looks) <= 6
    # With a margin for so few jobs; the look that tells and the fetch of the result take their time, too.
    assert median(late) - 2 * World.ROUND_TRIP <= 0.55


def test_of_60_jobs_that_are_submitted_together_half_are_known_within_half_a_second_once_20_others_have_run_together() -> (
    None
):
    medians, most = [], []
    for seed in range(40):
        world = World(seed)
        together(world, 20)
        late, looks = together(world, 60)
        # What is known of a job is known before its result is fetched.
        medians.append(median(late) - World.ROUND_TRIP)
        most.append(max(looks))
    print(f"late: median {median(medians):.2f}, worst median {max(medians):.2f}; looks: most {max(most)}")
    assert median(medians) <= 0.5
    assert max(medians) <= 0.6
    assert max(most) <= 6


@pytest.mark.parametrize("seed", range(3))
def test_a_crowd_that_has_ended_makes_the_next_jobs_no_worse_known(seed: int) -> None:
    # The slow ones of a crowd end last; they are not all that is remembered of it.
    world = World(seed)
    together(world, 20)
    for crowd in (300, 300, 60):
        late, looks = together(world, crowd)
        print(f"late: median {median(late):.2f}, most {max(late):.1f}; looks: most {max(looks)}")
        assert median(late) - World.ROUND_TRIP <= 0.6
        assert max(looks) <= 7


def together(world: World, jobs: int) -> tuple[list[float], list[int]]:
    """Submit all jobs within a second or a few, to an account that runs them all at once."""
    return night(world, jobs=jobs, at_once=jobs, per_second=100.0)


@pytest.mark.parametrize("metrics", [True, False])
def test_after_a_queue_that_took_up_to_a_quarter_of_an_hour_jobs_that_start_at_once_are_known_soon(
    metrics: bool,
) -> None:
    world = World(3)
    for number in range(100):
        world.wait(10.0 * number, world.twenty_seconds()[1], metrics=metrics)
    waits = [world.wait(*world.twenty_seconds(), metrics=metrics) for _ in range(60)]
    looks, late = zip(*waits, strict=True)
    print(f"looks: {mean(looks):.1f}; seconds late: median {median(late):.2f}, most {max(late):.1f}")
    assert median(late) <= 2
    assert max(late) <= 6
    assert mean(looks) <= 8


@pytest.mark.parametrize(("short", "long", "share"), [(5, 120, 0.5), (5, 60, 0.8), (10, 300, 0.9)])
def test_of_jobs_that_are_either_short_or_long_none_is_known_later_for_what_was_learned(
    short: float, long: float, share: float
) -> None:
    world, chance = World(1), random.Random(1)
    known, unknown = [], []
    for number in range(300):
        running = (short if chance.random() < share else long) * chance.uniform(0.95, 1.05)
        known.append((running, *world.wait(0.3, running)))
        unknown.append((running, *World(number).wait(0.3, running)))
    for begin, end in ((0, (short + long) / 2), ((short + long) / 2, 2 * long)):
        found = []
        for waits in (known, unknown):
            looks, late = zip(
                *((looks, late) for running, looks, late in waits[60:] if begin < running < end), strict=True
            )
            print(
                f"of {begin} to {end} s: looks {mean(looks):.1f}; late: mean {mean(late):.2f}, most {max(late):.1f}"
            )
            found.append((mean(looks), mean(late), max(late)))
        (looks_known, mean_known, most_known), (looks_unknown, mean_unknown, most_unknown) = found
        assert mean_known <= 0.7 * mean_unknown
        assert most_known <= 1.5 * most_unknown
        assert looks_known <= looks_unknown
