from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.emulator.client import KEY, PICTURE, SMALL, VIDEO

if TYPE_CHECKING:
    from tests.emulator.conftest import Start


def test_submit_answers_as_the_gateway_documents(start: Start) -> None:
    _, client = start(queue_seconds=60.0)
    reply = client.post()
    body = reply.json()
    request_id = body["request_id"]
    assert reply.status_code == 200
    assert reply.headers["x-fal-request-id"] == request_id
    assert body == {
        "status": "IN_QUEUE",
        "request_id": request_id,
        "response_url": f"https://queue.fal.run/fal-ai/flux/requests/{request_id}",
        "status_url": f"https://queue.fal.run/fal-ai/flux/requests/{request_id}/status",
        "logs": None,
        "metrics": {},
        "queue_position": 0,
    }


def test_a_job_goes_from_the_queue_over_the_run_to_the_end(start: Start) -> None:
    # The only slot is taken until we let go of it, so that no state passes unseen on a slow machine.
    blocker_rule = "job match=blocker run_seconds=600 obeys_cancel=true"
    _, client = start(run_seconds=0.8, concurrency=1, faults=[blocker_rule])
    blocker, request_id = client.submit("blocker"), client.submit()
    queued = client.status(request_id)
    assert (queued.status_code, queued.json()["status"]) == (202, "IN_QUEUE")
    assert client.result(request_id).status_code == 400
    assert client.result(request_id).json() == {"detail": "Request is still in progress"}
    client.cancel(blocker)
    running = client.status(request_id).json()
    assert running["status"] == "IN_PROGRESS"
    assert "queue_position" not in running
    assert running["metrics"] == {}
    client.wait_for(request_id, "COMPLETED")
    done = client.status(request_id)
    assert done.status_code == 200
    assert done.headers["x-fal-request-id"] == request_id
    assert done.json()["metrics"]["inference_time"] == pytest.approx(0.8, abs=0.01)
    assert "error" not in done.json()
    result = client.result(request_id)
    assert result.status_code == 200
    assert result.headers["x-fal-billable-units"] == "1"


def test_positions_are_counted_and_fall(start: Start) -> None:
    emulator, client = start(run_seconds=600.0, concurrency=1, obeys_cancel=True)
    ids = [client.submit(f"fox {number}") for number in range(4)]
    assert [client.status(each).json().get("queue_position") for each in ids] == [None, 0, 1, 2]
    client.cancel(ids[0])
    assert client.status(ids[1]).json()["status"] == "IN_PROGRESS"
    assert client.status(ids[3]).json()["queue_position"] == 1
    assert emulator.account()["totals"]["jobs_by_state"] == {"finished": 1, "running": 1, "queued": 2}


def test_logs_come_only_when_asked_for(start: Start) -> None:
    _, client = start()
    request_id = client.submit()
    assert client.status(request_id).json()["logs"] is None
    assert client.status(request_id, logs="0").json()["logs"] is None
    for asked in ("1", "true"):
        lines = client.status(request_id, logs=asked).json()["logs"]
        assert len(lines) > 3
        assert lines[0].keys() == {"message", "level", "source", "timestamp"}


@pytest.mark.parametrize("urls", ["gateway", "foreign", "missing"])
def test_urls_can_be_of_every_kind(start: Start, urls: str) -> None:
    _, client = start(
        urls=urls, base_prefix="/gw", cancel_url="present", foreign_origin="http://evil.invalid/"
    )
    body = client.post().json()
    status_url = body.get("status_url")
    end = f"flux/requests/{body['request_id']}"
    assert (
        status_url
        == {
            "gateway": f"{client.url}/gw/fal-ai/{end}/status",
            "foreign": f"http://evil.invalid/fal-ai/{end}/status",
            "missing": None,
        }[urls]
    )
    if urls == "gateway":
        assert client.call("GET", status_url).status_code == 200
        assert client.call("GET", body["response_url"]).status_code == 200
        assert client.call("PUT", body["cancel_url"]).status_code == 400


@pytest.mark.parametrize("shown", ["present", "null", "missing"])
def test_fields_can_be_there_null_or_missing(start: Start, shown: str) -> None:
    fields = ("cancel_url", "queue_position", "logs", "metrics")
    _, client = start(queue_seconds=60.0, **dict.fromkeys(fields, shown))
    request_id = client.submit()
    body = client.status(request_id, logs="1").json()
    if shown == "missing":
        assert not set(fields) & set(body)
    elif shown == "null":
        assert [body[name] for name in fields] == [None] * 4
    else:
        assert body["cancel_url"].endswith(f"/requests/{request_id}/cancel")
        assert (body["queue_position"], body["logs"], body["metrics"]) == (0, [], {})


def test_a_pending_status_can_be_a_200(start: Start) -> None:
    _, client = start(queue_seconds=60.0, pending_code=200)
    assert client.status(client.submit()).status_code == 200


@pytest.mark.parametrize(
    ("model", "apps", "at_fal"),
    [
        ("flux-pro/kontext", ["flux-pro", "fal-ai/flux-pro", "flux-pro/kontext", "fal-ai/flux-pro/kontext"], "fal-ai/flux-pro"),
        ("fal-ai/flux-pro/kontext", ["flux-pro", "fal-ai/flux-pro", "flux-pro/kontext"], "fal-ai/flux-pro"),
        ("bytedance/seedream/v4", ["bytedance/seedream", "bytedance/seedream/v4"], "bytedance/seedream"),
        ("workflows/me/mine/a", ["workflows/me/mine", "workflows/me/mine/a"], "workflows/me/mine"),
    ],
)  # fmt: skip
def test_a_job_is_found_under_its_app_and_under_its_whole_id(
    start: Start, model: str, apps: list[str], at_fal: str
) -> None:
    _, client = start()
    body = client.post(model=model).json()
    request_id = body["request_id"]
    assert body["response_url"] == f"https://queue.fal.run/{at_fal}/requests/{request_id}"
    for app in apps:
        assert client.status(request_id, app=app).status_code == 200, app
        assert client.result(request_id, app=app).status_code == 200, app
        assert client.result(f"{request_id}/response", app=app).status_code == 200, app
        assert client.cancel(request_id, app=app).json() == {"status": "ALREADY_COMPLETED"}, app
    assert client.status(request_id, app="other").status_code == 404


def test_an_unknown_id_is_not_found(start: Start) -> None:
    _, client = start()
    for reply in (client.status("nope"), client.result("nope"), client.cancel("nope")):
        assert (reply.status_code, reply.json()) == (404, {"status": "NOT_FOUND"})


def test_the_base_prefix_stands_before_every_route(start: Start) -> None:
    _, client = start(base_prefix="/gw")
    url = client.make().json()["images"][0]["url"]
    assert url.startswith(f"{client.url}/gw/files/")
    assert client.call("GET", url, key=None).status_code == 200
    assert client.call("POST", f"{client.url}/fal-ai/{PICTURE}", json={}).status_code == 404


@pytest.mark.parametrize("key", [None, "Key other", f"Bearer {KEY}", KEY, f"Key {KEY}x"])
def test_a_wrong_key_is_turned_away(start: Start, key: str | None) -> None:
    emulator, client = start(key=KEY)
    reply = client.call("POST", f"/fal-ai/{PICTURE}", key=key, json={"prompt": "x"})
    assert (reply.status_code, reply.json()) == (401, {"detail": "invalid key credentials"})
    assert emulator.account()["totals"]["posts_accepted"] == 0


def test_any_key_will_do_unless_one_is_set_but_not_none(start: Start) -> None:
    _, client = start()
    for key, code in ((None, 401), ("Key ", 401), ("Key whatever", 200)):
        assert client.call("POST", f"/fal-ai/{PICTURE}", key=key, json={}).status_code == code


def test_the_free_probes_answer_a_bearer_key(start: Start) -> None:
    emulator, client = start(key=KEY)
    assert client.call("GET", "/v1/models", key=f"Bearer {KEY}").json()["data"]
    usage = client.call("GET", "/v1/billing/usage", key=f"Bearer {KEY}", params={"unit": "usd"})
    assert usage.json() == {"success": True, "data": {"balance": -1, "used": 0, "cache_used": 0}}
    assert client.call("GET", "/v1/models", key="Bearer other").status_code == 401
    assert emulator.account()["totals"]["posts_received"] == 0


def test_a_body_that_is_not_json_is_turned_away(start: Start) -> None:
    emulator, client = start()
    for body in (b"", b"prompt=x", b"\xff\xfe{", b"[" * 100_000):
        reply = client.call("POST", f"/fal-ai/{PICTURE}", data=body)
        assert (reply.status_code, reply.json()["error_type"]) == (400, "bad_request")
    assert emulator.account()["totals"] | {"replies_by_status": None, "jobs_by_state": None} == {
        "posts_received": 4,
        "posts_accepted": 0,
        "replies_by_status": None,
        "jobs_by_state": None,
    }


@pytest.mark.parametrize(
    ("failure", "status_word", "code", "result"),
    [
        ("completed-error", "COMPLETED", 500, {"error_type": "internal_error"}),
        ("result-422", "COMPLETED", 422, {}),
        ("result-500", "COMPLETED", 500, {}),
        ("result-failure", "COMPLETED", 200, {"status": "FAILURE"}),
        ("status-failure", "FAILURE", 200, {"status": "FAILURE"}),
        ("result-error", "COMPLETED", 200, {}),
        ("refused", "COMPLETED", 422, {}),
    ],
)
def test_a_job_can_fail_in_every_style(
    start: Start, failure: str, status_word: str, code: int, result: dict[str, Any]
) -> None:
    _, client = start(failure=failure)
    request_id = client.submit("a secret fox")
    status = client.status(request_id)
    reply = client.result(request_id)
    assert (status.status_code, status.json()["status"]) == (200, status_word)
    assert reply.status_code == code
    assert result.items() <= reply.json().items()
    assert ("error_type" in status.json()) == (failure == "completed-error")
    if failure in ("result-422", "refused"):
        [detail] = reply.json()["detail"]
        assert detail["input"] == "a secret fox"
        assert detail["type"] == ("content_policy_violation" if failure == "refused" else "value_error")
    if failure == "result-error":
        assert isinstance(reply.json()["error"], dict)
    if code >= 400:
        assert reply.headers.get("x-fal-billable-units", "0") == "0"
    assert "images" not in reply.json()


def test_a_platform_error_carries_its_type_and_its_code(start: Start) -> None:
    _, client = start(failure="completed-error", error_type="runner_disconnected")
    request_id = client.submit()
    assert client.status(request_id).json()["error_type"] == "runner_disconnected"
    reply = client.result(request_id)
    assert (reply.status_code, reply.headers["X-Fal-Error-Type"]) == (503, "runner_disconnected")


@pytest.mark.parametrize(
    ("model", "arguments", "place", "kind"),
    [
        (PICTURE, {"prompt": None}, ["body", "prompt"], "missing"),
        (PICTURE, {"prompt": 5}, ["body", "prompt"], "string_type"),
        (PICTURE, {"num_images": 9}, ["body", "num_images"], "less_than_equal"),
        (PICTURE, {"num_images": 0}, ["body", "num_images"], "greater_than_equal"),
        (PICTURE, {"num_images": True}, ["body", "num_images"], "int_type"),
        (PICTURE, {"image_size": "huge"}, ["body", "image_size"], "one_of"),
        (PICTURE, {"image_size": {"width": 64}}, ["body", "image_size", "height"], "int_type"),
        (PICTURE, {"aspect_ratio": "1:0"}, ["body", "aspect_ratio"], "one_of"),
        (PICTURE, {"output_format": "gif"}, ["body", "output_format"], "one_of"),
        (PICTURE, {"sync_mode": "yes"}, ["body", "sync_mode"], "bool_type"),
        (PICTURE, {"seed": "x"}, ["body", "seed"], "int_type"),
        (VIDEO, {}, ["body", "image_url"], "missing"),
        (VIDEO, {"image_url": "https://a.invalid/a.png", "duration": 5}, ["body", "duration"], "one_of"),
        (VIDEO, {"image_url": "data:image/png;base64,AAAA"}, ["body", "image_url"], "image_load_error"),
        (VIDEO, {"image_url": "data:text/plain,hello"}, ["body", "image_url"], "image_load_error"),
    ],
)
def test_wrong_input_is_accepted_and_shows_on_the_result(
    start: Start, model: str, arguments: dict[str, Any], place: list[str], kind: str
) -> None:
    _, client = start()
    request_id = client.submit(model=model, **arguments)
    app = model.split("/")[0]
    assert client.status(request_id, app=app).json()["status"] == "COMPLETED"
    reply = client.result(request_id, app=app)
    assert reply.status_code == 422
    assert (reply.json()["detail"][0]["loc"], reply.json()["detail"][0]["type"]) == (place, kind)
    assert reply.headers["x-fal-billable-units"] == "0"


def test_arguments_that_are_no_object_show_on_the_result(start: Start) -> None:
    _, client = start()
    reply = client.call("POST", f"/fal-ai/{PICTURE}", json=["a fox"])
    assert client.result(reply.json()["request_id"]).json()["detail"][0]["type"] == "dict_type"


def test_a_queued_job_is_really_removed(start: Start) -> None:
    emulator, client = start(run_seconds=60.0, concurrency=1)
    running, removed, last = (client.submit(f"fox {number}") for number in range(3))
    reply = client.cancel(removed)
    assert (reply.status_code, reply.json()) == (200, {"status": "OK"})
    status = client.status(removed).json()
    assert (status["status"], status["error_type"]) == ("COMPLETED", "client_cancelled")
    result = client.result(removed)
    assert (result.status_code, result.json()["error_type"]) == (499, "client_cancelled")
    assert client.status(last).json()["queue_position"] == 0
    assert client.status(running).json()["status"] == "IN_PROGRESS"
    jobs = {job["request_id"]: job for job in emulator.account()["jobs"]}
    assert jobs[removed]["cancelled"]
    assert jobs[removed]["started_at"] is None


@pytest.mark.parametrize("obeys", [False, True])
def test_a_running_job_is_only_signalled(start: Start, obeys: bool) -> None:
    _, client = start(run_seconds=0.8, obeys_cancel=obeys)
    request_id = client.submit()
    reply = client.cancel(request_id)
    assert (reply.status_code, reply.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    client.wait_for(request_id, "COMPLETED")
    assert client.result(request_id).status_code == (499 if obeys else 200)


@pytest.mark.parametrize(
    ("cancel", "code", "word", "then"),
    [
        ("requested", 202, "CANCELLATION_REQUESTED", "client_cancelled"),
        ("removed", 200, "OK", "client_cancelled"),
        ("already-completed", 400, "ALREADY_COMPLETED", None),
        ("not-found", 404, "NOT_FOUND", "queued"),
        ("not-allowed", 405, None, "queued"),
    ],
)
def test_a_cancel_can_be_answered_in_every_way(
    start: Start, cancel: str, code: int, word: str | None, then: str | None
) -> None:
    _, client = start(queue_seconds=60.0, cancel=cancel)
    request_id = client.submit()
    reply = client.cancel(request_id)
    assert (reply.status_code, reply.json().get("status")) == (code, word)
    status = client.status(request_id).json()
    if then == "queued":
        assert status["status"] == "IN_QUEUE"
    else:
        assert (status["status"], status.get("error_type")) == ("COMPLETED", then)
        assert client.result(request_id).status_code == (200 if then is None else 499)


def test_a_result_expires_and_its_status_stays(start: Start) -> None:
    _, client = start(result_seconds=0.0)
    request_id = client.submit()
    assert client.status(request_id).json()["status"] == "COMPLETED"
    assert client.result(request_id).status_code == 404


def test_a_flagged_picture_is_black_and_of_the_asked_size(start: Start) -> None:
    import io

    from PIL import Image

    _, client = start(flagged=True)
    body = client.make(num_images=2).json()
    assert body["has_nsfw_concepts"] == [True, True]
    for about in body["images"]:
        picture = Image.open(io.BytesIO(client.call("GET", about["url"], key=None).content))
        assert picture.size == (SMALL["width"], SMALL["height"])
        assert picture.convert("L").getextrema() == (0, 0)
