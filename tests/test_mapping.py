"""A mapped task's settings are refused when the DAG is parsed, by what refuses them in a task that is not mapped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk import DAG, BaseOperator, task

from airflow_provider_uniapi_fal.operators.batch import FalBatchOperator
from airflow_provider_uniapi_fal.operators.fal import FalGenerateOperator, FalSubmitOperator
from airflow_provider_uniapi_fal.operators.kling import (
    KlingImageOperator,
    KlingImageToVideoOperator,
    KlingTextToVideoOperator,
    KlingVirtualTryOnOperator,
)
from airflow_provider_uniapi_fal.operators.luma import LumaExtendOperator, LumaGenerateOperator
from airflow_provider_uniapi_fal.operators.openai_images import OpenAIImagesOperator
from airflow_provider_uniapi_fal.sensors.fal import FalQueueSensor
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator

HANDLE = {"schema_version": 1, "request_id": "r"}
ARGUMENTS = {"prompt": "a fox"}
DESTINATION = "file:///night"


@pytest.fixture(autouse=True)
def dag() -> Iterator[DAG]:
    with DAG("mapped", schedule=None) as dag:
        yield dag


@task
def earlier() -> list[Any]:
    return []


#: What each is mapped over, what else it needs, and one setting that it refuses.
ALL: list[tuple[type[BaseOperator], str, Any, dict[str, Any], dict[str, Any]]] = [
    (FalSubmitOperator, "arguments", ARGUMENTS, {"model": "m"}, {"on_clear": "nonsense"}),
    (FalSubmitOperator, "arguments", ARGUMENTS, {"model": "m"}, {"start_timeout": -1}),
    (FalGenerateOperator, "arguments", ARGUMENTS, {"model": "m"}, {"timeout": -5}),
    (FalGenerateOperator, "arguments", ARGUMENTS, {"model": "m"}, {"queue_timeout": 99, "timeout": 9}),
    (FalBatchOperator, "destination", DESTINATION, {"requests": []}, {"on_flagged": "nonsense"}),
    (FalQueueSensor, "handle", HANDLE, {}, {"defer_after": -1}),
    (FalToObjectStorageOperator, "result", HANDLE, {"destination": DESTINATION}, {"parallel": 0}),
    (KlingImageOperator, "prompt", "a fox", {}, {"timeout": 0}),
    (KlingTextToVideoOperator, "prompt", "a fox", {}, {"watch": "stare"}),
    (KlingImageToVideoOperator, "image", "https://x.example/x.png", {}, {"poke_interval": 0}),
    (KlingVirtualTryOnOperator, "cloth_image", "https://x.example/x.png", {"human_image": "x"}, {"timeout": 0}),
    (LumaGenerateOperator, "user_prompt", "a fox", {}, {"on_unknown_submit": "guess"}),
    (LumaExtendOperator, "handle", HANDLE, {"user_prompt": "a fox"}, {"timeout": None}),
    (OpenAIImagesOperator, "prompt", "a fox", {"model": "m", "destination": DESTINATION}, {"max_bytes": 0}),
]  # fmt: skip


@pytest.mark.parametrize(("operator", "over", "value", "needed", "wrong"), ALL)
@pytest.mark.parametrize("known", [True, False])
def test_a_setting_that_makes_no_sense_is_refused_in_the_same_words_as_without_a_map(
    operator: type[BaseOperator],
    over: str,
    value: Any,
    needed: dict[str, Any],
    wrong: dict[str, Any],
    known: bool,
) -> None:
    values = [value, value] if known else earlier()
    with pytest.raises(ValueError, match=next(iter(wrong))) as alone:
        operator(task_id="alone", **needed, **{over: value}, **wrong)
    with pytest.raises(ValueError) as mapped:
        operator.partial(task_id="mapped", **needed, **wrong).expand(**{over: values})
    assert str(mapped.value) == str(alone.value)
    assert operator.partial(task_id="right", **needed).expand(**{over: values}).operator_class is operator


def test_every_value_that_is_known_is_looked_at() -> None:
    common = FalGenerateOperator.partial(task_id="x", model="m")
    with pytest.raises(ValueError, match="timeout must be more than 0 seconds, not 0"):
        common.expand(arguments=[ARGUMENTS], timeout=[9, 0])
    rows: list[Any] = [{"arguments": ARGUMENTS}, {"arguments": ARGUMENTS, "on_clear": "nonsense"}]
    with pytest.raises(ValueError, match="on_clear"):
        FalGenerateOperator.partial(task_id="y", model="m").expand_kwargs(rows)


def test_a_setting_that_is_missing_is_named_when_the_dag_is_parsed() -> None:
    with pytest.raises(TypeError, match="model"):
        FalSubmitOperator.partial(task_id="x").expand(arguments=earlier())
    with pytest.raises(ValueError, match="destination or manifest_path is needed"):
        FalBatchOperator.partial(task_id="y").expand(requests=[[ARGUMENTS]])


def test_the_dags_own_defaults_are_looked_at() -> None:
    with (
        DAG("other", schedule=None, default_args={"timeout": -5}),
        pytest.raises(ValueError, match="timeout"),
    ):
        FalGenerateOperator.partial(task_id="x", model="m").expand(arguments=earlier())


def test_what_only_a_run_brings_is_not_refused_before_it() -> None:
    # A limit for the queue that is longer than the time-out by default, and shorter than the one that will be.
    common = {"model": "m", "queue_timeout": 100_000}
    FalGenerateOperator.partial(task_id="a", **common).expand(arguments=[ARGUMENTS], timeout=earlier())
    FalGenerateOperator.partial(task_id="b", **common).expand(arguments=[ARGUMENTS], timeout=[200_000])
    FalGenerateOperator.partial(task_id="c", **common).expand_kwargs(earlier())
    FalQueueSensor.partial(task_id="d").expand_kwargs(earlier())
    KlingImageOperator.partial(task_id="e", prompt="a fox").expand(arguments=earlier())
    FalSubmitOperator.partial(task_id="f", model="m").expand(arguments=[])


def test_the_tasks_that_are_tried_out_are_no_part_of_the_dag(dag: DAG) -> None:
    made = FalSubmitOperator.partial(task_id="x", model="m").expand(arguments=[ARGUMENTS, ARGUMENTS])
    waits = FalQueueSensor.partial(task_id="y").expand(handle=made.output)
    assert set(dag.task_ids) == {"x", "y"}
    assert (waits.upstream_task_ids, made.downstream_task_ids) == ({"x"}, {"y"})


def test_a_class_of_the_users_own_is_made_with_what_it_takes() -> None:
    class Fox(FalGenerateOperator):
        def __init__(self, *, colour: str, **kwargs: Any) -> None:
            super().__init__(arguments={"prompt": f"a {colour.upper()} fox"}, **kwargs)

    common = Fox.partial(task_id="x", model="m", timeout=-5)
    with pytest.raises(ValueError, match="timeout"):
        common.expand(colour=["red"])
    # It does not say that it takes what only a run brings.
    Fox.partial(task_id="y", model="m", timeout=-5).expand(colour=earlier())


@pytest.mark.filterwarnings("error::UserWarning")
def test_only_one_that_was_never_mapped_is_warned_of() -> None:
    FalSubmitOperator.partial(task_id="x", model="m").expand(arguments=[ARGUMENTS])
