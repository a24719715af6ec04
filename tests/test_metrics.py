"""What is counted and timed, and that a metric never ends a task."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
from airflow.sdk._shared.observability.metrics.base_stats_logger import NoStatsLogger
from airflow.sdk.observability import stats

from airflow_provider_uniapi_fal import metrics
from airflow_provider_uniapi_fal.exceptions import FalContentRefused, FalSubmitOutcomeUnknown
from airflow_provider_uniapi_fal.operators.batch import FalBatchOperator
from airflow_provider_uniapi_fal.operators.fal import FalGenerateOperator, FalSubmitOperator
from airflow_provider_uniapi_fal.operators.openai_images import OpenAIImagesOperator
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.job import JobResult
from airflow_provider_uniapi_fal.sensors.fal import FalQueueSensor
from tests.batch.tasks import BatchTask
from tests.fakes import ARGUMENTS, MODEL, Start, Task, handle, start

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["start"]


class Backend(NoStatsLogger):
    """What Airflow would hand to StatsD or OpenTelemetry, as StatsD would write it."""

    lines: ClassVar[list[str]] = []

    @classmethod
    def incr(cls, stat: str, count: float = 1, rate: float = 1, *, tags: Any = None) -> None:
        cls.lines.append(f"{stat}:{count:g}|c")

    @classmethod
    def timing(cls, stat: str, dt: Any, *, tags: Any = None) -> None:
        cls.lines.append(f"{stat}:{dt:g}|ms")


@pytest.fixture
def sent() -> Iterator[Callable[[], list[str]]]:
    """Let Airflow send its metrics here; return what has arrived since the last call."""

    def arrived() -> list[str]:
        lines = Backend.lines[:]
        Backend.lines.clear()
        return lines

    stats.initialize(factory=Backend, export_legacy_names=True)
    try:
        yield arrived
    finally:
        arrived()
        stats.initialize(factory=NoStatsLogger, export_legacy_names=True)


def names(lines: list[str]) -> list[str]:
    return [line.partition(":")[0] for line in lines]


def test_a_submit_and_its_delivery_are_counted_and_timed(start: Start, sent: Callable[[], list[str]]) -> None:
    start()
    task = Task()
    job = FalSubmitOperator(task_id="s", model=MODEL, arguments=ARGUMENTS).execute(task.context)
    assert sent() == ["uniapi_fal.submitted:1|c"]
    FalQueueSensor(task_id="w", handle=job).execute(Task().context)
    assert names(sent()) == [
        "uniapi_fal.outcomes.succeeded",
        "uniapi_fal.seconds_queued",
        "uniapi_fal.seconds_running",
        "uniapi_fal.billable_units",
    ]
    FalSubmitOperator(task_id="s", model=MODEL, arguments=ARGUMENTS).execute(task.next_try().context)
    assert sent() == []


def test_pictures_that_come_with_the_answer_are_counted_once(
    start: Start, sent: Callable[[], list[str]], tmp_path: Path
) -> None:
    start(media_side=64)
    operator = OpenAIImagesOperator(
        task_id="i", model=MODEL, prompt="a fox", destination=tmp_path.as_uri(), name="fox"
    )
    task = Task()
    operator.execute(task.context)
    assert names(sent())[:2] == ["uniapi_fal.submitted", "uniapi_fal.outcomes.succeeded"]
    operator.execute(task.next_try().context)
    assert sent() == []


def test_a_lost_reply_and_a_refusal_are_counted_by_outcome_and_kind(
    start: Start, sent: Callable[[], list[str]]
) -> None:
    emulator = start(failure="refused")
    operator = FalGenerateOperator(task_id="g", model=MODEL, arguments=ARGUMENTS)
    with pytest.raises(FalContentRefused):
        operator.execute(Task().context)
    assert names(sent()) == [
        "uniapi_fal.submitted",
        "uniapi_fal.outcomes.refused",
        "uniapi_fal.failures.content_refused",
    ]
    emulator.add_fault("lost-reply on=submit times=1")
    with pytest.raises(FalSubmitOutcomeUnknown):
        operator.execute(Task().context)
    assert names(sent()) == ["uniapi_fal.outcomes.unknown", "uniapi_fal.failures.submit_outcome_unknown"]


def test_each_row_of_a_batch_is_counted_in_the_try_that_brought_it_to_its_end(
    start: Start, sent: Callable[[], list[str]], tmp_path: Path
) -> None:
    start(faults=["job match=crow failure=refused times=1"])
    rows = [{"model": MODEL, "arguments": {**ARGUMENTS, "prompt": prompt}} for prompt in ("a fox", "a crow")]
    place = f"file://{tmp_path}"
    operator = FalBatchOperator(task_id="b", requests=rows, destination=place, deferrable=False)
    task = BatchTask(place)
    with pytest.raises(FalContentRefused):
        operator.execute(task.context)
    assert Counter(names(sent())) == {
        "uniapi_fal.submitted": 2,
        "uniapi_fal.outcomes.succeeded": 1,
        "uniapi_fal.seconds_queued": 1,
        "uniapi_fal.seconds_running": 1,
        "uniapi_fal.billable_units": 1,
        "uniapi_fal.outcomes.refused": 1,
        "uniapi_fal.failures.content_refused": 1,
        "uniapi_fal.batch_failed": 1,
    }
    with pytest.raises(FalContentRefused):
        operator.execute(task.next_try().context)
    assert names(sent()) == ["uniapi_fal.batch_failed"]


def test_every_failure_has_a_name() -> None:
    for kind in FailureKind:
        failure = Failure(kind, "x", "y")
        assert metrics.FAILURES[kind] in metrics.NAMES
        assert metrics.OUTCOMES[failure.outcome] in metrics.NAMES


@pytest.mark.parametrize(
    ("units", "expected"),
    [
        ("1", ["1|c"]),
        ("0.25", ["0.25|c"]),
        (None, []),
        ("", []),
        ("0", []),
        ("many", []),
        ("inf", []),
        ("-1", []),
    ],
)
def test_billable_units_are_added_up_where_they_are_a_number(
    sent: Callable[[], list[str]], units: str | None, expected: list[str]
) -> None:
    metrics.delivered(replace(JobResult(handle(), {}), billable_units=units, seconds_queued=1.5))
    lines = sent()
    assert [line.partition(":")[2] for line in lines if "billable" in line] == expected
    assert "uniapi_fal.seconds_queued:1500|ms" in lines


def test_a_metric_that_cannot_be_emitted_ends_no_task(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise OSError("no metrics today")

    monkeypatch.setattr(stats, "incr", broken)
    monkeypatch.setattr(stats, "timing", broken)
    metrics.submitted(handle())
    metrics.delivered(JobResult(handle(), {}, seconds_queued=1.0))
    metrics.failed(Failure(FailureKind.TIMEOUT, "x", "y"))
