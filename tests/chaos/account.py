"""The account of a run: what became of each job, and which promise was broken. Pure: values in, values out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.chaos.plan import Plan, PlannedJob

OUTCOMES = ("succeeded", "refused", "failed", "timed_out", "cancelled", "unknown")

#: So many seconds after a job was accepted, at most, its handle is in the ledger: the reply has to arrive, and
#: Airflow to take a note, on a machine that runs many tasks.
UNTIL_RECORDED = 1.5


@dataclass(frozen=True)
class Ending:
    """
    How Airflow says that a job ended.

    :param outcome: one of `OUTCOMES`, or what its task still is
    :param message: the error's words
    :param request_id: the job whose result is in XCom
    :param submitting: from when until when the last try of the submitting task ran
    """

    outcome: str
    message: str = ""
    request_id: str | None = None
    submitting: tuple[datetime | None, datetime | None] = (None, None)


@dataclass(frozen=True)
class Happened:
    """What was done to the whole: when which prompt's task was killed, and the emulator's times of absence."""

    killed: Mapping[str, datetime] = field(default_factory=dict)
    absences: tuple[tuple[datetime, datetime], ...] = ()
    triggerers_killed: int = 0

    @property
    def unknown_at_most(self) -> int:
        """
        How many jobs may be made and called unknown by what happened alone, without their fate.

        The moment in which a kill does that is short, so few kills hit it; a gateway that goes away has a few
        replies in its hands.
        """
        return 2 + len(self.killed) // 10 + 2 * len(self.absences)


@dataclass(frozen=True)
class Row:
    """
    One job's line in the account.

    :param posts: how many of its posts were accepted
    :param spared: how many of those cost nothing: failed on fal's side, or removed from the queue
    :param lost: jobs that ended well and whose result did not arrive
    :param given_up: of those of a task that does not know whether it has submitted, and says so
    """

    job: PlannedJob
    ending: Ending
    posts: int
    spared: int
    lost: tuple[str, ...]
    given_up: tuple[str, ...]
    problems: tuple[str, ...]


def account_of(
    plan: Plan, endings: Mapping[str, Ending], at_gateway: Iterable[Mapping[str, Any]], happened: Happened
) -> list[Row]:
    """
    Make the account.

    :param endings: how each job ended, by its prompt
    :param at_gateway: the jobs in the emulator's account
    """
    accepted: dict[str, list[Mapping[str, Any]]] = {}
    for each in at_gateway:
        accepted.setdefault(each["prompt"], []).append(each)
    return [
        _row(
            job,
            endings[job.prompt],
            sorted(accepted.get(job.prompt, ()), key=lambda each: float(each["submitted_at"])),
            happened,
        )
        for job in plan.jobs
    ]


def _row(job: PlannedJob, ending: Ending, accepted: Sequence[Mapping[str, Any]], happened: Happened) -> Row:
    made = [
        each["request_id"]
        for each in accepted[job.end.failed :]
        if each["state"] == "finished" and not each["cancelled"]
    ]
    missing = tuple(each for each in made if each != ending.request_id)
    # Whoever does not know whether he has submitted says so, and cannot fetch.
    lost, given_up = ((), missing) if ending.outcome == "unknown" else (missing, ())
    spared = min(len(accepted), job.end.unbilled) + sum(each["cancelled"] for each in accepted)
    problems = []
    if len(accepted) > job.end.posts:
        problems.append(f"{len(accepted)} posts were accepted")
    if len(accepted) - spared > 1:
        problems.append(f"paid {len(accepted) - spared} times")
    problems += [f"the result of {request_id} was lost" for request_id in lost]
    if ending.outcome == "succeeded" and ending.request_id not in made:
        problems.append(f"{ending.request_id} was delivered, which the gateway did not make for it")
    # Of the jobs that are spent, the task knew.
    spent = job.end.unbilled + job.end.removed
    accepted_at = [_moment(each["submitted_at"]) for each in accepted[spent:]]
    if not _is_explained(job, ending, accepted_at[-1] if accepted_at else None, happened):
        problems.append(f"nothing explains that it is {ending.outcome}")
    return Row(job, ending, len(accepted), spared, lost, given_up, tuple(problems))


def _is_explained(job: PlannedJob, ending: Ending, accepted_at: datetime | None, happened: Happened) -> bool:
    if ending.outcome in job.outcomes:
        return True
    killed_at = happened.killed.get(job.prompt)
    if ending.outcome == "cancelled" and job.end.removed:
        # Killed when its clock had cancelled the job, and before that was written down.
        return killed_at is not None
    if ending.outcome != "unknown":
        return False
    # What comes later than this finds the handle in the ledger, where it must not be lost.
    recorded_at = accepted_at and accepted_at + timedelta(seconds=UNTIL_RECORDED + job.reply_takes)
    start, end = ending.submitting
    away = start is not None and any(
        start <= back and (end is None or gone <= end) and (recorded_at is None or gone <= recorded_at)
        for gone, back in happened.absences
    )
    killed = killed_at is not None and (recorded_at is None or killed_at <= recorded_at)
    return away or killed


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


@dataclass(frozen=True)
class Promise:
    """One line of the verdict."""

    what: str
    figure: str
    kept: bool


def verdict(plan: Plan, rows: Sequence[Row], happened: Happened) -> list[Promise]:
    """Say which promises were kept."""
    outcomes = Counter(row.ending.outcome for row in rows)
    ended = sum(outcomes[outcome] for outcome in OUTCOMES)
    posts = Counter(row.posts for row in rows)
    distribution = ", ".join(f"{jobs} with {count}" for count, jobs in sorted(posts.items()))
    again = sum(row.posts > 1 for row in rows)
    too_many = sum(row.posts > row.job.end.posts for row in rows)
    twice = sum(row.posts - row.spared > 1 for row in rows)
    lost = sum(len(row.lost) for row in rows)
    given_up = sum(len(row.given_up) for row in rows)
    # Of these, the fates of their jobs account for so many.
    by_fate = sum(len(row.given_up) for row in rows if "unknown" in row.job.outcomes)
    by_accident, at_most = given_up - by_fate, happened.unknown_at_most
    delivered = sum(row.ending.outcome == "succeeded" for row in rows)
    odd = sum(any(problem.startswith("nothing explains") for problem in row.problems) for row in rows)
    wrong = sum(any("was delivered" in problem for problem in row.problems) for row in rows)
    planned = Counter(incident.what for incident in plan.incidents)
    done = {"triggerer": happened.triggerers_killed, "emulator": len(happened.absences)}
    accidents = ", ".join(f"{name} {done[name]} of {count}" for name, count in planned.items())
    to_be_killed = sum(job.kill is not None for job in plan.jobs)
    killed = len(happened.killed)
    return [
        Promise("asked = sum of outcomes", f"{len(plan.jobs)} = {ended}", ended == len(plan.jobs)),
        Promise(
            "accepted posts: at most one, another only after an unbilled failure or a removal",
            f"{distribution} ({again} after one that cost nothing)"
            if again and not too_many
            else distribution,
            not too_many,
        ),
        Promise("paid twice", str(twice), not twice),
        Promise("results lost", f"{lost}, {delivered} delivered", not lost),
        Promise(
            "results made, but called unknown",
            f"{given_up}: {by_fate} by their fate, {by_accident} by accidents (at most {at_most})",
            by_accident <= at_most,
        ),
        Promise("results of another job delivered", str(wrong), not wrong),
        Promise("outcomes that nothing explains", str(odd), not odd),
        # A task may be gone before its time to be killed comes.
        Promise(
            "killed as planned",
            f"{accidents}, tasks {killed} of {to_be_killed}",
            Counter(done) == planned and (killed > 0 or not to_be_killed),
        ),
    ]


def broken(rows: Sequence[Row]) -> list[str]:
    """Name each job that a promise was broken to, with all that is known of it."""
    return [
        f"{row.job.prompt} ({row.job.way}[{row.job.index}], {row.job.fate}, noise {list(row.job.noise)}, "
        f"kill {row.job.kill}) {row.ending.outcome}: {'; '.join(row.problems)}. {row.ending.message}"
        for row in rows
        if row.problems
    ]
