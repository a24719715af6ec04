from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import pytest
from airflow.sdk.io import attach
from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

from airflow_provider_uniapi_fal.exceptions import FalInputError, FalProtocolError, FalResultExpired
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.transfers.fal_to_object_storage import FalToObjectStorageOperator
from tests.fakes import ARGUMENTS, KEY, MODEL, Task, as_json, calls, handle, set_connection

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_uniapi_fal.protocol.job import JobHandle
    from tests.fakes import Start


def finished(**arguments: Any) -> tuple[JobHandle, dict[str, Any]]:
    """Run one job; return its handle, and its result as the sensor returns it."""
    hook = FalHook()
    job = hook.submit(MODEL, {**ARGUMENTS, **arguments}).handle  # type: ignore[union-attr]
    return job, as_json(hook.result(job).to_json())


def land(task: Task, result: Any, destination: Any, **options: Any) -> Any:
    operator = FalToObjectStorageOperator(task_id="land", result=result, destination=destination, **options)
    return operator.execute(task.context)


def test_each_file_lands_as_it_was_served_under_the_jobs_id(start: Start, tmp_path: Path) -> None:
    start()
    job, result = finished(num_images=2, output_format="png")
    landed = as_json(land(Task(), result, tmp_path.as_uri()))
    assert [file["path"] for file in landed] == [
        (tmp_path / f"{job.request_id}-{index}.png").as_uri() for index in range(2)
    ]
    for index, file in enumerate(landed):
        content = (tmp_path / f"{job.request_id}-{index}.png").read_bytes()
        assert len(content) == file["bytes"] == result["media"][index]["file_size"]
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
        assert (file["width"], file["height"], file["flagged"]) == (64, 48, False)
        assert file["content_type"] == "image/png"


def test_a_retry_lands_the_same_files_again_and_posts_nothing(start: Start, tmp_path: Path) -> None:
    emulator = start()
    task = Task()
    _, result = finished()
    first = land(task, result, tmp_path.as_uri(), name="harbour")
    assert land(task.next_try(), result, tmp_path.as_uri(), name="harbour") == first
    assert [path.name for path in tmp_path.iterdir()] == ["harbour.jpg"]
    assert len(calls(emulator, "submit")) == 1


def test_a_handle_will_do_and_its_result_is_fetched(start: Start, tmp_path: Path) -> None:
    start()
    job, _ = finished()
    [file] = land(Task(), job.to_json(), tmp_path.as_uri(), name="harbour")
    assert file["path"] == (tmp_path / "harbour.jpg").as_uri()


def test_data_uris_are_not_in_the_result_and_are_fetched_for_landing(start: Start, tmp_path: Path) -> None:
    emulator = start()
    _, result = finished(sync_mode=True, num_images=2)
    assert [file["url"] for file in result["media"]] == [None, None]
    landed = land(Task(), result, tmp_path.as_uri(), name="harbour")
    assert len(landed) == 2
    for index, file in enumerate(landed):
        content = (tmp_path / f"harbour-{index}.jpg").read_bytes()
        assert content.startswith(b"\xff\xd8\xff")
        assert hashlib.sha256(content).hexdigest() == file["sha256"]
    assert calls(emulator, "media") == []


def test_the_storage_connection_opens_the_storage(start: Start) -> None:
    start()
    store = MemoryFileSystem(skip_instance_cache=True)
    store.store = {}
    attach("memory", "media_bucket", fs=store)
    _, result = finished()
    [file] = land(Task(), result, "memory://night/2026", name="harbour", storage_conn_id="media_bucket")
    [content] = [each.getvalue() for each in store.store.values()]
    assert hashlib.sha256(content).hexdigest() == file["sha256"]
    assert file["path"].endswith("night/2026/harbour.jpg")


def test_media_are_fetched_without_the_key(start: Start, tmp_path: Path) -> None:
    emulator = start()
    _, result = finished()
    land(Task(), result, tmp_path.as_uri())
    assert [each["has_authorization"] for each in calls(emulator, "media")] == [False]


def test_an_expired_file_is_called_so_and_leaves_its_failure(start: Start, tmp_path: Path) -> None:
    emulator = start()
    _, result = finished()
    emulator.reset()
    task = Task()
    with pytest.raises(FalResultExpired):
        land(task, result, tmp_path.as_uri())
    assert task.xcoms["failure"]["kind"] == "result_expired"
    assert task.xcoms["failure"]["request_id"] == result["handle"]["request_id"]
    assert list(tmp_path.iterdir()) == []


def test_an_expired_handle_is_called_so(start: Start, tmp_path: Path) -> None:
    start(result_seconds=0.0)
    hook = FalHook()
    job = hook.submit(MODEL, ARGUMENTS).handle  # type: ignore[union-attr]
    with pytest.raises(FalResultExpired):
        land(Task(), job.to_json(), tmp_path.as_uri())


def test_a_private_host_must_be_named_in_the_connection(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start()
    _, result = finished()
    set_connection(monkeypatch, emulator.url, media_hosts=[])
    task = Task()
    with pytest.raises(FalProtocolError, match="media_hosts"):
        land(task, result, tmp_path.as_uri())
    assert task.xcoms["failure"]["kind"] == "protocol"
    assert calls(emulator, "media") == []
    land(task, result, tmp_path.as_uri(), fal_conn_id="fal_other")


@pytest.mark.parametrize("name", ["a/b", "..", "../a", "", "a\\b", 7, "a\n"])
def test_a_name_that_leads_elsewhere_is_refused_before_anything_is_fetched(
    start: Start, tmp_path: Path, name: Any
) -> None:
    emulator = start()
    _, result = finished()
    with pytest.raises(FalInputError, match="name: a plain file name"):
        land(Task(), result, tmp_path.as_uri(), name=name)
    assert calls(emulator, "media") == []


@pytest.mark.parametrize("request_id", ["../../etc/cron.d/job", "a/b", ".."])
def test_a_request_id_that_is_a_path_names_no_file(start: Start, tmp_path: Path, request_id: str) -> None:
    start()
    _, result = finished()
    result["handle"]["request_id"] = request_id
    with pytest.raises(FalInputError):
        land(Task(), result, tmp_path.as_uri())
    assert list(tmp_path.rglob("*")) == []


@pytest.mark.parametrize("destination", ["", "  ", None, 7])
def test_a_destination_that_is_none_is_refused(start: Start, destination: Any) -> None:
    start()
    _, result = finished()
    with pytest.raises(FalInputError, match="destination: a folder in storage"):
        land(Task(), result, destination)


@pytest.mark.parametrize(
    "result",
    [
        None,
        "a text",
        [],
        {},
        {"request_id": "r"},
        {"manifest_path": None, "counts": {}},
        {"manifest_path": "no address"},
        {"media": None, "handle": handle().to_json()},
        {"media": [], "handle": None},
        {"media": ["https://example.com/a.png"], "handle": handle().to_json()},
        {"media": [{"url": "https://example.com/a.png"}], "handle": handle().to_json()},
    ],
)
def test_what_is_no_result_is_refused_by_the_name_of_the_field(start: Start, result: Any) -> None:
    start()
    task = Task()
    with pytest.raises(FalInputError, match="result: "):
        land(task, result, "file:///tmp")
    assert task.xcoms["failure"]["kind"] == "input"


def test_templates_are_rendered_at_any_depth() -> None:
    operator = FalToObjectStorageOperator(
        task_id="land",
        result={"media": [{"url": "{{ url }}"}]},
        destination="file:///{{ ds }}",
        name="{{ key }}",
        storage_conn_id="{{ conn }}",
        fal_conn_id="{{ fal }}",
    )
    operator.render_template_fields({"url": "u", "ds": "d", "key": "k", "conn": "c", "fal": "f"})  # type: ignore[typeddict-unknown-key]
    assert operator.result == {"media": [{"url": "u"}]}
    assert (operator.destination, operator.name) == ("file:///d", "k")
    assert (operator.storage_conn_id, operator.fal_conn_id) == ("c", "f")


def test_the_log_names_files_and_sums_but_no_key(
    start: Start, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start()
    _, result = finished()
    [file] = land(Task(), result, tmp_path.as_uri())
    output = capsys.readouterr().out
    assert file["path"] in output
    assert file["sha256"] in output
    assert KEY not in output
