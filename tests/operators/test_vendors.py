"""Kling's and Luma's jobs through operator, sensor and trigger, against the emulator's own reading of the contract."""

from __future__ import annotations

import time
from datetime import timedelta
from typing import TYPE_CHECKING, Any, cast

import pytest
from airflow.sdk import DAG
from airflow.sdk.exceptions import AirflowSkipException, TaskDeferred

from airflow_provider_uniapi_fal.exceptions import (
    FalAuthError,
    FalBalanceError,
    FalContentRefused,
    FalError,
    FalInputError,
    FalJobFailed,
    FalRateLimited,
    FalSubmitOutcomeUnknown,
    FalTimeout,
)
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.ledger.record import JobRecord, Phase
from airflow_provider_uniapi_fal.ledger.task_state import KEY as LEDGER_KEY
from airflow_provider_uniapi_fal.operators import generating
from airflow_provider_uniapi_fal.operators.kling import KlingImageOperator, KlingImageToVideoOperator
from airflow_provider_uniapi_fal.operators.luma import LumaExtendOperator, LumaGenerateOperator
from airflow_provider_uniapi_fal.protocol import retrying
from airflow_provider_uniapi_fal.protocol.job import JobHandle
from airflow_provider_uniapi_fal.sensors.fal import FalQueueSensor
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator
from tests.fakes import PROMPT, Task, calls, fired, posts, set_connection
from tests.operators.vendors import KINDS, SMALL, Make, maker, picture

if TYPE_CHECKING:
    from pathlib import Path

    from tests.fakes import Start

#: Long enough that the job still runs when a deferrable task defers.
SHORT = {"run_seconds": 0.2, **SMALL}


@pytest.fixture(autouse=True)
def without_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generating, "RACE_SECONDS", 0.0)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def make(kind: str) -> Make:
    return maker(kind)


def run(make: Make, task: Task, **options: Any) -> Any:
    """Run a try; the leg after a deferral has an operator of its own, as it has a process of its own."""
    try:
        return make(**options).execute(task.context)
    except TaskDeferred as deferred:
        deferral = deferred
    event = fired(deferral)
    return make(**options).resume_execution(deferral.method_name, {"event": event}, task.context)


def land(result: Any, folder: Path) -> list[dict[str, Any]]:
    operator = FalToObjectStorageOperator(task_id="land", result=result, destination=folder.as_uri())
    landed: list[dict[str, Any]] = operator.execute(Task().context)
    return landed


@pytest.mark.parametrize(
    "mode", [{"deferrable": False}, {"defer_after": 0.0}], ids=["blocking", "deferrable"]
)
def test_a_job_is_submitted_waited_for_and_landed(
    start: Start, make: Make, kind: str, mode: dict[str, Any], tmp_path: Path
) -> None:
    emulator = start(**SHORT)
    task = Task()
    result = run(make, task, **mode)
    [job] = emulator.account()["jobs"]
    assert job["endpoint"] == KINDS[kind][2]
    assert result["handle"]["request_id"] == task.xcoms["request_id"] == job["request_id"]
    assert task.xcoms["status_url"].endswith(f"/{job['request_id']}")
    files = land(result, tmp_path)
    assert len(files) == len(result["media"]) == (2 if kind == "kling image" else 1)
    media = "video/mp4" if "video" in kind or kind == "luma" else "image/"
    assert all(str(file["content_type"]).startswith(media) for file in files)
    schemes = {
        (each["scheme"], each["key_matched"]) for each in emulator.requests() if each["operation"] != "media"
    }
    assert schemes == {("Bearer", True)}
    assert not any(each["has_authorization"] for each in calls(emulator, "media"))


def test_a_handle_alone_is_enough_for_the_sensor(start: Start, make: Make) -> None:
    emulator = start(**SHORT)
    handle = make(wait=False).execute(Task().context)
    sensor = FalQueueSensor(task_id="wait", handle=handle, poke_interval=0.05, timeout=20, deferrable=False)
    result = sensor.execute(Task().context)
    assert result["handle"]["request_id"] == handle["request_id"]
    assert posts(emulator) == 1


def test_the_address_of_a_status_leads_to_the_job_again(start: Start, make: Make) -> None:
    start(**SMALL)
    task = Task()
    handle = JobHandle.from_json(make(wait=False).execute(task.context))
    again = FalHook().handle_of(status_url=task.xcoms["status_url"], dialect=handle.dialect)
    assert (again.status_path, again.request_id) == (handle.status_path, handle.request_id)
    sensor = FalQueueSensor(
        task_id="wait",
        status_url=task.xcoms["status_url"],
        dialect=handle.dialect,
        poke_interval=0.05,
        deferrable=False,
    )
    assert sensor.execute(Task().context)["handle"]["request_id"] == handle.request_id


# --- the money ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    ["lost-reply", "lost-request", "empty", "html status=504 accepted=true", "server-error status=503"],
)
def test_a_lost_reply_is_never_posted_again(start: Start, make: Make, fault: str) -> None:
    emulator = start(faults=[fault], **SMALL)
    task = Task()
    for _ in range(2):
        with pytest.raises(FalSubmitOutcomeUnknown):
            make().execute(task.context)
        emulator.clear_faults()
        task.next_try()
    assert posts(emulator) == 1


def test_a_try_that_was_killed_after_its_submit_is_taken_up_without_a_post(start: Start, make: Make) -> None:
    emulator = start(**SHORT)
    task = Task()
    first = make(wait=False).execute(task.context)
    # What a SIGKILL leaves: the record of the submit, and no delivery.
    record = JobRecord.from_json(task.store.get(LEDGER_KEY))
    task.store.set(LEDGER_KEY, {**record.to_json(), "phase": Phase.SUBMITTED.value})
    result = run(make, task.next_try(), deferrable=False)
    assert result["handle"] == first
    assert posts(emulator) == 1


def test_an_intent_without_a_handle_is_never_posted_again(start: Start, make: Make) -> None:
    emulator = start(**SMALL)
    task = Task()
    task.store.set(LEDGER_KEY, JobRecord(Phase.INTENT, "asked", task.ti.max_tries, 1.0).to_json())
    with pytest.raises(FalSubmitOutcomeUnknown):
        make().execute(task.next_try().context)
    assert posts(emulator) == 0


@pytest.mark.parametrize("http", ["own", "200"])
@pytest.mark.parametrize(
    ("because", "error", "attempts"),
    [
        ("turned-away because=locked", FalBalanceError, 1),
        ("turned-away because=top-up", FalBalanceError, 1),
        ("turned-away because=queue-full", FalRateLimited, retrying.MAX_SUBMIT_ATTEMPTS),
        ("rate-limit retry_after=0", FalRateLimited, retrying.MAX_SUBMIT_ATTEMPTS),
        ("turned-away because=admin-lock", FalBalanceError, 1),
        ("turned-away because=bad-key", FalAuthError, 1),
        ("turned-away because=kling-1300", FalContentRefused, 1),
        ("turned-away because=kling-1301", FalContentRefused, 1),
        ("turned-away because=kling-1304", FalAuthError, 1),
        ("turned-away because=kling-1201", FalInputError, 1),
    ],
)
def test_klings_codes_decide_about_the_money_whatever_status_they_come_under(
    start: Start,
    monkeypatch: pytest.MonkeyPatch,
    http: str,
    because: str,
    error: type[FalError],
    attempts: int,
) -> None:
    monkeypatch.setattr(retrying, "backoff", lambda attempt, jitter: 0.0)
    emulator = start(faults=[because], kling_http=http, **SMALL)
    task = Task()
    with pytest.raises(error) as raised:
        maker("kling image")().execute(task.context)
    assert (raised.value.billed, raised.value.may_run) == ("no", False)
    assert posts(emulator) == attempts
    emulator.clear_faults()
    run(maker("kling image"), task.next_try(), deferrable=False)
    assert posts(emulator) == attempts + 1


def test_too_many_parallel_tasks_are_waited_for_and_nothing_is_paid_twice(start: Start) -> None:
    emulator = start(kling_slots=2, run_seconds=0.5, **SMALL)
    one = maker("kling image")(wait=False).execute(Task().context)
    other = maker("kling image")(wait=False, prompt="another").execute(Task().context)
    assert one["request_id"] != other["request_id"]
    assert posts(emulator) > 2
    assert emulator.account()["totals"]["posts_accepted"] == 2


@pytest.mark.parametrize("failure", ["completed-error", "status-failure", "refused"])
def test_a_failed_job_raises_what_the_vendor_says_and_is_not_submitted_again(
    start: Start, make: Make, failure: str
) -> None:
    emulator = start(failure=failure, failure_message="It was too dark.", **SMALL)
    task = Task()
    for _ in range(2):
        with pytest.raises(FalJobFailed, match="too dark") as raised:
            run(make, task.next_try(), deferrable=False)
        assert raised.value.billed == "maybe"
    assert posts(emulator) == 1


def test_a_job_that_brings_no_media_has_failed(start: Start, make: Make) -> None:
    start(failure="no-media", **SMALL)
    with pytest.raises(FalJobFailed, match="no media"):
        run(make, Task(), deferrable=False)


def test_a_time_out_says_that_the_job_runs_on_because_there_is_no_cancelling(
    start: Start, make: Make
) -> None:
    emulator = start(run_seconds=60.0, **SMALL)
    with pytest.raises(FalTimeout, match="passes no cancellations on") as raised:
        run(make, Task(), deferrable=False, timeout=0.3)
    assert (raised.value.may_run, raised.value.billed) == (True, "maybe")
    assert calls(emulator, "cancel") == []


# --- shapes that gateways give ------------------------------------------------------------------------------

VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("kling image", {"kling_submit": "openai-video"}),
    ("kling image", {"kling_submit": "bare"}),
    ("kling text to video", {"kling_task": "code-success"}),
    ("kling image", {"kling_success": "succeeded"}),
    ("kling image", {"kling_success": "completed"}),
    ("kling image", {"kling_watermark_url": "present", "kling_units": "present"}),
    ("kling image", {"kling_units": "null"}),
    *(("luma", {"luma_submit": form}) for form in ("id", "task_id", "wrapped")),
    ("luma", {"luma_task": "wrapped"}),
    ("luma", {"luma_words": "official", "luma_shape": "official"}),
    *(("luma", {"luma_download_url": form}) for form in ("empty", "null", "missing")),
    *(("luma", {"luma_link": form}) for form in ("download_url", "wrapped")),
]


@pytest.mark.parametrize(("kind", "settings"), VARIANTS, ids=lambda each: str(each))
def test_every_shape_that_gateways_give_is_read(
    start: Start, kind: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    emulator = start(**SHORT, **settings)
    result = run(maker(kind), Task(), deferrable=False)
    assert land(result, tmp_path)
    assert posts(emulator) == 1
    if "kling_units" in settings:
        assert result["billable_units"] == ("2" if settings["kling_units"] == "present" else None)


def test_a_gateway_behind_a_prefix_is_found(
    start: Start, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    emulator = start(base_prefix="/gw", **SMALL)
    set_connection(monkeypatch, f"{emulator.url}/gw")
    task = Task()
    result = run(make, task, deferrable=False)
    assert land(result, tmp_path)
    dialect = result["handle"]["dialect"]
    again = FalHook().handle_of(status_url=task.xcoms["status_url"], dialect=dialect)
    assert again.status_path == result["handle"]["status_path"]


@pytest.mark.parametrize(
    "fault", ["html", "server-error status=500", "rate-limit retry_after=0", "truncated", "bom"]
)
def test_trouble_while_waiting_is_waited_out(start: Start, make: Make, fault: str) -> None:
    emulator = start(faults=[f"{fault} on=status times=2"], **SMALL)
    run(make, Task(), deferrable=False)
    assert posts(emulator) == 1


# --- Luma's two ways to a video -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"luma_download_url": "missing"}, {"luma_link_seconds": 0.3}], ids=["watermarked", "expired"]
)
def test_the_download_address_is_asked_for_at_each_landing(
    start: Start, tmp_path: Path, settings: dict[str, Any]
) -> None:
    emulator = start(**SMALL, **settings)
    result = run(maker("luma"), Task(), deferrable=False)
    time.sleep(settings.get("luma_link_seconds", 0.0))
    landed = [land(result, tmp_path / name)[0] for name in ("one", "two")]
    asked = [each for each in emulator.requests() if each["path"].endswith("/download_video_url")]
    assert len(asked) == 2
    fetched = [each["path"] for each in calls(emulator, "media")]
    assert all("clean" in path for path in fetched)
    assert landed[0]["sha256"] == landed[1]["sha256"]


def test_without_a_download_address_the_one_in_the_task_is_landed_and_the_log_says_so(
    start: Start, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    emulator = start(luma_download_url="missing", **SMALL)
    result = run(maker("luma"), Task(), deferrable=False)
    emulator.add_fault("turned-away because=locked on=result")
    assert land(result, tmp_path)
    assert "may have a watermark" in caplog.text


def extend(task: Task, handle: Any, **changes: Any) -> Any:
    def make(**options: Any) -> LumaExtendOperator:
        fields: dict[str, Any] = {"poke_interval": 0.05, "timeout": 20, "user_prompt": PROMPT, **options}
        return LumaExtendOperator(task_id="extend", handle=handle, **fields)

    return run(make, task, deferrable=False, **changes)


def test_a_finished_video_is_extended_by_its_handle_or_its_result(start: Start) -> None:
    emulator = start(**SMALL)
    result = run(maker("luma"), Task(), deferrable=False)
    for source in (result, result["handle"]):
        longer = extend(Task(), source)
        assert longer["handle"]["model"] == f"generations/{result['handle']['request_id']}/extend"
    assert [job["endpoint"] for job in emulator.account()["jobs"]] == ["generations", "extend", "extend"]


def test_what_has_not_succeeded_or_is_none_of_lumas_is_not_extended(start: Start) -> None:
    emulator = start(run_seconds=60, **SMALL)
    running = maker("luma")(wait=False).execute(Task().context)
    with pytest.raises(FalInputError, match="only one that has succeeded"):
        extend(Task(), running)
    other = maker("kling image")(wait=False).execute(Task().context)
    with pytest.raises(FalInputError, match="a job of kling"):
        extend(Task(), other)
    with pytest.raises(FalInputError, match="handle:"):
        extend(Task(), {"no": "handle"})
    assert posts(emulator) == 2


# --- inputs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file_format", ["PNG", "JPEG"])
def test_a_picture_in_storage_is_sent_as_kling_wants_it(
    start: Start, tmp_path: Path, file_format: str
) -> None:
    emulator = start(**SMALL)
    path = tmp_path / "start.any"
    path.write_bytes(picture(file_format=file_format))
    operator = KlingImageToVideoOperator(
        task_id="x", image=path.as_uri(), prompt=PROMPT, deferrable=False, poke_interval=0.05
    )
    assert operator.execute(Task().context)["media"]
    assert posts(emulator) == 1


def test_a_picture_in_storage_is_sent_to_luma_as_a_data_uri(start: Start, tmp_path: Path) -> None:
    start(**SMALL)
    path = tmp_path / "start.png"
    path.write_bytes(picture())
    assert run(maker("luma"), Task(), deferrable=False, image_url=path.as_uri())["media"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (picture(299, 400), "at least 300 pixels"),
        (picture(300, 751), "2.5 to 1"),
        (picture(file_format="WEBP"), "image/webp"),
        (b"the password is swordfish", "no picture"),
    ],
)
def test_a_picture_that_kling_would_refuse_is_never_sent(
    start: Start, tmp_path: Path, content: bytes, says: str
) -> None:
    emulator = start(**SMALL)
    path = tmp_path / "start.png"
    path.write_bytes(content)
    with pytest.raises(FalInputError, match=says):
        maker("kling image to video")(image=path.as_uri()).execute(Task().context)
    assert posts(emulator) == 0


# --- dry run, schemas, names --------------------------------------------------------------------------------


def test_a_dry_run_says_what_it_would_do_without_the_prompt_and_posts_nothing(
    start: Start, make: Make
) -> None:
    emulator = start(**SMALL)
    with pytest.raises(
        AirflowSkipException, match=r"would post to http://127.*, connection fal_default"
    ) as said:
        make(dry_run=True).execute(Task().context)
    assert PROMPT not in str(said.value)
    assert emulator.requests() == []


def test_a_schema_of_ones_own_is_held_before_anything_is_paid(start: Start) -> None:
    emulator = start(**SMALL)
    strict = {"properties": {"n": {"maximum": 1}}, "required": ["aspect_ratio"]}
    with pytest.raises(FalInputError, match=r"aspect_ratio: is needed; arguments\.n: 1 or less is needed"):
        maker("kling image")(arguments_schema=strict).execute(Task().context)
    assert posts(emulator) == 0


def test_unknown_fields_are_sent_with_a_warning(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    start(**SMALL)
    maker("kling image")(arguments={"sound": "on"}, wait=False).execute(Task().context)
    assert "Not known to this version and sent as it is: sound." in capsys.readouterr().out


def test_a_limit_that_the_vendor_may_have_changed_can_be_passed_over(start: Start) -> None:
    start(**SMALL)
    with pytest.raises(FalInputError, match=r"arguments\.resolution: one of '1k', '2k' is needed"):
        maker("kling image")(resolution="4k").execute(Task().context)
    operator = maker("kling image")(resolution="4k", check_limits=False)
    request = FalHook().prepare(operator.model, operator.arguments, dialect="kling", **operator.options())
    assert request.json is not None
    assert request.json["resolution"] == "4k"


def test_a_field_given_twice_is_refused_when_the_dag_is_parsed() -> None:
    with pytest.raises(ValueError, match="given both by name and in arguments: n"):
        KlingImageOperator(task_id="x", prompt="p", n=1, arguments={"n": 2})


def test_fields_are_templates() -> None:
    operator = LumaGenerateOperator(task_id="x", user_prompt="{{ p }}", fal_conn_id="{{ c }}")
    context: Any = {"p": "a fox", "c": "other"}
    operator.render_template_fields(context)
    assert (operator.arguments, operator.fal_conn_id) == ({"user_prompt": "a fox"}, "other")


def test_time_outs_are_checked_when_the_dag_is_parsed(make: Make) -> None:
    with pytest.raises(ValueError, match="queue_timeout"):
        make(queue_timeout=timedelta(hours=2), timeout=60)


def test_prompts_are_mapped_over(start: Start) -> None:
    emulator = start(**SMALL)
    with DAG("night", schedule=None):
        mapped = KlingImageOperator.partial(task_id="x", n=1, wait=False).expand(prompt=["one", "two"])
    for prompt in ("one", "two"):
        operator = mapped.unmap({"prompt": prompt})
        operator.execute(Task().context)
    assert [job["prompt"] for job in emulator.account()["jobs"]] == ["one", "two"]


def test_a_field_that_another_task_returns_makes_it_upstream() -> None:
    with DAG("chain", schedule=None):
        first = KlingImageOperator(task_id="first", prompt="p")
        second = KlingImageToVideoOperator(task_id="second", image=cast("Any", first.output)["media"])
    assert second.upstream_task_ids == {"first"}
