"""Kling's and Luma's replies in all their shapes, read without a socket."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.protocol.dialects.base import Dialect, LookAgain, Submitted
from airflow_provider_uniapi_fal.protocol.dialects.kling import KlingDialect
from airflow_provider_uniapi_fal.protocol.dialects.luma import LumaDialect
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult, JobState, JobStatus
from airflow_provider_uniapi_fal.protocol.messages import HttpReply, HttpRequest
from tests.protocol.values import NOW, account, failure, reply

KLING, LUMA = KlingDialect(), LumaDialect()
MODELS: dict[str, tuple[Dialect, str]] = {
    "kling": (KLING, "videos/text2video"),
    "luma": (LUMA, "generations"),
}


def handle(name: str) -> JobHandle:
    dialect, model = MODELS[name]
    found = dialect.handle_of("t-1", model, fal_conn_id="c", now=NOW)
    assert isinstance(found, JobHandle)
    return found


def submitted(name: str, body: Any, status: int = 200) -> Submitted | Failure:
    dialect, model = MODELS[name]
    found = dialect.read_submit(reply(body, status), model=model, fal_conn_id="c", account=account(), now=NOW)
    assert isinstance(found, (Submitted, Failure))
    return found


def looked(name: str, body: Any, status: int = 200) -> Any:
    return MODELS[name][0].read_status(handle(name), reply(body, status), NOW)


def fetched(name: str, body: Any, status: int = 200) -> Any:
    return MODELS[name][0].read_result(handle(name), reply(body, status), NOW)


# --- submit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "body",
    [
        {
            "code": 0,
            "message": "SUCCEED",
            "request_id": "other",
            "data": {"task_id": "t-1", "task_status": "submitted"},
        },
        {"id": "t-1", "state": "pending"},
        {"task_id": "t-1"},
        {"code": "success", "message": "", "data": {"id": "t-1"}},
        {"code": "success", "data": "t-1"},
        {"code": 200, "data": {"task_id": "t-1"}},
        {"id": "t-1", "task_id": "t-1", "object": "video", "status": "queued", "progress": 0},
        {"code": 0, "data": {"task_id": 8612345, "task_status": "processing"}},
        {"code": 424242, "message": "odd", "data": {"task_id": "t-1"}},
    ],
)
def test_an_id_is_a_job_whatever_is_said_around_it(name: str, body: dict[str, Any]) -> None:
    found = submitted(name, body)
    assert isinstance(found, Submitted)
    assert found.handle.request_id in ("t-1", "8612345")
    assert found.handle.status_path == found.handle.response_path
    assert found.handle.status_path.endswith(f"/{found.handle.request_id}")
    assert (found.handle.cancel_path, found.handle.dialect) == (None, name)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 200),
        (b"<html>Bad gateway</html>", 502),
        (b"<html>fine</html>", 200),
        ({}, 200),
        ([], 200),
        ({"data": {"task_id": "../up"}}, 200),
        ({"detail": "oops"}, 500),
        ({"detail": "oops"}, 503),
        ({"detail": "oops"}, 504),
    ],
)
def test_a_reply_that_proves_nothing_leaves_the_outcome_unknown(name: str, body: Any, status: int) -> None:
    found = failure(submitted(name, body, status))
    assert (found.kind, found.may_run) == (FailureKind.SUBMIT_OUTCOME_UNKNOWN, True)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "body",
    [
        {"code": "fail_to_submit_task", "message": "no", "data": None},
        {"error": {"message": "no", "code": "x"}},
        {"code": 4242, "message": "no"},
        {"status": "FAILURE", "message": "no"},
    ],
)
def test_an_error_under_200_ends_the_submit_and_is_not_called_unbilled(name: str, body: Any) -> None:
    found = failure(submitted(name, body))
    assert (found.kind, found.billed, found.transient) == (FailureKind.JOB_FAILED, "maybe", False)


CODES = {
    **dict.fromkeys((1000, 1001, 1002, 1003, 1004, 1304), FailureKind.AUTH),
    **dict.fromkeys((1100, 1101, 1102, 1103), FailureKind.BALANCE),
    **dict.fromkeys((1200, 1201, 1202, 1203), FailureKind.INPUT),
    **dict.fromkeys((1300, 1301), FailureKind.CONTENT_REFUSED),
    **dict.fromkeys((1302, 1303), FailureKind.RATE_LIMITED),
    **dict.fromkeys((5000, 5001, 5002), FailureKind.SUBMIT_OUTCOME_UNKNOWN),
}


@pytest.mark.parametrize("status", [200, 429])
@pytest.mark.parametrize("code", CODES)
def test_klings_code_counts_more_than_the_status_it_comes_under(code: int, status: int) -> None:
    for written in (code, str(code)):
        found = failure(submitted("kling", {"code": written, "message": "said", "request_id": "r"}, status))
        assert found.kind is CODES[code]
        unknown = CODES[code] is FailureKind.SUBMIT_OUTCOME_UNKNOWN
        assert (found.billed, found.may_run) == (("maybe", True) if unknown else ("no", False))
        assert found.http_status == status


# --- status and result --------------------------------------------------------------------------------------

WORDS = {
    "kling": {
        "submitted": JobState.PENDING,
        "processing": JobState.RUNNING,
        "succeed": JobState.SUCCEEDED,
        "succeeded": JobState.SUCCEEDED,
        "completed": JobState.SUCCEEDED,
        "failed": JobState.FAILED,
        "paused": JobState.UNKNOWN,
    },
    "luma": {
        "pending": JobState.PENDING,
        "queued": JobState.PENDING,
        "processing": JobState.RUNNING,
        "dreaming": JobState.RUNNING,
        "completed": JobState.SUCCEEDED,
        "failed": JobState.FAILED,
        "paused": JobState.UNKNOWN,
    },
}
SHOUTED = (str.lower, str.upper, str.title)


@pytest.mark.parametrize(
    ("name", "word", "state"), [(name, *each) for name, words in WORDS.items() for each in words.items()]
)
def test_a_word_is_known_in_any_case_and_any_field(name: str, word: str, state: JobState) -> None:
    for shout in SHOUTED:
        said = shout(word)
        for body in (
            {"code": 0, "data": {"task_status": said}},
            {"state": said},
            {"code": "success", "data": {"status": said}},
            {"status": said},
        ):
            found = looked(name, body)
            assert isinstance(found, JobStatus)
            assert (found.state, found.word) == (state, said)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    ("body", "status", "bounded"),
    [
        (b"<html>", 502, False),
        (b"<html>", 200, False),
        *[(b"<html>", code, False) for code in (401, 402, 403, 404)],
        ({"error": {"message": "busy"}}, 503, False),
        ({"detail": "slow down"}, 429, False),
        ({"detail": "odd"}, 400, True),
        ({"detail": "not here"}, 404, True),
        ({}, 200, True),
        ({"data": None}, 200, True),
    ],
)
def test_a_read_that_says_nothing_definite_looks_again(
    name: str, body: Any, status: int, bounded: bool
) -> None:
    for read in (looked, fetched):
        found = read(name, body, status)
        assert isinstance(found, LookAgain)
        assert found.bounded is bounded
        assert found.not_found is (status == 404)


@pytest.mark.parametrize(("code", "kind"), [(1000, FailureKind.AUTH), (1102, FailureKind.BALANCE)])
def test_a_refused_key_or_account_leaves_the_job_alone(code: int, kind: FailureKind) -> None:
    found = failure(looked("kling", {"code": code, "message": "no"}))
    assert (found.kind, found.may_run) == (kind, True)


def test_klings_own_trouble_under_200_is_waited_out_unless_the_task_says_that_it_failed() -> None:
    assert isinstance(looked("kling", {"code": 5000, "message": "busy"}), LookAgain)
    found = looked("kling", {"code": 5000, "data": {"task_status": "failed", "task_status_msg": "dark"}})
    assert (found.state, found.error, found.error_type) == (JobState.FAILED, "dark", "5000")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("status", [200, 400])
def test_a_gateways_word_for_a_failed_task_is_a_failure(name: str, status: int) -> None:
    found = failure(fetched(name, {"code": "task_failed", "message": "too dark", "data": None}, status))
    assert (found.kind, found.billed, found.request_id) == (FailureKind.JOB_FAILED, "maybe", "t-1")
    assert "too dark" in found.what


def test_content_that_kling_refuses_later_is_refused_content() -> None:
    found = failure(fetched("kling", {"code": 1301, "message": "no"}, 400))
    assert found.kind is FailureKind.CONTENT_REFUSED


RESULTS: list[tuple[str, dict[str, Any], dict[str, str]]] = [
    (
        "kling",
        {"code": 0, "data": {"task_status": "succeed", "task_result": {"videos": [{"id": "v", "url": "https://m/v.mp4", "duration": "5"}]}}},
        {"videos[0]": "https://m/v.mp4"},
    ),
    (
        "kling",
        {"data": {"task_status": "succeed", "task_result": {"images": [{"index": i, "url": f"https://m/{i}.png", "watermark_url": "https://m/w.png"} for i in (0, 1)]}}},
        {"images[0]": "https://m/0.png", "images[1]": "https://m/1.png"},
    ),
    ("kling", {"code": "success", "data": {"status": "succeeded", "url": "https://m/v.mp4"}}, {"url": "https://m/v.mp4"}),
    ("kling", {"id": "t-1", "status": "completed", "metadata": {"url": "https://m/v.mp4"}}, {"metadata": "https://m/v.mp4"}),
    (
        "luma",
        {"state": "completed", "video": {"url": "https://m/w.mp4", "width": 8, "download_url": "https://m/d.mp4"}, "thumbnail": {"url": "https://m/t.jpg"}},
        {"video": "https://m/d.mp4"},
    ),
    ("luma", {"state": "completed", "video": {"url": "https://m/w.mp4", "download_url": ""}}, {"video": "https://m/w.mp4"}),
    ("luma", {"state": "completed", "video": {"url": "https://m/w.mp4", "download_url": None}}, {"video": "https://m/w.mp4"}),
    ("luma", {"state": "completed", "assets": {"video": "https://m/o.mp4", "image": None}}, {"video": "https://m/o.mp4"}),
    ("luma", {"code": "success", "data": {"state": "completed", "video": {"url": "https://m/w.mp4"}}}, {"video": "https://m/w.mp4"}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "body", "media"), RESULTS)
def test_the_media_are_found_and_nothing_else(name: str, body: Any, media: dict[str, str]) -> None:
    found = fetched(name, body)
    assert isinstance(found, JobResult)
    assert {file.where: file.url for file in found.media} == media


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "body",
    [
        {"state": "completed"},
        {"state": "completed", "video": None, "task_result": {"videos": []}},
        {"data": {"state": "completed", "video": {"url": None}}},
    ],
)
def test_success_without_media_is_a_failure(name: str, body: Any) -> None:
    found = failure(fetched(name, body))
    assert (found.kind, found.error_type) == (FailureKind.JOB_FAILED, "no_media_generated")


@pytest.mark.parametrize("name", MODELS)
def test_a_result_asked_for_too_early_is_not_ready(name: str) -> None:
    found = fetched(name, {"data": {"state": "processing"}})
    assert isinstance(found, LookAgain)
    assert "not ready" in found.reason


anything_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8) | st.sampled_from(["succeed", "failed", "t-1"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["code", "data", "message", "error", "detail", "task_id", "id", "state", "status", "task_status",
             "task_result", "video", "assets", "url", "videos", "final_unit_deduction", "download_url"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


@given(st.sampled_from(list(MODELS)), anything_json | st.binary(max_size=40), st.integers(100, 599))
def test_no_reply_breaks_the_reading(name: str, body: Any, status: int) -> None:
    submitted(name, body, status)
    seen = looked(name, body, status)
    assert isinstance(seen, (JobStatus, LookAgain, Failure))
    result = fetched(name, body, status)
    assert isinstance(result, (JobResult, LookAgain, Failure))
    if isinstance(result, JobResult):
        landing = LUMA.read_landing(result, reply(body, status), NOW)
        assert isinstance(landing, (JobResult, LookAgain))


@given(st.sampled_from(list(MODELS)), anything_json, st.integers(500, 599))
def test_a_5xx_never_says_that_nothing_was_paid(name: str, body: Any, status: int) -> None:
    if isinstance(body, dict) and "code" in body:
        return  # the vendor's own code counts more, and has a test of its own
    found = submitted(name, body, status)
    assert isinstance(found, Failure)
    assert found.kind in (FailureKind.SUBMIT_OUTCOME_UNKNOWN, FailureKind.INPUT)
    assert found.kind is FailureKind.SUBMIT_OUTCOME_UNKNOWN or "no channel" in found.what


# --- landing, handles ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "address"),
    [
        ({"url": "https://m/d.mp4"}, 200, "https://m/d.mp4"),
        ({"download_url": "https://m/d.mp4"}, 200, "https://m/d.mp4"),
        ({"code": "success", "data": {"url": "https://m/d.mp4"}}, 200, "https://m/d.mp4"),
        ({"code": "success", "data": "https://m/d.mp4"}, 200, "https://m/d.mp4"),
        ({"video": {"download_url": "https://m/d.mp4"}}, 200, "https://m/d.mp4"),
        ({"url": "ftp://m/d.mp4"}, 200, None),
        ({"detail": "not completed"}, 400, None),
        ({"detail": "no such call"}, 404, None),
        (b"", 200, None),
    ],
)
def test_the_download_address_replaces_the_videos(body: Any, status: int, address: str | None) -> None:
    result = fetched("luma", {"state": "completed", "video": {"url": "https://m/w.mp4"}})
    found = LUMA.read_landing(result, reply(body, status), NOW)
    if address is None:
        assert isinstance(found, LookAgain)
        assert found.bounded
    else:
        assert isinstance(found, JobResult)
        assert [file.url for file in found.media] == [address]


def test_only_luma_has_an_address_for_landing() -> None:
    result = fetched("luma", {"state": "completed", "video": {"url": "https://m/w.mp4"}})
    request = LUMA.landing_request(result)
    assert isinstance(request, HttpRequest)
    assert (request.method, request.path) == ("GET", "/generations/t-1/download_video_url")
    assert KLING.landing_request(result) is None


@pytest.mark.parametrize(
    ("name", "url", "path"),
    [
        ("kling", "https://api.uniapi.io/kling/v1/videos/image2video/t-9", "/v1/videos/image2video/t-9"),
        ("kling", "https://evil.example/kling/v1/images/generations/t-9", "/v1/images/generations/t-9"),
        ("luma", "https://api.uniapi.io/luma/generations/t-9", "/generations/t-9"),
        ("kling", "https://api.uniapi.io/kling/v1/videos/t-9", None),
        ("kling", "https://api.uniapi.io/kling/v1/videos/image2video/t%2f9", None),
        ("luma", "https://api.uniapi.io/luma/generations/t-9/extend", None),
        ("luma", "", None),
        ("luma", None, None),
    ],
)
def test_a_handle_is_built_from_the_path_of_an_address_alone(name: str, url: Any, path: str | None) -> None:
    found = MODELS[name][0].handle_of_url(url, account=account(), fal_conn_id="c", now=NOW)
    assert (found.status_path if isinstance(found, JobHandle) else None) == path


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("kling", "flux/dev"),
        ("kling", None),
        ("luma", "generations/../x/extend"),
        ("luma", "generations/a b/extend"),
    ],
)
def test_what_is_no_kind_of_task_is_refused_by_name(name: str, model: Any) -> None:
    dialect = MODELS[name][0]
    assert "model:" in failure(dialect.submit_request(model, {"prompt": "p", "user_prompt": "p"}, {})).what
    assert isinstance(dialect.handle_of("t-1", model, fal_conn_id="c", now=NOW), Failure)


def test_an_oversized_reply_is_left_to_who_may_read_it() -> None:
    for name, (dialect, _) in MODELS.items():
        found = dialect.read_result(handle(name), HttpReply(200, oversized=True), NOW)
        assert isinstance(found, LookAgain)
        assert found.oversized
