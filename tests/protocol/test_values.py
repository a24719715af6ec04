"""Failures, handles and results, and their way through JSON."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.job import (
    JobHandle,
    JobResult,
    MediaFile,
    without_data_uris,
)
from tests.protocol.values import HANDLE, handle

PIXEL = "data:image/png;base64," + "QUJD" * 50

short = st.text(max_size=20)
numbers = st.floats(0, 1e12)
segments = st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True)
paths = st.lists(segments, min_size=1, max_size=5).map(lambda parts: "/" + "/".join(parts))
handles = st.builds(
    JobHandle,
    dialect=st.just("fal"),
    model=short,
    request_id=st.from_regex(r"[A-Za-z0-9_-]{1,40}", fullmatch=True),
    status_path=paths,
    response_path=paths,
    cancel_path=st.none() | paths,
    fal_conn_id=short,
    submitted_at=numbers,
)
answers = st.recursive(
    st.none() | st.booleans() | st.integers() | short,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(short, inner, max_size=3),
    max_leaves=10,
)
files = st.builds(
    MediaFile,
    where=short,
    url=st.sampled_from(["https://v3.fal.media/a.png", "http://x/y"]),
    content_type=st.none() | short,
    file_size=st.none() | st.integers(0),
    flagged=st.booleans(),
)
results = st.builds(
    JobResult,
    handle=handles,
    data=answers.filter(lambda value: "data:" not in json.dumps(value)),
    media=st.lists(files, max_size=3).map(tuple),
    seed=st.none() | st.integers(),
    billable_units=st.none() | short,
    seconds_queued=st.none() | numbers,
    seconds_running=st.none() | numbers,
)
failures = st.builds(
    Failure,
    kind=st.sampled_from(FailureKind),
    what=short,
    retry_does=short,
    advice=short,
    billed=st.sampled_from(["no", "maybe", "yes"]),
    may_run=st.booleans(),
    transient=st.booleans(),
    error_type=st.none() | short,
    http_status=st.none() | st.integers(100, 599),
    retry_after=st.none() | numbers,
    request_id=st.none() | short,
)


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value, allow_nan=False))


@given(handles)
def test_a_handle_comes_back_from_json_as_it_was(given_handle: JobHandle) -> None:
    assert JobHandle.from_json(through_json(given_handle.to_json())) == given_handle


@given(results)
def test_a_result_comes_back_from_json_as_it_was(given_result: JobResult) -> None:
    assert JobResult.from_json(through_json(given_result.to_json())) == given_result


@given(failures)
def test_a_failure_comes_back_from_json_as_it_was(given_failure: Failure) -> None:
    assert Failure.from_json(through_json(given_failure.to_json())) == given_failure


def test_fields_of_a_later_version_are_passed_over() -> None:
    file = MediaFile("image", "https://v3.fal.media/a.png")
    result = JobResult(HANDLE, data={}, media=(file,))
    written = result.to_json() | {"new": 1}
    written["handle"]["new"] = 1
    written["media"][0]["new"] = 1
    assert JobResult.from_json(written) == result
    found = Failure(FailureKind.TIMEOUT, what="w", retry_does="r")
    assert Failure.from_json(found.to_json() | {"new": 1}) == found


@pytest.mark.parametrize("data", [None, "r-1", 5, [], [HANDLE.to_json()]])
def test_what_is_no_handle_is_refused(data: Any) -> None:
    with pytest.raises(ValueError, match="a handle is a mapping"):
        JobHandle.from_json(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((name, None) for name in ("dialect", "model", "request_id", "status_path", "submitted_at")),
        ("request_id", 5),
        ("request_id", "../r-1"),
        ("submitted_at", "yesterday"),
        ("submitted_at", True),
        ("status_path", "@evil.example/status"),
        ("status_path", "/flux/../../admin"),
        ("response_path", "https://queue.fal.run/fal-ai/flux"),
        ("cancel_path", ".evil.example"),
        ("cancel_path", 5),
    ],
)
def test_a_wrong_field_of_a_handle_is_named(field: str, value: Any) -> None:
    with pytest.raises(ValueError, match=field):
        JobHandle.from_json(HANDLE.to_json() | {field: value})


@pytest.mark.parametrize("data", [None, [], {}, {"media": None}, {"media": [5]}, {"media": [{"url": "x"}]}])
def test_what_is_no_result_is_refused_with_a_value_error(data: Any) -> None:
    if isinstance(data, dict):
        data = {"handle": HANDLE.to_json(), **data}
    with pytest.raises(ValueError, match="result"):
        JobResult.from_json(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [("seed", "7"), ("seed", True), ("billable_units", 5), ("seconds_running", math.nan), ("media.url", 5)],
)
def test_a_wrong_field_of_a_result_is_named(field: str, value: Any) -> None:
    data = JobResult(HANDLE, {}, (MediaFile("images[0]", "https://v3.fal.media/a.png"),)).to_json()
    if field.startswith("media."):
        data["media"][0]["url"] = value
    else:
        data[field] = value
    with pytest.raises(ValueError, match=f"{field.removeprefix('media.')} cannot be"):
        JobResult.from_json(data)


def test_the_bytes_of_data_uris_never_enter_the_json_form() -> None:
    result = JobResult(
        HANDLE,
        data={"images": [{"url": PIXEL}], "video": "https://v3.fal.media/v.mp4", "note": "data for you"},
        media=(MediaFile("images[0]", PIXEL), MediaFile("video", "https://v3.fal.media/v.mp4")),
    )
    written = through_json(result.to_json())
    assert "QUJD" not in json.dumps(written)
    assert written["data"]["note"] == "data for you"
    assert written["data"]["video"] == "https://v3.fal.media/v.mp4"
    assert "image/png" in written["data"]["images"][0]["url"]
    assert str(len(PIXEL)) in written["data"]["images"][0]["url"]
    back = JobResult.from_json(written)
    assert [file.inline for file in back.media] == [True, False]
    assert [file.url for file in back.media] == [None, "https://v3.fal.media/v.mp4"]


@given(answers)
def test_a_value_without_data_uris_is_kept_as_it_is(value: Any) -> None:
    if "data:" not in json.dumps(value):
        assert without_data_uris(value) == value


def test_a_result_is_flagged_if_one_file_is() -> None:
    clean = MediaFile("images[0]", "https://x/a")
    assert not JobResult(HANDLE, {}, (clean,)).flagged
    assert JobResult(HANDLE, {}, (clean, replace(clean, flagged=True))).flagged


@given(failures)
def test_a_message_names_the_job_the_money_and_the_next_try(found: Failure) -> None:
    message = str(found)
    assert found.what in message
    assert "billed" in message
    assert f"A retry {found.retry_does}" in message
    assert ("may still be running" in message) == found.may_run
    if found.request_id:
        assert message.startswith(f"Request {found.request_id}: ")


@pytest.mark.parametrize(
    ("kind", "outcome"),
    [
        (FailureKind.CONTENT_REFUSED, "refused"),
        (FailureKind.QUEUE_TIMEOUT, "timed_out"),
        (FailureKind.TIMEOUT, "timed_out"),
        (FailureKind.JOB_CANCELLED, "cancelled"),
        (FailureKind.SUBMIT_OUTCOME_UNKNOWN, "unknown"),
        (FailureKind.JOB_FAILED, "failed"),
        (FailureKind.INPUT, "failed"),
    ],
)
def test_each_kind_has_one_outcome(kind: FailureKind, outcome: str) -> None:
    assert Failure(kind, what="w", retry_does="r").outcome == outcome


def test_about_adds_the_job_but_never_replaces_it() -> None:
    found = Failure(FailureKind.TIMEOUT, what="w", retry_does="r")
    assert found.about("r-1").request_id == "r-1"
    assert found.about("r-1").about("r-2").request_id == "r-1"


def test_a_handle_without_cancel_path_is_one() -> None:
    written = handle(cancel_path=None).to_json()
    del written["cancel_path"]
    assert JobHandle.from_json(written) == handle(cancel_path=None)
