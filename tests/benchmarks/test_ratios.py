from __future__ import annotations

from benchmarks.measuring import Figures, ratios


def test_the_batch_is_judged_by_ways_that_have_succeeded_with_as_many_jobs() -> None:
    batch = Figures(
        "ours_batch",
        jobs=300,
        state="success",
        wall=33.0,
        wall_of_tasks=27.5,
        slowest_job=22.0,
        cpu=10.0,
        task_starts=3,
    )
    found = [
        batch,
        Figures("seed_loop", jobs=300, state="success", cpu=230.0),
        Figures("http_provider", jobs=300, state="did not end", cpu=560.0),
        Figures("bare_batch", jobs=100, state="success", cpu=9.0),
    ]
    assert ratios(found) == {
        "task starts of the batch": 3.0,
        "wall of the batch / slowest job": 1.5,
        "wall of the batch's task / slowest job": 1.25,
        "CPU of the seed's loop / of the batch": 23.0,
    }
    batch.state = "failed"
    assert ratios(found) == {}
