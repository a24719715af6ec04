from __future__ import annotations

import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any

import pytest

from tests.emulator.client import KEY, VIDEO

if TYPE_CHECKING:
    from tests.emulator.conftest import Start


def test_the_guides_urls_name_the_whole_model_and_end_in_response(start: Start) -> None:
    _, client = start(url_path="whole", urls="gateway", cancel_url="present")
    body = client.post().json()
    base = f"{client.url}/fal-ai/flux/dev/requests/{body['request_id']}"
    assert (body["status_url"], body["response_url"]) == (f"{base}/status", f"{base}/response")
    for url in (body["status_url"], body["response_url"]):
        assert client.call("GET", url).status_code == 200
    assert client.call("PUT", body["cancel_url"]).status_code == 400
    _, client = start(url_path="whole")
    assert client.post().json()["status_url"].startswith("https://queue.fal.run/fal-ai/flux/dev/requests/")


@pytest.mark.parametrize(
    ("url_path", "found_at", "given", "rebuilt"),
    [("whole", "app", 404, 200), ("app", "whole", 404, 404), ("whole", "whole", 200, 404), ("app", "app", 200, 200)],
)  # fmt: skip
def test_the_given_path_or_the_rebuilt_one_can_be_the_wrong_one(
    start: Start, url_path: str, found_at: str, given: int, rebuilt: int
) -> None:
    _, client = start(url_path=url_path, found_at=found_at, urls="gateway")
    body = client.post().json()
    assert client.call("GET", body["status_url"]).status_code == given
    assert client.status(body["request_id"]).status_code == rebuilt


@pytest.mark.parametrize("shown", ["missing", "same", "different"])
def test_a_gateway_request_id_can_be_another(start: Start, shown: str) -> None:
    _, client = start(gateway_request_id=shown)
    body = client.post().json()
    again = client.status(body["request_id"]).json()
    assert body.get("gateway_request_id") == again.get("gateway_request_id")
    if shown == "missing":
        assert "gateway_request_id" not in body
    else:
        assert (body["gateway_request_id"] == body["request_id"]) == (shown == "same")


def test_a_running_job_falls_back_into_the_queue(start: Start) -> None:
    _, client = start(run_seconds=0.6, queue_seconds=0.3, requeues=1)
    request_id = client.submit()
    words: list[str] = []
    deadline = time.monotonic() + 20
    while words[-1:] != ["COMPLETED"]:
        assert time.monotonic() < deadline
        word = client.status(request_id).json()["status"]
        words += [word] if words[-1:] != [word] else []
    assert words == ["IN_QUEUE", "IN_PROGRESS", "IN_QUEUE", "IN_PROGRESS", "COMPLETED"]


def test_a_fast_model_answers_a_post_already_in_progress_and_without_position(start: Start) -> None:
    _, client = start(run_seconds=60.0)
    body = client.post().json()
    assert body["status"] == "IN_PROGRESS"
    assert "queue_position" not in body


def test_a_result_asked_for_too_early_can_be_a_202(start: Start) -> None:
    _, client = start(queue_seconds=60.0, early_result_code=202)
    reply = client.result(client.submit())
    assert (reply.status_code, reply.json()["status"]) == (202, "IN_QUEUE")


@pytest.mark.parametrize(("model", "name", "nothing"), [("flux/dev", "images", []), (VIDEO, "video", None)])
def test_a_result_can_be_without_media(start: Start, model: str, name: str, nothing: Any) -> None:
    _, client = start(failure="no-media", video_seconds=0.1)
    reply = client.make(model=model, image_url="https://a.invalid/a.png")
    assert (reply.status_code, reply.json()[name]) == (200, nothing)


def test_data_uris_come_unasked_and_are_large(start: Start) -> None:
    _, client = start(data_uris=True)
    reply = client.make(image_size="square")
    assert reply.json()["images"][0]["url"].startswith("data:image/jpeg;base64,")
    assert len(reply.content) > 10 * 1024


def test_a_large_result_expires_sooner_and_media_on_their_own(start: Start) -> None:
    _, client = start(large_result_seconds=0.0, faults=["job match=gone media_seconds=0"])
    small = client.make()
    assert small.status_code == 200
    assert client.make(sync_mode=True, image_size="square").status_code == 404
    gone = client.make("gone").json()["images"][0]["url"]
    assert client.call("GET", gone, key=None).status_code == 404
    assert client.call("GET", small.json()["images"][0]["url"], key=None).status_code == 200


def test_an_ignored_cancel_changes_nothing(start: Start) -> None:
    emulator, client = start(queue_seconds=60.0, cancel="ignored")
    request_id = client.submit()
    reply = client.cancel(request_id)
    assert (reply.status_code, reply.json()) == (202, {"status": "CANCELLATION_REQUESTED"})
    assert client.status(request_id).json()["status"] == "IN_QUEUE"
    [job] = emulator.account()["jobs"]
    assert (job["cancel_requested"], job["cancelled"]) == (True, False)


@pytest.mark.parametrize(
    ("words", "waiting", "finished"),
    [
        ("status", (200, {"status": "OK"}), (400, {"status": "ALREADY_COMPLETED"})),
        ("detail", (200, {"status": "OK"}), (400, {"detail": "Request {} is already completed."})),
        ("success", (200, {"success": True}), (200, {"success": False})),
    ],
)
def test_a_cancel_has_other_words_elsewhere(
    start: Start, words: str, waiting: tuple[int, Any], finished: tuple[int, Any]
) -> None:
    _, client = start(queue_seconds=60.0, cancel_words=words)
    request_id = client.submit()
    for code, body in (waiting, finished):
        reply = client.cancel(request_id)
        named = {
            key: each.format(request_id) if isinstance(each, str) else each for key, each in body.items()
        }
        assert (reply.status_code, reply.json()) == (code, named)


def test_a_post_may_refuse_a_long_queue(start: Start) -> None:
    emulator, client = start(queue_seconds=60.0)
    codes = [
        client.call("POST", "/fal-ai/flux/dev?fal_max_queue_length=1", json={"prompt": "x"}).status_code
        for _ in range(3)
    ]
    assert codes == [200, 200, 429]
    assert emulator.account()["totals"]["posts_accepted"] == 2


def test_a_time_scale_makes_everything_faster_and_reports_emulated_seconds(start: Start) -> None:
    emulator, client = start(
        queue_seconds=60.0,
        run_seconds=60.0,
        result_seconds=120.0,
        time_scale=300.0,
        model_seconds={"slow-one": 90.0},
        faults=[
            "rate-limit match=busy retry_after=900",
            "rate-limit match=later retry_after=900 form=date",
            "slow on=cancel seconds=60",
        ],
    )
    assert client.post("busy").headers["Retry-After"] == "3"
    assert parsedate_to_datetime(client.post("later").headers["Retry-After"]).timestamp() - time.time() < 5
    started = time.monotonic()
    request_id, longer = client.submit(), client.submit(model="slow-one")
    done = client.wait_for(request_id, "COMPLETED")
    assert 0.3 < time.monotonic() - started < 10  # 120 emulated seconds are 0.4
    assert done["metrics"]["inference_time"] == pytest.approx(60.0)
    assert client.result(request_id).json()["timings"]["inference"] == pytest.approx(60.0)
    deadline = time.monotonic() + 20
    while client.result(request_id).status_code == 200:  # kept for 0.4 s
        assert time.monotonic() < deadline
    done = client.wait_for(longer, "COMPLETED", app="slow-one")
    assert done["metrics"]["inference_time"] == pytest.approx(90.0)
    before = time.monotonic()
    client.cancel(request_id)
    assert 0.2 <= time.monotonic() - before < 10
    assert emulator.account()["totals"]["posts_accepted"] == 2


def test_a_scale_does_not_shorten_videos(start: Start) -> None:
    _, slow = start(video_seconds=0.5, seed=3)
    _, fast = start(video_seconds=0.5, seed=3, time_scale=1000.0)
    files = []
    for client in (slow, fast):
        about = client.make("waves", model="kling-video/v2/text-to-video").json()["video"]
        files.append(client.call("GET", about["url"], key=None).content)
    assert files[0] == files[1]


def test_every_variant_can_be_asked_for_by_one_request_or_for_all_at_run_time(start: Start) -> None:
    emulator, client = start(key=KEY)
    emulator.add_fault("job failure=no-media")
    assert client.make().json()["images"] == []
    emulator.clear_faults()
    assert client.make().json()["images"] != []
    asked = client.post(headers={"X-Emulator-Fault": "job stuck=true gateway_request_id=same"}).json()
    assert (asked["status"], asked["gateway_request_id"]) == ("IN_QUEUE", asked["request_id"])
