"""Replies as fal documents them, as UniAPI documents them, and as gateways bend them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.protocol.dialects.base import (
    CancelOutcome,
    LookAgain,
    Submitted,
)
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult, JobState, JobStatus, LogLine
from airflow_provider_uniapi_fal.protocol.messages import HttpReply
from tests.protocol.values import BASE, DIALECT, HANDLE, NOW, account, failure, handle, reply

UNIAPI_SUBMIT: dict[str, Any] = {
    "status": "IN_QUEUE",
    "request_id": "r-1",
    "response_url": "https://queue.fal.run/fal-ai/flux/requests/r-1",
    "status_url": "https://queue.fal.run/fal-ai/flux/requests/r-1/status",
    "logs": None,
    "metrics": {},
    "queue_position": 0,
}
PICTURE = {"url": "https://v3.fal.media/a.png", "width": 8, "height": 6, "content_type": "image/png"}
SECRET = "a very private prompt"


def submitted(body: Any, status: int = 200, base_url: str = BASE, **headers: str) -> Submitted:
    found = read_submit(reply(body, status, **headers), base_url)
    assert isinstance(found, Submitted), str(found)
    return found


def read_submit(answer: HttpReply, base_url: str = BASE) -> object:
    return DIALECT.read_submit(
        answer, model="flux/dev", fal_conn_id="fal_default", account=account(base_url), now=NOW
    )


def status(body: Any, code: int = 200, **headers: str) -> JobStatus:
    found = DIALECT.read_status(HANDLE, reply(body, code, **headers), NOW)
    assert isinstance(found, JobStatus), str(found)
    return found


def result(body: Any, code: int = 200, **headers: str) -> JobResult:
    found = read_result(body, code, **headers)
    assert isinstance(found, JobResult), str(found)
    return found


def read_result(body: Any, code: int = 200, **headers: str) -> object:
    return DIALECT.read_result(HANDLE, reply(body, code, **headers), NOW)


def again(found: object) -> LookAgain:
    assert isinstance(found, LookAgain), str(found)
    return found


# --- submit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [200, 201, 202])
def test_uniapis_documented_reply_gives_a_handle_at_our_own_origin(code: int) -> None:
    found = submitted(UNIAPI_SUBMIT, code)
    assert found.handle == HANDLE
    assert found.status == JobStatus(JobState.PENDING, "IN_QUEUE", queue_position=0)


@pytest.mark.parametrize(
    ("urls", "base_url", "status_path", "response_path", "cancel_path"),
    [
        pytest.param(
            {
                "status_url": "https://gw.example/gw/fal-ai/flux/requests/r-1/status",
                "response_url": "https://gw.example/gw/fal-ai/flux/requests/r-1",
                "cancel_url": "https://gw.example/gw/fal-ai/flux/requests/r-1/cancel",
            },
            "https://gw.example/gw",
            "/flux/requests/r-1/status",
            "/flux/requests/r-1",
            "/flux/requests/r-1/cancel",
            id="rewritten, behind a prefix",
        ),
        pytest.param(
            {
                "status_url": "https://queue.fal.run/fal-ai/flux/dev/requests/r-1/status",
                "response_url": "https://queue.fal.run/fal-ai/flux/dev/requests/r-1/response",
            },
            BASE,
            "/flux/dev/requests/r-1/status",
            "/flux/dev/requests/r-1/response",
            "/flux/dev/requests/r-1/cancel",
            id="whole id and /response",
        ),
        pytest.param(
            {
                "status_url": "https://queue.fal.run/bytedance/seedream/requests/r-1/status",
                "response_url": "https://queue.fal.run/bytedance/seedream/requests/r-1",
            },
            BASE,
            "/bytedance/seedream/requests/r-1/status",
            "/bytedance/seedream/requests/r-1",
            "/bytedance/seedream/requests/r-1/cancel",
            id="foreign owner",
        ),
        pytest.param(
            {
                "status_url": "https://queue.fal.run/fal-ai/flux/requests/inner-7/status",
                "gateway_request_id": "inner-7",
                "cancel_url": None,
            },
            BASE,
            "/flux/requests/inner-7/status",
            "/flux/requests/inner-7",
            "/flux/requests/inner-7/cancel",
            id="another id in the path",
        ),
        pytest.param({}, BASE, *("/flux/requests/r-1" + e for e in ("/status", "", "/cancel")), id="id only"),
        pytest.param(
            {"status_url": None, "response_url": 5, "cancel_url": ["x"]},
            BASE,
            *("/flux/requests/r-1" + end for end in ("/status", "", "/cancel")),
            id="URLs that are none",
        ),
        pytest.param(
            {
                "status_url": "https://queue.fal.run/fal-ai/../admin/requests/r-1/status",
                "response_url": "https://queue.fal.run/fal-ai/flux/requests/r%2f1",
                "cancel_url": "https://queue.fal.run/fal-ai/flux/requests/r-1/status",
            },
            BASE,
            *("/flux/requests/r-1" + end for end in ("/status", "", "/cancel")),
            id="paths that are not safe or lead elsewhere",
        ),
    ],
)
def test_the_servers_paths_are_kept_where_they_are_safe_and_built_where_not(
    urls: dict[str, Any], base_url: str, status_path: str, response_path: str, cancel_path: str
) -> None:
    found = submitted({"status": "IN_QUEUE", "request_id": "r-1", **urls}, base_url=base_url).handle
    assert found.request_id == "r-1"
    assert (found.status_path, found.response_path, found.cancel_path) == (
        status_path,
        response_path,
        cancel_path,
    )


def test_the_id_is_taken_from_the_address_where_the_field_is_missing() -> None:
    body = {key: value for key, value in UNIAPI_SUBMIT.items() if key != "request_id"}
    assert submitted(body).handle == HANDLE


def test_a_job_that_runs_already_and_has_no_position_is_accepted() -> None:
    found = submitted({"status": "IN_PROGRESS", "request_id": "r-1"})
    assert found.status.state is JobState.RUNNING
    assert found.status.queue_position is None


@pytest.mark.parametrize("word", [None, "", "WARMING_UP", 7])
def test_a_submit_with_an_unknown_word_but_an_id_is_accepted(word: Any) -> None:
    assert submitted({"status": word, "request_id": "r-1"}).handle == HANDLE


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>ok</html>",
        b"[]",
        b"null",
        b'"r-1"',
        b"{}",
        b'{"status": "IN_QUEUE"}',
        b'{"request_id": "../../admin"}',
        b'{"request_id": "r-1/status"}',
        b'{"request_id": 17}',
        b'{"request_id": null, "status_url": "https://queue.fal.run/fal-ai/flux/requests/..%2f/status"}',
        b'{"code": "success", "message": "", "data": null}',
        b'{"request_id": "r-1", "sta',
    ],
)
def test_a_2xx_without_a_usable_id_is_an_unknown_outcome(body: bytes) -> None:
    found = failure(read_submit(reply(body)))
    assert (found.kind, found.billed, found.may_run) == (FailureKind.SUBMIT_OUTCOME_UNKNOWN, "maybe", True)


def test_an_oversized_reply_to_a_submit_is_an_unknown_outcome() -> None:
    found = failure(read_submit(HttpReply(200, {}, b"", oversized=True)))
    assert found.kind is FailureKind.SUBMIT_OUTCOME_UNKNOWN


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"status": "FAILURE", "message": "no worker"}, "no worker"),
        ({"status": "FAILED", "request_id": "r-1"}, "failure"),
        ({"error": {"message": "bad things", "type": "upstream"}}, "upstream: bad things"),
        ({"error": "bad things"}, "bad things"),
    ],
)
def test_a_failure_under_200_is_a_failed_submit_that_is_not_repeated(body: Any, says: str) -> None:
    found = failure(read_submit(reply(body)))
    assert (found.kind, found.billed, found.transient) == (FailureKind.JOB_FAILED, "maybe", False)
    assert says in found.what


@pytest.mark.parametrize(
    ("code", "body", "kind"),
    [
        (400, {"error": {"message": "no", "code": "bad"}}, FailureKind.INPUT),
        (401, {"detail": "invalid key credentials"}, FailureKind.AUTH),
        (402, {"message": "pay"}, FailureKind.BALANCE),
        (403, {"detail": "User is locked. Reason: Exhausted balance."}, FailureKind.BALANCE),
        (404, {"detail": "Path /x not found"}, FailureKind.INPUT),
        (405, b"", FailureKind.INPUT),
        (413, b"<html>too large</html>", FailureKind.INPUT),
        (422, {"detail": [{"loc": ["body"], "msg": "m", "type": "missing"}]}, FailureKind.INPUT),
        (422, {"detail": [{"msg": "m", "type": "content_policy_violation"}]}, FailureKind.CONTENT_REFUSED),
        (429, {"detail": "slow down"}, FailureKind.RATE_LIMITED),
        (307, b"", FailureKind.PROTOCOL),
        (503, {"error": {"message": "当前分组下没有可用渠道"}}, FailureKind.INPUT),
        (500, {"message": "当前分组 default 下对于模型 flux 没有可用渠道"}, FailureKind.INPUT),
    ],
)
def test_a_refused_submit_says_that_nothing_was_accepted(code: int, body: Any, kind: FailureKind) -> None:
    found = failure(read_submit(reply(body, code)))
    assert found.kind is kind
    assert found.http_status == code
    assert not found.may_run
    assert "Nothing was accepted" in found.what
    assert found.billed == ("maybe" if code == 422 else "no")


@pytest.mark.parametrize("code", [408, 409, 499, 500, 502, 503, 504, 520, 524])
@pytest.mark.parametrize("body", [b"<html>bad gateway</html>", b"", b'{"detail": "x"}'])
def test_every_other_answer_to_a_submit_is_an_unknown_outcome(code: int, body: bytes) -> None:
    found = failure(read_submit(reply(body, code)))
    assert (found.kind, found.may_run, found.http_status) == (FailureKind.SUBMIT_OUTCOME_UNKNOWN, True, code)


def test_a_429_hands_on_how_long_to_wait() -> None:
    assert failure(read_submit(reply({}, 429, retry_after="600"))).retry_after == 600.0


# --- status -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "state"),
    [
        ("IN_QUEUE", JobState.PENDING),
        ("in_queue", JobState.PENDING),
        (" QUEUED ", JobState.PENDING),
        ("NOT_START", JobState.PENDING),
        ("SUBMITTED", JobState.PENDING),
        ("IN_PROGRESS", JobState.RUNNING),
        ("Processing", JobState.RUNNING),
        ("COMPLETED", JobState.SUCCEEDED),
        ("SUCCESS", JobState.SUCCEEDED),
        ("FAILURE", JobState.FAILED),
        ("FAILED", JobState.FAILED),
        ("ERROR", JobState.FAILED),
        ("CANCELLED", JobState.CANCELLED),
        ("CANCELED", JobState.CANCELLED),
        ("NOT_FOUND", JobState.UNKNOWN),
        ("WARMING_UP", JobState.UNKNOWN),
    ],
)
@pytest.mark.parametrize("code", [200, 202])
def test_each_word_has_its_state_under_200_and_202(word: str, state: JobState, code: int) -> None:
    assert status({"status": word}, code).state is state


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ({"queue_position": 3}, JobStatus(JobState.PENDING, "IN_QUEUE", queue_position=3)),
        ({"queue_position": None, "logs": None, "metrics": None}, JobStatus(JobState.PENDING, "IN_QUEUE")),
        ({"queue_position": "3", "logs": {}, "metrics": []}, JobStatus(JobState.PENDING, "IN_QUEUE")),
        ({"queue_position": -1}, JobStatus(JobState.PENDING, "IN_QUEUE")),
        ({"queue_position": True}, JobStatus(JobState.PENDING, "IN_QUEUE")),
        ({"metrics": {"inference_time": None}}, JobStatus(JobState.PENDING, "IN_QUEUE")),
        ({"metrics": {"inference_time": 10**400}}, JobStatus(JobState.PENDING, "IN_QUEUE")),
        ({"metrics": {"inference_time": 2}}, JobStatus(JobState.PENDING, "IN_QUEUE", inference_time=2.0)),
        (
            {
                "logs": [
                    "plain",
                    {"message": "m", "level": "INFO", "timestamp": "t"},
                    {"no": 1},
                    {"message": 5},
                    None,
                ]
            },
            JobStatus(JobState.PENDING, "IN_QUEUE", logs=(LogLine("plain"), LogLine("m", "INFO", "t"))),
        ),
    ],
)
def test_optional_fields_may_be_missing_null_or_odd(extra: dict[str, Any], expected: JobStatus) -> None:
    assert status({"status": "IN_QUEUE", **extra}) == expected


@pytest.mark.parametrize(
    ("fields", "state", "text", "kind"),
    [
        ({"error": "boom"}, JobState.FAILED, "boom", None),
        ({"error_type": "runner_disconnected"}, JobState.FAILED, None, "runner_disconnected"),
        ({"error": {"message": "m", "type": "t"}}, JobState.FAILED, "m", "t"),
        ({"error": "x", "error_type": "client_cancelled"}, JobState.CANCELLED, "x", "client_cancelled"),
        ({"error": None, "error_type": None}, JobState.SUCCEEDED, None, None),
    ],
)
def test_completed_with_an_error_is_not_a_success(
    fields: dict[str, Any], state: JobState, text: str | None, kind: str | None
) -> None:
    found = status({"status": "COMPLETED", **fields})
    assert (found.state, found.error, found.error_type) == (state, text, kind)


@pytest.mark.parametrize(
    ("code", "body", "bounded", "not_found"),
    [
        (200, b"", False, False),
        (200, b"<html>502</html>", False, False),
        (200, b"[]", False, False),
        (200, {"detail": "hm"}, True, False),
        (200, {"status": None}, True, False),
        (500, b"", False, False),
        (502, b"<html>Bad Gateway</html>", False, False),
        (503, {"detail": "x"}, False, False),
        (429, {"detail": "x"}, False, False),
        (408, b"", False, False),
        (307, b"", True, False),
        (400, {"detail": "x"}, True, False),
        (404, {"status": "NOT_FOUND"}, True, True),
        # Without JSON it is a proxy, a firewall or a router that speaks, whatever code it takes.
        (401, b"<html>Sign in</html>", False, False),
        (402, b"", False, False),
        (403, b"<html>Just a moment...</html>", False, False),
        (404, b"404 page not found", False, True),
        (400, b"<html>Bad Request</html>", False, False),
    ],
)
def test_all_else_means_look_again(code: int, body: Any, bounded: bool, not_found: bool) -> None:
    found = again(DIALECT.read_status(HANDLE, reply(body, code), NOW))
    assert (found.bounded, found.not_found) == (bounded, not_found)


def test_a_status_that_asks_for_patience_gets_it() -> None:
    assert again(DIALECT.read_status(HANDLE, reply({}, 429, retry_after="7"), NOW)).retry_after == 7.0


def test_a_status_too_long_to_read_is_told_apart() -> None:
    assert again(DIALECT.read_status(HANDLE, HttpReply(200, {}, b"", oversized=True), NOW)).oversized


@pytest.mark.parametrize(
    ("code", "kind"), [(401, FailureKind.AUTH), (402, FailureKind.BALANCE), (403, FailureKind.BALANCE)]
)
def test_an_account_error_on_a_read_leaves_the_job_alone(code: int, kind: FailureKind) -> None:
    answer = reply({"detail": "User is locked."}, code)
    on_status = failure(DIALECT.read_status(HANDLE, answer, NOW))
    on_result = failure(DIALECT.read_result(HANDLE, answer, NOW))
    assert (on_status.kind, on_status.may_run) == (kind, True)
    assert (on_result.kind, on_result.may_run) == (kind, False)
    assert on_status.retry_does == "is not made; a clear looks at the same job again."


@pytest.mark.parametrize("code", [401, 402, 403, 404])
def test_a_page_instead_of_a_result_says_nothing_of_the_job(code: int) -> None:
    found = again(DIALECT.read_result(HANDLE, reply(b"<html>no</html>", code), NOW))
    assert (found.bounded, found.not_found) == (False, code == 404)
    assert found.key_refused is (code == 401)


# --- result -------------------------------------------------------------------------------------------------


def test_a_result_is_the_models_own_answer_with_its_media_and_its_bill() -> None:
    body = {"images": [PICTURE], "seed": 7, "prompt": "p"}
    found = result(body, x_fal_billable_units="1.5")
    assert (found.data, found.seed, found.billable_units, found.handle) == (body, 7, "1.5", HANDLE)
    (file,) = found.media
    assert (file.where, file.url, file.width, file.height) == ("images[0]", PICTURE["url"], 8, 6)


@pytest.mark.parametrize(
    ("data", "places"),
    [
        ({"image": PICTURE}, ["image"]),
        ({"video": PICTURE}, ["video"]),
        ({"video": "https://x/v.mp4"}, ["video"]),
        ({"audio_url": "https://x/a.mp3"}, ["audio_url"]),
        ({"images": ["https://x/a.png", "https://x/b.png"]}, ["images[0]", "images[1]"]),
        ({"images": [PICTURE, PICTURE], "video": PICTURE}, ["images[0]", "images[1]", "video"]),
        ({"output": {"frames": [{"file": PICTURE}]}}, ["output.frames[0].file"]),
        ({"images": [{"url": "data:image/png;base64,QQ=="}]}, ["images[0]"]),
        ({"mask": {"url": None}, "note": "https://x", "image": {"url": "ftp://x"}}, []),
        ([PICTURE], ["[0]"]),
        ({"text": "an answer without media"}, []),
        ("just text", []),
    ],
)
def test_media_are_found_wherever_a_model_puts_them(data: Any, places: list[str]) -> None:
    assert [file.where for file in result(data).media] == places


def test_flags_belong_to_the_images_of_the_same_place() -> None:
    found = result({"images": [PICTURE, PICTURE, PICTURE], "has_nsfw_concepts": [False, True]})
    assert [file.flagged for file in found.media] == [False, True, False]
    assert found.flagged
    assert not result({"images": [PICTURE], "has_nsfw_concepts": None}).flagged


@pytest.mark.parametrize(
    "body",
    [
        {"status": "FAILURE", "error": "x"},
        {"status": "FAILED"},
        {"status": "CANCELLED"},
        {"error": "x"},
        {"error": {"message": "m", "type": "t"}},
        {"error": {"message": "m"}, "images": []},
        {"detail": "x"},
        {
            "detail": [
                {"loc": ["body"], "msg": "m", "type": "missing", "url": "https://docs.fal.ai/errors#missing"}
            ]
        },
        {"detail": "x", "error_type": "runner_disconnected"},
        {"detail": {"msg": "m", "url": "https://docs.fal.ai/errors"}, "request_id": "r-1"},
        {"error": {"message": "m", "url": "https://gw.example/help"}},
        {"code": "fail_to_fetch_task", "message": "m", "data": None},
        {"code": 1200, "message": "m", "request_id": "r-1"},
        {"images": []},
        {"images": None, "seed": 1},
        {"video": {}},
    ],
)
def test_an_error_under_200_is_never_a_success(body: Any) -> None:
    found = failure(read_result(body))
    assert found.request_id == "r-1"
    assert found.http_status in (200, None)


@pytest.mark.parametrize(
    ("code", "body"),
    [
        (202, {"status": "IN_PROGRESS"}),
        (202, {}),
        (200, {"status": "IN_QUEUE", "queue_position": 1}),
        (400, {"detail": "Request is still in progress"}),
        (404, {"status": "NOT_FOUND"}),
        (405, b""),
        (410, b""),
        (500, {"detail": "oops"}),
        (302, b""),
    ],
)
def test_a_result_that_is_not_there_yet_is_asked_for_again_a_bounded_number_of_times(
    code: int, body: Any
) -> None:
    assert again(read_result(body, code)).bounded


@pytest.mark.parametrize(
    ("code", "body"), [(502, b"<html>x</html>"), (524, b""), (200, b""), (200, b"<html>")]
)
def test_a_proxys_page_instead_of_the_result_is_asked_again_without_bound(code: int, body: bytes) -> None:
    assert not again(read_result(body, code)).bounded


def test_a_result_too_long_to_read_is_told_apart() -> None:
    assert again(DIALECT.read_result(HANDLE, HttpReply(200, {}, b"", oversized=True), NOW)).oversized


def model_error(kind: str, **more: Any) -> dict[str, Any]:
    return {"detail": [{"loc": ["body", "prompt"], "msg": "m", "type": kind, "input": SECRET, **more}]}


@pytest.mark.parametrize(
    ("code", "body", "kind", "billed", "transient"),
    [
        (422, model_error("content_policy_violation"), FailureKind.CONTENT_REFUSED, "maybe", False),
        (422, model_error("image_too_small"), FailureKind.INPUT, "maybe", False),
        (422, model_error("a_new_type"), FailureKind.INPUT, "maybe", False),
        (422, model_error("no_media_generated"), FailureKind.JOB_FAILED, "maybe", False),
        (422, {"detail": "plain"}, FailureKind.INPUT, "maybe", False),
        (422, b"<html>", FailureKind.INPUT, "maybe", False),
        (500, model_error("internal_server_error"), FailureKind.JOB_FAILED, "no", True),
        (504, model_error("generation_timeout"), FailureKind.JOB_FAILED, "no", True),
        (400, model_error("downstream_service_error"), FailureKind.INPUT, "maybe", False),
        (500, model_error("downstream_service_unavailable"), FailureKind.JOB_FAILED, "no", True),
        (503, {"detail": "d", "error_type": "runner_disconnected"}, FailureKind.JOB_FAILED, "no", True),
        (504, {"detail": "d", "error_type": "startup_timeout"}, FailureKind.JOB_FAILED, "no", True),
        (499, {"detail": "d", "error_type": "client_cancelled"}, FailureKind.JOB_CANCELLED, "maybe", False),
        (499, b"", FailureKind.JOB_CANCELLED, "maybe", False),
        (400, {"detail": "d", "error_type": "bad_request"}, FailureKind.INPUT, "maybe", False),
    ],
)
def test_an_error_in_place_of_the_result_is_sorted_by_its_type(
    code: int, body: Any, kind: FailureKind, billed: str, transient: bool
) -> None:
    found = failure(read_result(body, code))
    assert (found.kind, found.billed, found.transient) == (kind, billed, transient)
    assert not found.may_run
    assert SECRET not in str(found)
    assert SECRET not in json.dumps(found.to_json())


@pytest.mark.parametrize(
    ("units", "billed"),
    [("0", "no"), ("0.0", "no"), ("2", "yes"), ("many", "maybe"), ("nan", "maybe"), ("", "maybe")],
)
def test_the_servers_own_word_on_the_bill_counts(units: str, billed: str) -> None:
    assert failure(read_result(model_error("x"), 422, x_fal_billable_units=units)).billed == billed


def test_a_charged_server_error_is_not_submitted_again() -> None:
    body = model_error("internal_server_error")
    assert not failure(read_result(body, 500, x_fal_billable_units="1")).transient


def test_the_type_in_the_header_counts_where_the_body_has_none() -> None:
    found = failure(read_result({"detail": "d"}, 503, x_fal_error_type="runner_disconnected"))
    assert (found.error_type, found.transient) == ("runner_disconnected", True)


@pytest.mark.parametrize(
    ("detail", "says"),
    [
        ({"detail": "flat"}, "flat"),
        ({"detail": ["one", "two"]}, "one; two"),
        ({"detail": {"msg": "in a mapping", "type": "t"}}, "in a mapping"),
        ({"detail": [{"loc": ["body", "x", 0], "msg": "wrong", "type": "t"}]}, "body.x.0: wrong"),
        ({"error": "text"}, "text"),
        ({"error": {"message": "object", "code": 7}}, "7: object"),
        ({"message": "alone"}, "alone"),
        ({"detail": [None, 5, {"loc": None}]}, "HTTP 400"),
        ({"detail": [{"loc": 5, "msg": "odd place"}]}, "odd place"),
    ],
)
def test_an_error_is_told_in_whichever_shape_it_came(detail: Any, says: str) -> None:
    assert says in again(DIALECT.read_status(HANDLE, reply(detail, 400), NOW)).reason


@pytest.mark.parametrize("place", ["submit", "status", "result"])
def test_the_echo_of_an_input_never_enters_a_message(place: str) -> None:
    body = {
        "detail": [
            {"loc": ["body", "prompt"], "msg": "m", "type": "t", "input": SECRET, "ctx": {"given": SECRET}}
        ],
        "input": SECRET,
        "payload": {"prompt": SECRET},
    }
    for code in (200, 400, 404, 409, 422, 500, 502):
        answer = reply(body, code)
        found: object
        if place == "submit":
            found = read_submit(answer)
        elif place == "status":
            found = DIALECT.read_status(HANDLE, answer, NOW)
        else:
            found = DIALECT.read_result(HANDLE, answer, NOW)
        if not isinstance(found, JobResult):
            assert SECRET not in repr(found)


# --- failed and cancelled statuses --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "kind", "transient"),
    [
        ({"status": "COMPLETED", "error": "x", "error_type": "internal_error"}, FailureKind.JOB_FAILED, True),
        ({"status": "COMPLETED", "error": "x"}, FailureKind.JOB_FAILED, False),
        ({"status": "COMPLETED", "error_type": "bad_request"}, FailureKind.INPUT, False),
        ({"status": "COMPLETED", "error_type": "client_cancelled"}, FailureKind.JOB_CANCELLED, False),
        (
            {"status": "COMPLETED", "error_type": "content_policy_violation"},
            FailureKind.CONTENT_REFUSED,
            False,
        ),
        ({"status": "CANCELLED"}, FailureKind.JOB_CANCELLED, False),
        ({"status": "CANCELLED", "error_type": "by_user"}, FailureKind.JOB_CANCELLED, False),
        ({"status": "FAILURE", "error": "x"}, FailureKind.JOB_FAILED, False),
    ],
)
def test_a_status_tells_the_failure_by_itself(body: Any, kind: FailureKind, transient: bool) -> None:
    found = DIALECT.failure_of(HANDLE, status(body))
    assert (found.kind, found.transient, found.request_id) == (kind, transient, "r-1")


# --- cancel -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "body", "outcome"),
    [
        (202, {"status": "CANCELLATION_REQUESTED"}, CancelOutcome.REQUESTED),
        (200, {"status": "CANCELLATION_REQUESTED"}, CancelOutcome.REQUESTED),
        (202, b"", CancelOutcome.REQUESTED),
        (200, {"status": "OK"}, CancelOutcome.REMOVED),
        (200, {"status": "CANCELLED"}, CancelOutcome.REQUESTED),
        (200, {"status": "canceled"}, CancelOutcome.REQUESTED),
        (201, {"status": "OK"}, CancelOutcome.REQUESTED),
        (400, {"status": "ALREADY_COMPLETED"}, CancelOutcome.ALREADY_COMPLETED),
        (200, {"status": "ALREADY_COMPLETED"}, CancelOutcome.ALREADY_COMPLETED),
        (400, {"detail": "Request r-1 is already completed."}, CancelOutcome.ALREADY_COMPLETED),
        (404, {"status": "NOT_FOUND"}, CancelOutcome.NOT_FOUND),
        (404, {"detail": "Not Found"}, CancelOutcome.UNSUPPORTED),
        (404, b"<html>", CancelOutcome.UNSUPPORTED),
        (405, b"", CancelOutcome.UNSUPPORTED),
        (501, b"", CancelOutcome.UNSUPPORTED),
        (200, {"success": True}, CancelOutcome.REQUESTED),
        (200, {"success": False}, CancelOutcome.UNCLEAR),
        (200, b"", CancelOutcome.UNCLEAR),
        (200, {"error": "x"}, CancelOutcome.UNCLEAR),
        (500, {"status": "OK"}, CancelOutcome.UNCLEAR),
        (502, b"<html>", CancelOutcome.UNCLEAR),
        (401, {"detail": "x"}, CancelOutcome.UNCLEAR),
        (307, b"", CancelOutcome.UNCLEAR),
    ],
)
def test_only_a_clear_answer_counts_as_removed(code: int, body: Any, outcome: CancelOutcome) -> None:
    assert DIALECT.read_cancel(HANDLE, reply(body, code)) is outcome


# --- handles from what a user has ---------------------------------------------------------------------------


def test_a_handle_is_built_from_an_id_and_a_model() -> None:
    found = DIALECT.handle_of("r-1", "fal-ai/flux/dev", fal_conn_id="fal_default", now=NOW)
    assert found == HANDLE


@pytest.mark.parametrize(
    ("request_id", "model", "says"),
    [
        (None, "flux/dev", "request_id"),
        ("../r", "flux/dev", "request_id"),
        ("r-1", None, "model"),
        ("r-1", "a/../b", "model"),
    ],
)
def test_no_handle_is_built_from_a_wrong_id_or_model(request_id: Any, model: Any, says: str) -> None:
    found = failure(DIALECT.handle_of(request_id, model, fal_conn_id="c", now=NOW))
    assert found.kind is FailureKind.INPUT
    assert says in str(found)


@pytest.mark.parametrize(
    ("url", "base"),
    [
        ("https://queue.fal.run/fal-ai/flux/requests/r-1/status", "/flux/requests/r-1"),
        ("https://evil.example/fal-ai/flux/dev/requests/r-1/status?logs=1", "/flux/dev/requests/r-1"),
        ("https://api.uniapi.io/fal-ai/bytedance/x/requests/r-1/status", "/bytedance/x/requests/r-1"),
    ],
)
def test_a_handle_is_built_from_the_path_of_a_status_address(url: str, base: str) -> None:
    found = DIALECT.handle_of_url(url, account=account(), fal_conn_id="c", now=NOW)
    assert isinstance(found, JobHandle)
    assert (found.status_path, found.response_path, found.cancel_path, found.request_id) == (
        f"{base}/status",
        base,
        f"{base}/cancel",
        "r-1",
    )


@pytest.mark.parametrize(
    "url",
    [
        "",
        None,
        5,
        "r-1",
        "https://queue.fal.run/fal-ai/flux/requests/r-1",
        "https://queue.fal.run/fal-ai/flux/requests/r-1/cancel",
        "https://queue.fal.run/fal-ai/flux/requests/../status",
        "https://queue.fal.run/fal-ai/flux/requests/r.1/status",
        "https://queue.fal.run/requests/r-1/status",
    ],
)
def test_no_handle_is_built_from_another_address(url: Any) -> None:
    found = failure(DIALECT.handle_of_url(url, account=account(), fal_conn_id="c", now=NOW))
    assert "status_url" in found.what


@pytest.mark.parametrize(
    ("model", "apps"),
    [
        ("flux/dev", ["flux", "flux/dev"]),
        (
            "kling-video/v2.1/standard/i2v",
            ["kling-video", "kling-video/v2.1", "kling-video/v2.1/standard/i2v"],
        ),
        ("bytedance/seedream/v4", ["bytedance", "bytedance/seedream", "bytedance/seedream/v4"]),
        ("comfy/owner/name/x", ["comfy/owner/name", "comfy/owner", "comfy/owner/name/x"]),
    ],
)
def test_the_other_places_of_a_job_come_after_the_servers_own(model: str, apps: list[str]) -> None:
    job = handle(model=model, status_path="/own/requests/r-1/status")
    found = [each.status_path for each in DIALECT.alternatives(job)]
    assert found == ["/own/requests/r-1/status", *(f"/{app}/requests/r-1/status" for app in apps)]


# --- nothing breaks a reading -------------------------------------------------------------------------------

words = st.sampled_from(
    ["status", "error", "error_type", "detail", "message", "request_id", "status_url", "images"]
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12) | words,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            words | st.sampled_from(["loc", "msg", "type", "url", "logs", "metrics"]), inner, max_size=5
        )
    ),
    max_leaves=15,
)


@given(
    json_values | st.dictionaries(words, json_values, max_size=6),
    st.sampled_from([200, 202, 302, 400, 401, 404, 422, 429, 499, 500, 503]),
    st.dictionaries(
        st.sampled_from(["retry-after", "x-fal-error-type", "x-fal-billable-units", "content-type"]),
        st.text(max_size=9),
    ),
)
def test_whatever_is_answered_each_reading_is_a_value(body: Any, code: int, headers: dict[str, str]) -> None:
    answer = HttpReply(code, headers, json.dumps(body).encode())
    assert isinstance(read_submit(answer), (Submitted, Failure))
    seen = DIALECT.read_status(HANDLE, answer, NOW)
    assert isinstance(seen, (JobStatus, LookAgain, Failure))
    if isinstance(seen, JobStatus) and seen.state in (JobState.FAILED, JobState.CANCELLED):
        str(DIALECT.failure_of(HANDLE, seen))
    found = DIALECT.read_result(HANDLE, answer, NOW)
    assert isinstance(found, (JobResult, LookAgain, Failure))
    if isinstance(found, JobResult):
        assert code < 300
        json.dumps(found.to_json(), allow_nan=False)
    assert isinstance(DIALECT.read_cancel(HANDLE, answer), CancelOutcome)
