"""The runner of chaos: what it promises about itself, and a short form of the whole."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

import pytest
from rich.console import Console

from airflow_provider_uniapi_fal.emulator.faults import Rule
from tests.chaos.__main__ import run
from tests.chaos.account import Ending, Happened, Row, account_of, broken, verdict
from tests.chaos.plan import FATES, WAYS, Kill, Plan, PlannedJob, plan_of

if TYPE_CHECKING:
    from tests.conftest import Figures

PROMPT = "chaos 1, job 0000."
NOON = datetime(2026, 11, 22, 12, tzinfo=timezone.utc)


def planned(fate: str = "all is well", way: str = "generate_deferred", kill: Kill | None = None) -> Plan:
    return Plan(1, (PlannedJob(PROMPT, way, 0, fate, (), kill),), ())


def made(request_id: str, **changes: Any) -> dict[str, Any]:
    job = {"prompt": PROMPT, "request_id": request_id, "state": "finished", "cancelled": False}
    return {**job, "submitted_at": NOON.timestamp() + float(request_id), **changes}


def rows_of(
    plan: Plan, ending: Ending, *at_gateway: dict[str, Any], happened: Happened | None = None
) -> list[Row]:
    return account_of(plan, {PROMPT: ending}, at_gateway, happened or Happened())


def problems_of(
    plan: Plan, ending: Ending, *at_gateway: dict[str, Any], happened: Happened | None = None
) -> str:
    rows = rows_of(plan, ending, *at_gateway, happened=happened)
    named = "\n".join(broken(rows))
    assert bool(named) == any(not promise.kept for promise in verdict(plan, rows, happened or Happened()))
    assert not named or named.startswith(PROMPT)
    return named


def test_the_same_seed_draws_the_same_plan_and_another_another() -> None:
    assert plan_of(200, 1) == plan_of(200, 1)
    assert plan_of(200, 1) != plan_of(200, 2)


@pytest.mark.parametrize("count", [1, 24, 40, 200, 1000])
def test_a_plan_has_as_many_jobs_as_asked_each_with_a_prompt_that_is_no_part_of_another(count: int) -> None:
    prompts = [job.prompt for job in plan_of(count, 1).jobs]
    assert len(prompts) == count
    assert not any(a in b for a in prompts for b in prompts if a is not b)


@pytest.mark.parametrize("count", [24, 200])
def test_every_fate_and_every_way_is_dealt(count: int) -> None:
    jobs = plan_of(count, 1).jobs
    assert {job.fate for job in jobs} == set(FATES)
    assert {job.way for job in jobs} == set(WAYS)
    assert any(job.kill for job in jobs)
    for job in jobs:
        for rule in job.rules:
            assert Rule.read(rule).match == job.prompt


def test_no_noise_keeps_a_fate_from_its_post() -> None:
    late, refused = "slow on=submit times=1", "rate-limit on=submit times=2"
    job = replace(planned("reply lost").jobs[0], noise=(late, refused))
    assert [Rule.read(rule).fault for rule in job.rules] == ["rate-limit", "lost-reply", "slow"]


def test_a_job_posted_once_and_delivered_breaks_no_promise() -> None:
    assert not problems_of(planned(), Ending("succeeded", request_id="1"), made("1"))


def test_a_second_accepted_post_is_named_as_paid_twice() -> None:
    named = problems_of(planned(), Ending("succeeded", request_id="2"), made("1"), made("2"))
    assert "2 posts were accepted; paid 2 times; the result of 1 was lost" in named


def test_a_post_after_an_unbilled_failure_is_granted_but_no_third() -> None:
    plan = planned("fails once, unbilled")
    assert not problems_of(plan, Ending("succeeded", request_id="2"), made("1"), made("2"))
    ending = Ending("succeeded", request_id="3")
    assert "paid 2 times" in problems_of(plan, ending, made("1"), made("2"), made("3"))


def test_a_post_after_a_removal_from_the_queue_is_granted_but_no_third() -> None:
    plan = planned("stuck in the queue")
    ending = Ending("succeeded", request_id="2")
    removed = made("1", cancelled=True)
    assert not problems_of(plan, ending, removed, made("2"))
    assert "paid 2 times" in problems_of(plan, ending, removed, made("2"), made("3"))


def test_a_job_that_ended_well_without_being_delivered_is_named_as_lost() -> None:
    named = problems_of(planned(), Ending("failed", "No task says why."), made("1"))
    assert "the result of 1 was lost" in named
    assert "nothing explains that it is failed" in named
    assert "No task says why." in named


def test_the_result_of_another_job_is_named() -> None:
    named = problems_of(planned(), Ending("succeeded", request_id="9"), made("1"))
    assert "9 was delivered, which the gateway did not make for it" in named


def test_unknown_without_a_reason_is_named() -> None:
    ending = Ending("unknown", submitting=(NOON, NOON + timedelta(seconds=5)))
    assert "nothing explains that it is unknown" in problems_of(planned(), ending, made("1"))
    assert not problems_of(planned("reply lost"), ending, made("1"))


def killed_at(seconds: float) -> Happened:
    return Happened(killed={PROMPT: NOON + timedelta(seconds=seconds)})


@pytest.mark.parametrize(
    ("seconds", "explained"), [(-5, True), (1, True), (2, True), (4, False), (60, False)]
)
def test_a_kill_explains_unknown_only_until_the_handle_must_be_recorded(
    seconds: float, explained: bool
) -> None:
    # The job was accepted one second after noon.
    named = problems_of(planned(), Ending("unknown"), made("1"), happened=killed_at(seconds))
    assert named.count("nothing explains that it is unknown") == (not explained)


def test_a_kill_explains_unknown_for_longer_while_the_reply_was_late_and_always_without_a_job() -> None:
    (job,) = planned().jobs
    late = Plan(1, (replace(job, noise=("slow on=submit times=1 seconds=3",)),), ())
    assert not problems_of(late, Ending("unknown"), made("1"), happened=killed_at(4))
    assert not problems_of(planned(), Ending("unknown"), happened=killed_at(60))
    # The one that has failed was known; the post after it may never have arrived.
    again = planned("fails once, unbilled")
    assert not problems_of(again, Ending("unknown"), made("1"), happened=killed_at(60))
    assert problems_of(again, Ending("unknown"), made("1"), made("2"), happened=killed_at(60))


def test_handles_that_are_lost_wherever_a_task_is_killed_fail_the_run() -> None:
    plan = replace(plan_of(200, 7), incidents=())
    plan = replace(plan, jobs=tuple(replace(job, fate="all is well") for job in plan.jobs))
    at = NOON.timestamp()
    jobs = [
        {**made("0"), "prompt": job.prompt, "request_id": job.prompt, "submitted_at": at} for job in plan.jobs
    ]
    endings = {
        job.prompt: Ending("unknown") if job.kill else Ending("succeeded", request_id=job.prompt)
        for job in plan.jobs
    }
    # Even if each kill came at a moment that may explain it, so many do not.
    for seconds, explained in ((1, True), (30, False)):
        when = NOON + timedelta(seconds=seconds)
        happened = Happened(killed={job.prompt: when for job in plan.jobs if job.kill})
        rows = account_of(plan, endings, jobs, happened)
        kept = {promise.what: promise.kept for promise in verdict(plan, rows, happened)}
        assert bool(broken(rows)) is not explained
        assert kept["outcomes that nothing explains"] is explained
        assert kept["results made, but called unknown"] is False


def test_results_of_jobs_whose_fate_is_unknown_are_counted_and_allowed() -> None:
    plan = planned("reply lost")
    promises = verdict(plan, rows_of(plan, Ending("unknown"), made("1")), Happened())
    (given_up,) = (promise for promise in promises if promise.what == "results made, but called unknown")
    assert (given_up.figure, given_up.kept) == ("1: 1 by their fate, 0 by accidents (at most 2)", True)


def test_a_job_that_its_clock_cancelled_may_be_called_cancelled_only_after_a_kill() -> None:
    plan, ending = planned("stuck in the queue", kill=Kill("generate", 1)), Ending("cancelled")
    removed = made("1", cancelled=True)
    assert "nothing explains" in problems_of(plan, ending, removed)
    assert not problems_of(plan, ending, removed, happened=killed_at(60))


@pytest.mark.parametrize(("seconds", "explained"), [(-9, False), (1, True), (9, False)])
def test_the_emulators_absence_explains_unknown_only_while_the_task_ran(
    seconds: int, explained: bool
) -> None:
    ending = Ending("unknown", submitting=(NOON, NOON + timedelta(seconds=5)))
    gone = NOON + timedelta(seconds=seconds)
    happened = Happened(absences=((gone, gone + timedelta(seconds=2)),))
    rows = rows_of(planned(), ending, happened=happened)
    assert bool(broken(rows)) is not explained


def test_a_task_that_has_not_ended_breaks_the_sum() -> None:
    plan = planned()
    rows = rows_of(plan, Ending("unfinished (deferred)"), made("1", state="running"))
    (the_sum,) = (p for p in verdict(plan, rows, Happened()) if p.what == "asked = sum of outcomes")
    assert (the_sum.figure, the_sum.kept) == ("1 = 0", False)
    assert broken(rows)


def test_accidents_that_did_not_happen_are_no_success() -> None:
    plan = replace(plan_of(40, 1), jobs=planned().jobs)
    rows = rows_of(plan, Ending("succeeded", request_id="1"), made("1"))
    assert [p.figure for p in verdict(plan, rows, Happened()) if not p.kept] == [
        "emulator 0 of 1, triggerer 0 of 1, tasks 0 of 0"
    ]


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(540)
def test_no_job_is_paid_twice_or_lost_in_a_short_chaos(figures: Figures) -> None:
    outcome = run(24, seed=7, limit=400, console=Console(width=150))
    figures("short-chaos", outcome.figures)
    assert outcome.kept
