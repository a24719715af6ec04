"""One long request, answered with its pictures: never posted again blindly, and never lost once it is answered."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.exceptions import AirflowSkipException
from PIL import Image

from airflow_provider_uniapi_fal.exceptions import (
    FalAuthError,
    FalBalanceError,
    FalContentRefused,
    FalError,
    FalInputError,
    FalJobFailed,
    FalProtocolError,
    FalRateLimited,
    FalResultExpired,
    FalSubmitOutcomeUnknown,
)
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.landing.storage import put_bytes
from airflow_provider_uniapi_fal.ledger.record import JobRecord, Phase
from airflow_provider_uniapi_fal.ledger.task_state import KEY as LEDGER_KEY
from airflow_provider_uniapi_fal.operators import openai_images
from airflow_provider_uniapi_fal.operators.openai_images import FOLDER, OpenAIImagesOperator
from airflow_provider_uniapi_fal.protocol import retrying
from airflow_provider_uniapi_fal.protocol.dialects.base import Finished
from airflow_provider_uniapi_fal.sensors.fal import FalQueueSensor
from tests.fakes import PROMPT, Task, calls, posts, set_connection

if TYPE_CHECKING:
    from tests.fakes import Start

MODEL = "flux-pro/kontext/text-to-image"
SMALL = {"media_side": 64}
FORMS = ["url", "b64_json"]


def images(task: Task, folder: Path, **changes: Any) -> list[dict[str, Any]]:
    fields: dict[str, Any] = {"model": MODEL, "prompt": PROMPT, "destination": folder.as_uri(), **changes}
    files: list[dict[str, Any]] = OpenAIImagesOperator(task_id="images", **fields).execute(task.context)
    return files


def phase(task: Task) -> Phase:
    return JobRecord.from_json(task.store.get(LEDGER_KEY)).phase


@pytest.mark.parametrize("form", FORMS)
def test_the_pictures_are_landed_in_the_same_task(start: Start, tmp_path: Path, form: str) -> None:
    emulator = start(**SMALL)
    task = Task()
    files = images(task, tmp_path, n=2, response_format=form)
    pictures = sorted(path for path in tmp_path.iterdir() if path.is_file())
    assert [Path(file["path"].removeprefix("file://")) for file in files] == pictures
    assert all(max(Image.open(path).size) == 64 for path in pictures)
    [post] = calls(emulator, "submit")
    assert (post["scheme"], post["key_matched"]) == ("Bearer", True)
    assert phase(task) is Phase.DELIVERED
    assert len(json.dumps(task.xcoms)) < 5000
    assert [file["where"] for file in task.xcoms["result"]["media"]] == ["data[0]", "data[1]"]


def test_lineage_leads_from_the_request_to_the_folder(start: Start, tmp_path: Path) -> None:
    start(**SMALL)
    operator = OpenAIImagesOperator(
        task_id="images", model=MODEL, prompt=PROMPT, n=2, destination=tmp_path.as_uri()
    )
    assert operator.get_openlineage_facets_on_complete(None) is None, "nothing was landed"
    files = operator.execute((task := Task()).context)
    lineage = operator.get_openlineage_facets_on_complete(None)
    [job], [folder] = lineage.inputs, lineage.outputs
    assert job.name == f"openai_images/{MODEL}/requests/{task.xcoms['request_id']}"
    assert (folder.namespace, folder.name) == ("file", str(tmp_path))
    statistics = folder.outputFacets["outputStatistics"]
    assert (statistics.fileCount, statistics.size) == (2, sum(file["bytes"] for file in files))


def test_the_answer_may_take_longer_than_any_other_reply(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(run_seconds=1.5, **SMALL)
    set_connection(monkeypatch, emulator.url, read_timeout=0.5)
    assert images(Task(), tmp_path)
    with pytest.raises(FalSubmitOutcomeUnknown):
        images(Task(), tmp_path, timeout=0.5)
    assert posts(emulator) == 2


def test_an_event_loop_waits_as_long(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    emulator = start(run_seconds=1.2, **SMALL)
    set_connection(monkeypatch, emulator.url, read_timeout=0.4)
    submit = FalHook().asubmit(MODEL, {"prompt": PROMPT}, dialect="openai_images")
    assert isinstance(asyncio.run(submit), Finished)


@pytest.mark.parametrize(
    "fault",
    [
        "lost-reply",
        "empty",
        "truncated",
        "html status=504 accepted=true",
        "server-error status=500 accepted=true",
    ],
)
def test_a_request_that_was_broken_off_is_unknown_and_never_posted_again(
    start: Start, tmp_path: Path, fault: str
) -> None:
    emulator = start(faults=[fault], **SMALL)
    task = Task()
    for _ in range(3):
        with pytest.raises(FalSubmitOutcomeUnknown) as raised:
            images(task, tmp_path)
        assert (raised.value.billed, raised.value.may_run) == ("maybe", True)
        assert phase(task) is Phase.INTENT
        emulator.clear_faults()
        task.next_try()
    assert posts(emulator) == 1


def test_it_is_posted_again_by_the_next_try_if_the_user_says_so(start: Start, tmp_path: Path) -> None:
    emulator = start(faults=["lost-reply times=1"], **SMALL)
    task = Task()
    with pytest.raises(FalProtocolError, match="submits again"):
        images(task, tmp_path, on_unknown_submit="resubmit")
    assert images(task.next_try(), tmp_path, on_unknown_submit="resubmit")
    assert posts(emulator) == 2


def test_heartbeats_before_the_answer_are_passed_over(start: Start, tmp_path: Path) -> None:
    start(faults=["heartbeat"], **SMALL)
    assert images(Task(), tmp_path)


class Killed(BaseException):
    """What a SIGKILL is to the code that it strikes: nothing after it runs."""


def killed_at(monkeypatch: pytest.MonkeyPatch, name: str, *, when: int = 1) -> None:
    """Let the process die when something is called for the so-manieth time."""
    real, count = getattr(openai_images, name), 0

    def die(*args: Any, **kwargs: Any) -> Any:
        nonlocal count
        count += 1
        if count == when:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(openai_images, name, die)


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_that_was_kept_is_landed_by_the_next_try_without_a_post(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    emulator = start(**SMALL)
    task = Task()
    with monkeypatch.context() as patch:
        killed_at(patch, "land")
        with pytest.raises(Killed):
            images(task, tmp_path, response_format=form)
    assert phase(task) is Phase.SUBMITTED
    [file] = images(task.next_try(), tmp_path, response_format=form)
    assert Path(file["path"].removeprefix("file://")).is_file()
    assert posts(emulator) == 1


def test_an_answer_that_was_kept_counts_although_the_ledger_has_only_the_intent(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(**SMALL)
    task = Task()
    with monkeypatch.context() as patch:
        patch.setattr(task.store, "set", store_dies_at(task, Phase.SUBMITTED))
        with pytest.raises(Killed):
            images(task, tmp_path)
    assert phase(task) is Phase.INTENT
    assert images(task.next_try(), tmp_path)
    assert phase(task) is Phase.DELIVERED
    assert posts(emulator) == 1


def test_an_answer_that_was_kept_is_landed_although_its_connection_has_another_name_by_now(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(**SMALL)
    task = Task()
    with monkeypatch.context() as patch:
        killed_at(patch, "land")
        with pytest.raises(Killed):
            images(task, tmp_path)
    monkeypatch.delenv("AIRFLOW_CONN_FAL_DEFAULT")
    set_connection(monkeypatch, emulator.url, conn_id="fal_renamed")
    assert images(task.next_try(), tmp_path, fal_conn_id="fal_renamed")
    assert posts(emulator) == 1


def test_an_answer_is_landed_through_the_connection_that_it_came_by(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(**SMALL)
    task = Task()
    with monkeypatch.context() as patch:
        killed_at(patch, "land")
        with pytest.raises(Killed):
            images(task, tmp_path)
    set_connection(monkeypatch, emulator.url, conn_id="fal_other", media_hosts=[])
    assert images(task.next_try(), tmp_path, fal_conn_id="fal_other")
    assert posts(emulator) == 1


def test_pictures_are_handed_on_although_the_ledger_does_not_take_that_they_were(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(**SMALL)
    task = Task()
    really_set = task.store.set

    def away(key: str, value: Any, **options: Any) -> None:
        if value["phase"] == "delivered":
            raise OSError("the store is away")
        really_set(key, value, **options)

    monkeypatch.setattr(task.store, "set", away)
    first = images(task, tmp_path)
    assert images(task.next_try(), tmp_path) == first
    assert posts(emulator) == 1


def store_dies_at(task: Task, at: Phase) -> Any:
    write = task.store.set

    def set_or_die(key: str, value: Any, **options: Any) -> None:
        if value["phase"] == at.value:
            raise Killed
        write(key, value, **options)

    return set_or_die


def test_what_was_landed_is_told_again_without_a_post_and_without_a_fetch(
    start: Start, tmp_path: Path
) -> None:
    emulator = start(**SMALL)
    task = Task()
    first = images(task, tmp_path)
    assert images(task.next_try(), tmp_path) == first
    assert (posts(emulator), len(calls(emulator, "media"))) == (1, 1)


def test_a_clear_asks_for_new_pictures_or_for_the_same_ones(start: Start, tmp_path: Path) -> None:
    emulator = start(**SMALL)
    task = Task()
    first = images(task, tmp_path)
    assert images(task.next_try(cleared=True), tmp_path, on_clear="reuse") == first
    assert images(task.next_try(cleared=True), tmp_path) != first
    assert posts(emulator) == 2


def test_a_storage_that_cannot_be_written_to_is_found_before_anything_is_paid(
    start: Start, tmp_path: Path
) -> None:
    emulator = start(**SMALL)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FalInputError, match="cannot be written to"):
        images(Task(), tmp_path / "file")
    assert posts(emulator) == 0


def test_a_storage_that_is_away_for_a_moment_is_tried_again_and_nothing_is_paid_before(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(content: bytes, target: Any) -> None:
        raise OSError(5, "slow down")

    emulator = start(**SMALL)
    task = Task()
    with monkeypatch.context() as patch:
        patch.setattr(openai_images, "put_bytes", away)
        with pytest.raises(FalProtocolError, match="cannot be written to") as raised:
            images(task, tmp_path)
    assert (raised.value.billed, raised.value.may_run) == ("no", False)
    assert "A retry submits" in str(raised.value)
    assert posts(emulator) == 0
    assert images(task.next_try(), tmp_path)
    assert posts(emulator) == 1


def test_an_answer_that_cannot_be_kept_says_that_it_was_billed_and_is_not_posted_again(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(**SMALL)
    task = Task()
    real, written = put_bytes, 0

    def full(content: bytes, target: Any) -> None:
        nonlocal written
        written += 1
        if written > 1:
            raise OSError(28, "No space left on device")
        real(content, target)

    monkeypatch.setattr(openai_images, "put_bytes", full)
    for _ in range(2):
        with pytest.raises(FalResultExpired, match="could not be kept") as raised:
            images(task.next_try(), tmp_path)
        assert raised.value.billed == "yes"
    assert posts(emulator) == 1


def test_an_answer_that_has_gone_from_storage_is_an_error_and_no_reason_to_post(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(**SMALL)
    task = Task()
    images(task, tmp_path)
    for path in (tmp_path / FOLDER).iterdir():
        path.unlink()
    with pytest.raises(FalProtocolError, match="cannot be read"):
        images(task.next_try(), tmp_path)
    assert posts(emulator) == 1


@pytest.mark.parametrize(
    ("fault", "error", "attempts"),
    [
        ("turned-away because=locked", FalBalanceError, 1),
        ("turned-away because=not-found", FalInputError, 1),
        ("rate-limit retry_after=0", FalRateLimited, retrying.MAX_SUBMIT_ATTEMPTS),
        ("job failure=refused", FalContentRefused, 1),
        ("job failure=result-422", FalInputError, 1),
        ("job failure=result-error", FalJobFailed, 1),
        ("job failure=status-failure", FalJobFailed, 1),
        ("job failure=no-media", FalJobFailed, 1),
    ],
)
def test_an_answer_that_brings_no_pictures_is_told_by_its_reason(
    start: Start, tmp_path: Path, fault: str, error: type[FalError], attempts: int
) -> None:
    emulator = start(faults=[fault], **SMALL)
    with pytest.raises(error) as raised:
        images(Task(), tmp_path)
    assert not raised.value.may_run
    worked = fault.startswith("job")
    assert raised.value.billed == ("maybe" if worked else "no")
    assert ("Nothing was accepted" in str(raised.value)) is not worked
    assert posts(emulator) == attempts


def test_a_connection_without_a_key_is_found_before_anything_is_written(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start(**SMALL)
    set_connection(monkeypatch, emulator.url, key="")
    task = Task()
    with pytest.raises(FalAuthError, match="no API key"):
        images(task, tmp_path)
    assert (posts(emulator), list(tmp_path.iterdir()), task.store.texts) == (0, [], {})


def test_two_numbers_of_pictures_are_sent_with_a_warning(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start(**SMALL)
    images(Task(), tmp_path, n=1, arguments={"num_images": 2})
    assert "Both n (1) and num_images (2) are given" in capsys.readouterr().out


def test_a_dry_run_posts_nothing_and_writes_nothing(start: Start, tmp_path: Path) -> None:
    emulator = start(**SMALL)
    with pytest.raises(AirflowSkipException, match="would post to"):
        images(Task(), tmp_path, dry_run=True)
    assert (posts(emulator), list(tmp_path.iterdir())) == (0, [])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"destination": " "}, "destination"),
        ({"name": "../up"}, "name"),
        ({"prompt": ""}, r"arguments\.prompt"),
        ({"n": 0}, r"arguments\.n: 1 or more is needed"),
        ({"arguments": {"model": "flux/dev"}}, r"arguments\.model"),
    ],
)
def test_wrong_fields_are_refused_before_anything_is_paid(
    start: Start, tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    emulator = start(**SMALL)
    with pytest.raises(FalInputError, match=says):
        images(Task(), tmp_path, **changes)
    assert posts(emulator) == 0


@pytest.mark.parametrize(
    "changes", [{"timeout": 0}, *({"max_bytes": bytes_} for bytes_ in (0, 1.5, float("nan"), True, "9"))]
)
def test_settings_that_make_no_sense_are_refused_when_the_dag_is_parsed(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(changes))):
        OpenAIImagesOperator(task_id="x", model=MODEL, prompt="p", destination="file:///tmp", **changes)


def test_a_sensor_says_that_there_is_nothing_to_wait_for(start: Start, tmp_path: Path) -> None:
    emulator = start(**SMALL)
    task = Task()
    images(task, tmp_path)
    sensor = FalQueueSensor(task_id="wait", handle=task.xcoms["result"]["handle"], deferrable=False)
    with pytest.raises(FalInputError, match="nothing to wait for"):
        sensor.execute(Task().context)
    assert len(emulator.requests()) == 2
