from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pendulum
import pytest
from airflow.dag_processing.dagbag import DagBag
from airflow.sdk import Asset, ObjectStoragePath
from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_uniapi_fal.landing.manifest import Manifest, write_manifest
from airflow_provider_uniapi_fal.operators.fal import FalSubmitOperator
from airflow_provider_uniapi_fal.sensors.fal import FalQueueSensor
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator

EXAMPLES = Path(__file__).parents[2] / "dags_examples"
FILES = sorted(EXAMPLES.glob("*.py"))

#: Every example and its tasks: an example that is added or changed is looked at here.
TASKS = {
    "kling_image_to_video": {"generate", "land"},
    "kling_images": {"generate", "land"},
    "kling_text_to_video": {"generate", "land"},
    "kling_try_on": {"submit", "wait", "land"},
    "luma_video": {"generate", "extend", "land", "land_longer"},
    "nightly_batch": {"media"},
    "nightly_media": {
        "read_prompts",
        "tonight",
        "media.submit",
        "media.wait",
        "media.land",
        "account",
    },
    "morning": {"select", "contact_sheet", "approve", "publish"},
    "one_picture": {"submit", "wait", "land"},
    "one_task": {"generate", "land"},
    "openai_pictures": {"generate"},
}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_example_imports_clean_by_itself(file: Path, recwarn: pytest.WarningsRecorder) -> None:
    spec = importlib.util.spec_from_file_location(f"example_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert [str(warning.message) for warning in recwarn if str(EXAMPLES) in warning.filename] == []


@pytest.fixture(scope="module")
def bag() -> DagBag:
    return DagBag(dag_folder=str(EXAMPLES))


def test_airflow_finds_every_example_and_no_error_in_them(bag: DagBag) -> None:
    assert bag.import_errors == {}
    assert {name: set(dag.task_dict) for name, dag in bag.dags.items()} == TASKS


def test_a_result_leads_from_task_to_task(bag: DagBag) -> None:
    assert bag.dags["luma_video"].get_task("generate").downstream_task_ids == {"extend", "land"}
    assert bag.dags["luma_video"].get_task("extend").downstream_task_ids == {"land_longer"}
    assert bag.dags["kling_try_on"].get_task("submit").downstream_task_ids == {"wait"}


def test_a_night_is_a_mapped_group_with_retries_and_an_account_at_its_end(bag: DagBag) -> None:
    night = bag.dags["nightly_media"]
    for step, kind in (
        ("submit", FalSubmitOperator),
        ("wait", FalQueueSensor),
        ("land", FalToObjectStorageOperator),
    ):
        task = night.get_task(f"media.{step}")
        assert task.operator_class is kind
        assert task.retries == 2
        assert task.get_closest_mapped_task_group() is not None
    assert night.get_task("media.submit").downstream_task_ids == {"media.wait"}
    assert night.get_task("media.wait").downstream_task_ids == {"media.land"}
    account = night.get_task("account")
    assert account.trigger_rule == "all_done"
    assert account.upstream_task_ids == {"media.land", "read_prompts", "tonight"}


def function(bag: DagBag, task_id: str) -> Any:
    return cast("Any", bag.dags["nightly_media"].get_task(task_id)).python_callable


def write_lines(path: Path, *rows: Any) -> dict[str, str]:
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    return {"prompts": path.as_uri()}


def row(key: str, **arguments: Any) -> dict[str, Any]:
    return {"key": key, "model": "flux/dev", "arguments": {"prompt": f"about {key}", **arguments}}


def test_prompts_are_read_in_order_and_inputs_beside_the_file_are_found(bag: DagBag, tmp_path: Path) -> None:
    given = [
        row("a", image_url="start.jpg", end_image_url="https://example.com/end.jpg"),
        row("b", image_url="s3://bucket/start.jpg", mask_url=None, note="a.jpg"),
        row("夜", image_url="data:image/png;base64,AAAA"),
    ]
    read = function(bag, "read_prompts")(write_lines(tmp_path / "prompts.jsonl", *given))
    assert [each["key"] for each in read] == ["a", "b", "夜"]
    assert read[0]["arguments"]["image_url"] == (tmp_path / "start.jpg").as_uri()
    assert read[0]["arguments"]["end_image_url"] == "https://example.com/end.jpg"
    assert read[1:] == given[1:]


def test_a_key_used_twice_stops_the_night_before_anything_is_paid(bag: DagBag, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="key of its own"):
        function(bag, "read_prompts")(write_lines(tmp_path / "prompts.jsonl", row("a"), row("a")))


def test_a_night_has_a_folder_of_its_own(bag: DagBag) -> None:
    class Run:
        run_after = pendulum.datetime(2026, 11, 22, 2, tz="UTC")

    assert (
        function(bag, "tonight")({"destination": "s3://media/nights"}, Run())
        == "s3://media/nights/2026-11-22"
    )


@pytest.mark.parametrize("extras", [[], [{"from_rest_api": True}]])
def test_a_morning_without_a_night_says_so_and_is_not_tried_again(bag: DagBag, extras: list[Any]) -> None:
    select = cast("Any", bag.dags["morning"].get_task("select")).python_callable
    events = [SimpleNamespace(timestamp=index, extra=extra) for index, extra in enumerate(extras)]
    with pytest.raises(AirflowFailException, match="No event of the asset media_night brought a manifest"):
        select({Asset("media_night"): events} if events else {})


def test_a_morning_takes_the_last_of_the_nights_that_came_together(bag: DagBag, tmp_path: Path) -> None:
    select = cast("Any", bag.dags["morning"].get_task("select")).python_callable
    for name in ("late", "early"):
        write_manifest(Manifest(()), ObjectStoragePath(f"{tmp_path.as_uri()}/{name}/manifest.jsonl"))
    events = [
        SimpleNamespace(timestamp=2, extra={"manifest_path": f"{tmp_path.as_uri()}/late/manifest.jsonl"}),
        SimpleNamespace(timestamp=1, extra={"manifest_path": f"{tmp_path.as_uri()}/early/manifest.jsonl"}),
        SimpleNamespace(timestamp=3, extra={"from_rest_api": True}),
    ]
    assert select({Asset("media_night"): events}) == f"{tmp_path.as_uri()}/late/selected.jsonl"


class Pulled:
    """A task instance that pulls from a night's XComs, and knows None for those that are not there."""

    def __init__(self, xcoms: dict[tuple[str, str, int], Any]) -> None:
        self._xcoms = xcoms

    def xcom_pull(self, task_id: str, *, key: str, map_indexes: list[int]) -> list[Any]:
        return [self._xcoms.get((task_id, key, index)) for index in map_indexes]


def failure(outcome: str) -> dict[str, Any]:
    return {"outcome": outcome, "message": f"It ended {outcome}."}


RESULT = {"seconds_queued": 1.5, "seconds_running": 2.5}
FILE = {"path": "file:///a.png", "flagged": False}

#: What the tasks of one prompt left behind, and the outcome in the account.
NIGHT: list[tuple[dict[tuple[str, str], Any], str]] = [
    (
        {
            ("submit", "request_id"): "r0",
            ("wait", "return_value"): RESULT,
            ("land", "return_value"): [FILE],
        },
        "succeeded",
    ),
    (
        {
            ("submit", "request_id"): "r1",
            ("wait", "return_value"): RESULT,
            ("land", "return_value"): [FILE, {**FILE, "flagged": True}],
        },
        "flagged",
    ),
    ({("submit", "failure"): failure("unknown")}, "unknown"),
    ({("submit", "request_id"): "r3", ("wait", "failure"): failure("refused")}, "refused"),
    ({("submit", "request_id"): "r4", ("wait", "failure"): failure("timed_out")}, "timed_out"),
    (
        {
            ("submit", "request_id"): "r5",
            ("wait", "return_value"): RESULT,
            ("land", "failure"): failure("failed"),
        },
        "failed",
    ),
    ({("submit", "request_id"): "r6"}, "failed"),
    ({}, "missing"),
]


def test_the_account_names_one_outcome_for_each_prompt_and_counts_them_all(
    bag: DagBag, tmp_path: Path
) -> None:
    prompts = [row(f"key-{index}") for index in range(len(NIGHT))]
    xcoms = {
        (f"media.{step}", key, index): value
        for index, (left, _) in enumerate(NIGHT)
        for (step, key), value in left.items()
    }
    counts = function(bag, "account")(prompts, tmp_path.as_uri(), Pulled(xcoms))
    written = json.loads((tmp_path / "account.json").read_text())
    outcomes = [outcome for _, outcome in NIGHT]
    assert [each["outcome"] for each in written["rows"]] == outcomes
    assert [each["key"] for each in written["rows"]] == [each["key"] for each in prompts]
    assert written["counts"] == counts
    assert counts == {"asked": 8, **{outcome: outcomes.count(outcome) for outcome in outcomes}}
    assert sum(counts.values()) == 2 * counts["asked"]
    good, _, unknown, *_ = written["rows"]
    assert good["files"] == [FILE]
    assert (good["request_id"], good["error"], good["seconds_queued"], good["seconds_running"]) == (
        "r0",
        None,
        1.5,
        2.5,
    )
    assert (unknown["error"], unknown["files"], unknown["seconds_queued"]) == ("It ended unknown.", [], None)
