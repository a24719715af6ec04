from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.emulator.jobs import LOG, Job, JobQueue, Phase
from airflow_provider_uniapi_fal.emulator.settings import Behaviour


def begin(number: int, now: float = 0.0, *, seed: int = 0, **behaviour: Any) -> Job:
    return Job.begin(
        number=number,
        request_id=f"job-{number}",
        model="flux/dev",
        body=b"{}",
        behaviour=Behaviour(**{"queue_seconds": 1.0, "run_seconds": 10.0, **behaviour}),
        now=now,
        seed=seed,
    )


def queue_of(*jobs: Job, slots: int = 0) -> JobQueue:
    queue = JobQueue(slots)
    for job in jobs:
        queue.submit(job)
    return queue


def test_a_job_is_queued_then_runs_then_is_finished() -> None:
    job = begin(1, now=100.0)
    queue = queue_of(job)
    phases = []
    for now in (100.0, 100.9, 101.0, 110.9, 111.0):
        queue.advance(now)
        phases.append(job.phase)
    assert phases == [Phase.QUEUED, Phase.QUEUED, Phase.RUNNING, Phase.RUNNING, Phase.FINISHED]
    assert (job.started_at, job.finished_at, job.inference_seconds) == (101.0, 111.0, 10.0)


def test_a_bounded_queue_runs_jobs_in_turn_and_positions_fall() -> None:
    jobs = [begin(number) for number in range(1, 5)]
    queue = queue_of(*jobs, slots=1)
    queue.advance(1.0)
    assert [queue.position(job) for job in jobs[1:]] == [0, 1, 2]
    queue.advance(11.0)
    assert [queue.position(job) for job in jobs[2:]] == [0, 1]
    queue.advance(1000.0)
    assert [job.started_at for job in jobs] == [1.0, 11.0, 21.0, 31.0]
    assert all(job.phase is Phase.FINISHED for job in jobs)


def test_a_job_that_is_not_ready_lets_others_pass() -> None:
    slow, quick = begin(1, queue_seconds=50.0), begin(2, queue_seconds=1.0)
    queue = queue_of(slow, quick, slots=1)
    queue.advance(5.0)
    assert quick.phase is Phase.RUNNING
    assert queue.position(slow) == 0


@given(
    slots=st.integers(0, 3),
    durations=st.lists(
        st.tuples(st.floats(0, 5), st.floats(0, 5), st.integers(0, 2)), min_size=1, max_size=12
    ),
    looks=st.lists(st.floats(0, 200), max_size=12),
)
def test_looking_more_often_changes_nothing(
    slots: int, durations: list[tuple[float, float, int]], looks: list[float]
) -> None:
    def run(times: list[float]) -> list[tuple[float | None, float | None]]:
        jobs = [
            begin(number, queue_seconds=wait, run_seconds=run, requeues=requeues)
            for number, (wait, run, requeues) in enumerate(durations, 1)
        ]
        queue = queue_of(*jobs, slots=slots)
        for now in sorted(times):
            queue.advance(now)
        queue.advance(1000.0)
        return [(job.started_at, job.finished_at) for job in jobs]

    assert run(looks) == run([])


@given(durations=st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 5)), min_size=1, max_size=20))
def test_no_more_jobs_run_at_once_than_there_are_slots(durations: list[tuple[float, float]]) -> None:
    jobs = [
        begin(number, queue_seconds=wait, run_seconds=run) for number, (wait, run) in enumerate(durations, 1)
    ]
    queue = queue_of(*jobs, slots=2)
    queue.advance(1000.0)
    spans = [(job.started_at, job.finished_at) for job in jobs]
    for start, _ in spans:
        assert start is not None
        assert sum(a is not None and b is not None and a <= start < b for a, b in spans) <= 2


def test_a_removed_job_never_runs_and_the_next_one_moves_up() -> None:
    jobs = [begin(number) for number in range(1, 4)]
    queue = queue_of(*jobs, slots=1)
    queue.advance(2.0)
    queue.remove(jobs[1])
    assert (jobs[1].phase, jobs[1].cancelled, jobs[1].started_at) == (Phase.FINISHED, True, None)
    assert queue.position(jobs[2]) == 0
    queue.advance(11.0)
    assert jobs[2].started_at == 11.0


def test_stopping_a_running_job_frees_its_slot_once() -> None:
    jobs = [begin(number) for number in range(1, 5)]
    queue = queue_of(*jobs, slots=1)
    queue.advance(2.0)
    queue.remove(jobs[0])
    assert jobs[1].started_at == 2.0
    queue.advance(11.5)  # the end that the stopped job would have had has passed
    assert jobs[2].phase is Phase.QUEUED
    queue.advance(12.0)
    assert jobs[2].started_at == 12.0


def test_a_job_can_fall_back_into_the_queue_half_way() -> None:
    job, other = begin(1, requeues=2), begin(2, queue_seconds=2.0)
    queue = queue_of(job, other, slots=1)
    phases = []
    for now in (1.0, 5.9, 6.0, 15.9, 16.0, 20.9, 21.0, 22.0, 31.9, 32.0):
        queue.advance(now)
        phases.append(job.phase.value)
    # It runs from 1 to 6, waits for the other until 16, runs to 21, waits its second, runs from 22 to the end.
    assert phases == [
        "running", "running", "queued", "queued", "running", "running", "queued", "running", "running", "finished",
    ]  # fmt: skip
    assert (job.started_at, job.inference_seconds) == (22.0, 10.0)
    assert (other.started_at, other.finished_at) == (6.0, 16.0)


def test_a_job_that_fell_back_can_be_removed() -> None:
    job, other = begin(1, requeues=1), begin(2)
    queue = queue_of(job, other, slots=1)
    queue.advance(7.0)
    assert job.phase is Phase.QUEUED
    queue.remove(job)
    queue.advance(100.0)
    assert (job.finished_at, other.finished_at) == (7.0, 16.0)


def test_a_stuck_job_never_starts() -> None:
    job = begin(1, stuck=True)
    queue = queue_of(job, slots=1)
    queue.advance(1e9)
    assert job.phase is Phase.QUEUED
    assert queue.position(job) == 0


def test_log_lines_appear_over_the_run() -> None:
    job = begin(1, queue_seconds=0.0)
    queue = queue_of(job)
    counts = []
    for now in (0.0, 4.0, 9.6):
        queue.advance(now)
        counts.append(len(job.log(now)))
    assert counts == [1, 3, len(LOG)]
    assert [line[0] for line in job.log(9.6)] == sorted(line[0] for line in job.log(9.6))
    assert begin(2).log(0.0) == []


def test_durations_spread_by_at_most_the_asked_share_and_follow_from_the_seed() -> None:
    jobs = [begin(number, spread=0.2) for number in range(1, 200)]
    assert len({job.run_seconds for job in jobs}) > 100
    assert all(8.0 <= job.run_seconds <= 12.0 for job in jobs)
    assert begin(7, spread=0.2).run_seconds == jobs[6].run_seconds
    assert begin(7, spread=0.2, seed=1).run_seconds != jobs[6].run_seconds


@pytest.mark.timeout(20)
def test_tens_of_thousands_of_jobs_are_no_burden() -> None:
    queue = JobQueue(5)
    jobs = [begin(number, now=number / 1000) for number in range(1, 30_001)]
    for job in jobs:
        queue.submit(job)
        queue.position(job)
    queue.advance(1e6)
    assert all(job.phase is Phase.FINISHED for job in jobs)
