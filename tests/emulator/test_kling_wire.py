"""Kling's wire as the contract has it, over sockets."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Any

import av
import pytest
from PIL import Image

from tests.emulator.client import KEY
from tests.emulator.families import (
    BEARER,
    IMAGE_TO_VIDEO,
    IMAGES,
    KLING_JOBS,
    SMALL_MEDIA,
    TEXT_TO_VIDEO,
    TRY_ON,
    Families,
    picture,
)

if TYPE_CHECKING:
    from tests.emulator.conftest import Start

ENDPOINTS = tuple(KLING_JOBS)
WATERMARK = (255, 0, 200)


def code_of(reply: Any) -> tuple[int, int]:
    return reply.status_code, reply.json()["code"]


def shows_watermark(image: Image.Image) -> bool:
    red, green, blue = image.convert("RGB").getpixel((1, 1))  # type: ignore[misc]
    return red > 200 and green < 60 and blue > 150


@pytest.mark.parametrize("endpoint", ENDPOINTS)
def test_a_job_goes_through_the_vendors_states_in_the_vendors_envelope(start: Start, endpoint: str) -> None:
    _, client = start(queue_seconds=0.15, run_seconds=0.3, **SMALL_MEDIA)
    kling = Families(client)
    submitted = kling.kling(endpoint)
    body = submitted.json()
    assert submitted.status_code == 200
    assert (body["code"], set(body)) == (0, {"code", "message", "request_id", "data"})
    data = body["data"]
    assert (data["task_status"], data["task_status_msg"]) == ("submitted", "")
    assert abs(data["created_at"] / 1000 - time.time()) < 60
    words = [data["task_status"]]
    deadline = time.monotonic() + 20
    while words[-1] != "succeed":
        assert time.monotonic() < deadline
        data = kling.kling_task(data["task_id"], endpoint).json()["data"]
        words += [data["task_status"]] if words[-1] != data["task_status"] else []
    assert words == ["submitted", "processing", "succeed"]
    assert data["updated_at"] > data["created_at"]


def test_images_are_real_pictures_of_the_asked_number_and_shape(start: Start) -> None:
    _, client = start(media_side=120)
    kling = Families(client)
    made = kling.kling_made(IMAGES, prompt="a fox", n=3, aspect_ratio="3:2")["task_result"]["images"]
    assert [each["index"] for each in made] == [0, 1, 2]
    files = [kling.download(each["url"]).content for each in made]
    assert len(set(files)) == 3
    assert {Image.open(io.BytesIO(data)).size for data in files} == {(120, 80)}


def test_a_picture_is_a_megapixel_and_in_2k_twice_as_wide(start: Start) -> None:
    _, client = start()
    kling = Families(client)
    for resolution, factor in (("1k", 1), ("2k", 2)):
        made = kling.kling_made(IMAGES, prompt="x", aspect_ratio="1:1", resolution=resolution)
        data = kling.download(made["task_result"]["images"][0]["url"]).content
        assert Image.open(io.BytesIO(data)).size == (1024 * factor, 1024 * factor)


@pytest.mark.parametrize("endpoint", [TEXT_TO_VIDEO, IMAGE_TO_VIDEO])
def test_videos_are_real_and_their_duration_is_a_string(start: Start, endpoint: str) -> None:
    _, client = start(**SMALL_MEDIA)
    kling = Families(client)
    arguments = {**KLING_JOBS[endpoint], "duration": "10"}
    [video] = kling.kling_made(endpoint, **arguments)["task_result"]["videos"]
    assert (set(video), video["duration"]) == ({"id", "url", "duration"}, "10")
    with av.open(io.BytesIO(kling.download(video["url"]).content), "r") as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 5
    assert max(frames[0].width, frames[0].height) == 96


def test_a_video_ends_in_its_last_picture(start: Start) -> None:
    _, client = start(**SMALL_MEDIA)
    kling = Families(client)
    arguments = {"image": picture((220, 20, 20)), "image_tail": picture((20, 20, 220))}
    [video] = kling.kling_made(IMAGE_TO_VIDEO, **arguments)["task_result"]["videos"]
    with av.open(io.BytesIO(kling.download(video["url"]).content), "r") as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]  # type: ignore[no-untyped-call]
    first, last = (frame.getpixel((frame.width // 2, 5)) for frame in (frames[0], frames[-1]))
    assert first[0] > 150 > first[2]
    assert last[2] > 150 > last[0]


def test_a_try_on_shows_both_pictures_that_were_given(start: Start) -> None:
    _, client = start(media_side=200)
    kling = Families(client)
    person, cloth = (220, 20, 20), (20, 20, 220)
    made = kling.kling_made(TRY_ON, human_image=picture(person), cloth_image=picture(cloth))
    data = kling.download(made["task_result"]["images"][0]["url"]).content
    shown = Image.open(io.BytesIO(data)).convert("RGB")
    assert shown.getpixel((5, shown.height // 2)) == person
    assert shown.getpixel((shown.width // 2, shown.height // 2)) == cloth


def test_a_picture_that_was_made_before_can_be_given_by_its_address(start: Start) -> None:
    _, client = start(media_side=200, faults=["job match=dark flagged=true"])
    kling = Families(client)
    dark = kling.kling_made(IMAGES, prompt="dark")["task_result"]["images"][0]["url"]
    made = kling.kling_made(TRY_ON, human_image=dark, cloth_image=picture((20, 20, 220)))
    data = kling.download(made["task_result"]["images"][0]["url"]).content
    shown = Image.open(io.BytesIO(data)).convert("RGB")
    assert shown.getpixel((5, shown.height // 2)) == (0, 0, 0)
    # Any other address is not called: a picture of its own stands in.
    other = kling.kling_made(TRY_ON, human_image="https://a.invalid/files/x/y.png", cloth_image=dark)
    assert kling.download(other["task_result"]["images"][0]["url"]).status_code == 200


def test_watermarked_files_are_marked_and_the_others_are_not(start: Start) -> None:
    _, client = start(kling_watermark_url="present", media_side=200)
    kling = Families(client)
    [made] = kling.kling_made(IMAGES, prompt="a fox")["task_result"]["images"]
    clean, marked = (
        Image.open(io.BytesIO(kling.download(made[name]).content)) for name in ("url", "watermark_url")
    )
    assert not shows_watermark(clean)
    assert shows_watermark(marked)
    assert clean.size == marked.size


def test_a_list_shows_one_kind_of_job_newest_first_and_by_pages(start: Start) -> None:
    _, client = start()
    kling = Families(client)
    ids = [kling.kling(IMAGES, prompt=f"fox {number}").json()["data"]["task_id"] for number in range(3)]
    kling.kling(TEXT_TO_VIDEO)
    first = kling.call("GET", f"/kling/v1/{IMAGES}?pageNum=1&pageSize=2").json()["data"]
    second = kling.call("GET", f"/kling/v1/{IMAGES}?pageNum=2&pageSize=2").json()["data"]
    assert [each["task_id"] for each in first + second] == ids[::-1]
    for wrong in ("pageNum=0", "pageNum=1001", "pageSize=501", "pageSize=many"):
        assert code_of(kling.call("GET", f"/kling/v1/{IMAGES}?{wrong}")) == (400, 1201)


def test_a_job_is_found_by_its_own_kind_only(start: Start) -> None:
    _, client = start()
    kling = Families(client)
    task_id = kling.kling(TEXT_TO_VIDEO).json()["data"]["task_id"]
    assert code_of(kling.kling_task(task_id, IMAGE_TO_VIDEO)) == (404, 1203)
    assert code_of(kling.kling_task("no-such-task", TEXT_TO_VIDEO)) == (404, 1203)
    assert code_of(kling.kling_task(client.submit(), IMAGES)) == (404, 1203)
    assert client.status(task_id, app="kling-v1").status_code == 404


def test_an_external_id_is_unique_echoed_and_good_for_queries(start: Start) -> None:
    emulator, client = start()
    kling = Families(client)
    data = kling.kling(IMAGES, prompt="x", external_task_id="mine-1").json()["data"]
    assert data["task_info"] == {"external_task_id": "mine-1"}
    assert kling.kling_task("mine-1").json()["data"]["task_id"] == data["task_id"]
    assert code_of(kling.kling(IMAGES, prompt="y", external_task_id="mine-1")) == (400, 1201)
    assert emulator.account()["totals"]["posts_accepted"] == 1


def test_an_external_id_can_be_ignored(start: Start) -> None:
    emulator, client = start(kling_external_id="ignored")
    kling = Families(client)
    for _ in range(2):
        assert kling.kling(IMAGES, prompt="x", external_task_id="mine").json()["data"]["task_info"] == {}
    assert code_of(kling.kling_task("mine")) == (404, 1203)
    assert emulator.account()["totals"]["posts_accepted"] == 2


@pytest.mark.parametrize("key", [None, f"Key {KEY}", "Bearer wrong"])
def test_the_key_comes_as_a_bearer(start: Start, key: str | None) -> None:
    emulator, client = start(key=KEY)
    reply = client.call("POST", f"/kling/v1/{IMAGES}", json=KLING_JOBS[IMAGES], key=key)
    assert code_of(reply) == (401, 1000)
    assert emulator.account()["totals"]["posts_accepted"] == 0
    assert Families(client).kling().status_code == 200


def test_parallel_tasks_are_limited_at_the_submit(start: Start) -> None:
    """A video and a try-on take one slot, images as many as they are, from the submit to the end."""
    emulator, client = start(kling_slots=3, faults=["job match=long run_seconds=600"])
    kling = Families(client)
    assert kling.kling(IMAGES, prompt="long", n=2).status_code == 200
    assert code_of(kling.kling(IMAGES, prompt="two", n=2)) == (429, 1303)
    assert kling.kling(TEXT_TO_VIDEO, prompt="long").status_code == 200
    assert code_of(kling.kling(TRY_ON)) == (429, 1303)
    assert emulator.account()["totals"]["posts_accepted"] == 2
    client.submit()  # fal has no such limit
    _, client = start(kling_slots=1)
    assert [Families(client).kling().status_code for _ in range(2)] == [429, 429]
    finished = [Families(client).kling(TRY_ON).status_code for _ in range(3)]
    assert finished == [200, 200, 200]


@pytest.mark.parametrize(
    ("endpoint", "arguments", "code", "says"),
    [
        (IMAGES, {"n": 1}, 1201, "prompt is required"),
        (IMAGES, {"prompt": "x" * 2501}, 1201, "prompt must not exceed 2500"),
        (IMAGES, {"prompt": 5}, 1201, "prompt must be a string"),
        (IMAGES, {"prompt": "x", "n": 10}, 1201, "n must be a number from 1 to 9"),
        (IMAGES, {"prompt": "x", "n": "2"}, 1201, "n must be"),
        (IMAGES, {"prompt": "x", "aspect_ratio": "9:21"}, 1201, "aspect_ratio must be one of"),
        (IMAGES, {"prompt": "x", "resolution": "4k"}, 1201, "resolution must be"),
        (IMAGES, {"prompt": "x", "image_fidelity": 1.5}, 1201, "image_fidelity must be"),
        (IMAGES, {"prompt": "x", "image_reference": "hands"}, 1201, "image_reference must be"),
        (IMAGES, {"prompt": "x", "image": picture(), "negative_prompt": "y"}, 1201, "negative_prompt is not supported"),
        (IMAGES, {"prompt": "x", "image": "data:image/png;base64," + picture()}, 1201, "without a prefix"),
        (IMAGES, {"prompt": "x", "image": "no picture!"}, 1201, "neither a URL nor Base64"),
        (IMAGES, {"prompt": "x", "image": "bm8gcGljdHVyZQ=="}, 1201, "must be a JPEG or PNG"),
        (IMAGES, {"prompt": "x", "image": picture(size=(299, 400))}, 1201, "at least 300 pixels"),
        (IMAGES, {"prompt": "x", "image": picture(size=(300, 800))}, 1201, "aspect ratio"),
        (TEXT_TO_VIDEO, {"prompt": "x", "duration": 5}, 1201, "duration must be one of 5, 10, as a string"),
        (TEXT_TO_VIDEO, {"prompt": "x", "cfg_scale": 2}, 1201, "cfg_scale must be"),
        (TEXT_TO_VIDEO, {"prompt": "x", "cfg_scale": 0.5, "model_name": "kling-v2-master"}, 1201, "not supported by"),
        (TEXT_TO_VIDEO, {"prompt": "x", "mode": "fast"}, 1201, "mode must be"),
        (TEXT_TO_VIDEO, {"prompt": "x", "aspect_ratio": "4:3"}, 1201, "aspect_ratio must be"),
        (TEXT_TO_VIDEO, {"prompt": "x", "camera_control": {"type": "spin"}}, 1201, "camera_control.type"),
        (TEXT_TO_VIDEO, {"prompt": "x", "camera_control": {"type": "simple"}}, 1201, "config is required"),
        (
            TEXT_TO_VIDEO,
            {"prompt": "x", "camera_control": {"type": "simple", "config": {"pan": 1, "zoom": 2}}},
            1201,
            "exactly one",
        ),
        (
            TEXT_TO_VIDEO,
            {"prompt": "x", "camera_control": {"type": "simple", "config": {"pan": 11}}},
            1201,
            "config.pan must be a number from -10 to 10",
        ),
        (TEXT_TO_VIDEO, {"prompt": "x", "camera_control": {"type": "down_back", "config": {"pan": 1}}}, 1201, "empty"),
        (IMAGE_TO_VIDEO, {"prompt": "x"}, 1201, "at least one of image and image_tail"),
        (
            IMAGE_TO_VIDEO,
            {"image": picture(), "image_tail": picture(), "camera_control": {"type": "down_back"}},
            1201,
            "exclude each other",
        ),
        (
            IMAGE_TO_VIDEO,
            {"image": picture(), "static_mask": picture(), "camera_control": {"type": "down_back"}},
            1201,
            "exclude each other",
        ),
        (IMAGE_TO_VIDEO, {"image": picture(), "dynamic_masks": [{}] * 7}, 1201, "up to 6 masks"),
        (
            IMAGE_TO_VIDEO,
            {"image": picture(), "dynamic_masks": [{"mask": picture(), "trajectories": [{"x": 1, "y": 1}]}]},
            1201,
            "2 to 77 points",
        ),
        (TRY_ON, {"human_image": picture()}, 1201, "cloth_image is required"),
        (TRY_ON, {**KLING_JOBS[TRY_ON], "model_name": "kling-v1"}, 1201, "model_name must be one of"),
    ],
)  # fmt: skip
def test_what_the_vendor_does_not_accept_makes_no_job(
    start: Start, endpoint: str, arguments: dict[str, Any], code: int, says: str
) -> None:
    emulator, client = start()
    reply = Families(client).kling(endpoint, **arguments)
    assert code_of(reply) == (400, code)
    assert says in reply.json()["message"]
    assert emulator.account()["totals"]["posts_accepted"] == 0


@pytest.mark.parametrize("body", [b"no json", b"[1]", b'"x"', b"[" * 100_000])
def test_a_body_that_is_no_object_makes_no_job(start: Start, body: bytes) -> None:
    _, client = start()
    assert code_of(Families(client).call("POST", f"/kling/v1/{IMAGES}", data=body)) == (400, 1200)


@pytest.mark.parametrize(
    "arguments",
    [
        {"image": picture(), "image_tail": picture()},
        {"image": "https://a.invalid/a.png", "camera_control": {"type": "simple", "config": {"pan": -10}}},
        {"image": picture(), "static_mask": picture(), "dynamic_masks": [
            {"mask": picture(), "trajectories": [{"x": 1, "y": 1}, {"x": 2, "y": 2}]}]},
        {"image_tail": picture(), "cfg_scale": 0, "mode": "pro", "model_name": "kling-v1-6"},
    ],
)  # fmt: skip
def test_what_the_vendor_accepts_makes_a_job(start: Start, arguments: dict[str, Any]) -> None:
    _, client = start(**SMALL_MEDIA)
    assert Families(client).kling_made(IMAGE_TO_VIDEO, **arguments)["task_status"] == "succeed"


@pytest.mark.parametrize("http", ["own", "200"])
@pytest.mark.parametrize(
    ("code", "status"),
    [(1000, 401), (1004, 401), (1100, 429), (1101, 429), (1102, 429), (1103, 403), (1200, 400), (1201, 400),
     (1202, 404), (1203, 404), (1300, 400), (1301, 400), (1302, 429), (1303, 429), (5000, 500), (5001, 503), (5002, 504)],
)  # fmt: skip
def test_every_code_comes_under_its_own_http_code_or_under_200(
    start: Start, code: int, status: int, http: str
) -> None:
    emulator, client = start(kling_http=http, faults=[f"turned-away because=kling-{code}"])
    reply = Families(client).kling()
    assert code_of(reply) == (200 if http == "200" else status, code)
    assert emulator.account()["totals"]["posts_accepted"] == 0


def test_what_the_emulator_itself_refuses_comes_under_200_too(start: Start) -> None:
    _, client = start(kling_http="200", key=KEY)
    kling = Families(client)
    assert code_of(kling.kling(IMAGES, n=1)) == (200, 1201)
    assert code_of(kling.kling_task("nothing")) == (200, 1203)
    assert code_of(client.call("GET", f"/kling/v1/{IMAGES}", key="Bearer wrong")) == (200, 1000)


def test_a_submit_can_be_answered_with_an_openai_video_object(start: Start) -> None:
    _, client = start(kling_submit="openai-video")
    body = Families(client).kling(TEXT_TO_VIDEO, prompt="x", model_name="kling-v1-6").json()
    assert body["id"] == body["task_id"]
    assert (body["object"], body["status"], body["model"]) == ("video", "queued", "kling-v1-6")
    assert Families(client).kling_task(body["id"], TEXT_TO_VIDEO).json()["data"]["task_status"] == "succeed"


def test_a_submit_can_be_answered_without_the_envelope(start: Start) -> None:
    _, client = start(kling_submit="bare")
    body = Families(client).kling().json()
    assert "code" not in body
    assert body["task_status"] == "submitted"


def test_a_query_can_be_answered_in_a_gateways_own_words(start: Start) -> None:
    _, client = start(kling_task="code-success", faults=["job match=bad failure=refused"], **SMALL_MEDIA)
    kling = Families(client)
    task_id = kling.kling(TEXT_TO_VIDEO).json()["data"]["task_id"]
    body = kling.kling_task(task_id, TEXT_TO_VIDEO).json()
    assert (body["code"], body["data"]["status"]) == ("success", "succeeded")
    assert kling.download(body["data"]["url"]).content[4:8] == b"ftyp"
    task_id = kling.kling(TEXT_TO_VIDEO, prompt="bad").json()["data"]["task_id"]
    assert kling.kling_task(task_id, TEXT_TO_VIDEO).json()["data"]["status"] == "failed"


@pytest.mark.parametrize("word", ["succeed", "succeeded", "completed"])
def test_success_is_spelled_in_three_ways(start: Start, word: str) -> None:
    _, client = start(kling_success=word)
    assert Families(client).kling_made()["task_status"] == word


@pytest.mark.parametrize(
    "failure", ["completed-error", "result-422", "result-500", "result-failure", "refused"]
)
def test_a_failed_task_says_why_and_has_no_result(start: Start, failure: str) -> None:
    emulator, client = start(failure=failure)
    data = Families(client).kling_made()
    assert data["task_status"] == "failed"
    assert ("risk control" in data["task_status_msg"]) == (failure == "refused")
    assert "task_result" not in data
    assert client.call("GET", f"/files/{data['task_id']}/image-1.png", key=None).status_code == 404
    emulator.add_fault("job failure_message='there is no human in the picture'")
    assert Families(client).kling_made(TRY_ON)["task_status_msg"] == "there is no human in the picture"


def test_a_failed_task_can_be_a_code_instead(start: Start) -> None:
    emulator, client = start(failure="status-failure")
    kling = Families(client)
    task_id = kling.kling().json()["data"]["task_id"]
    body = kling.kling_task(task_id).json()
    assert (body["code"], body["data"]["task_status"]) == (5000, "failed")
    emulator.add_fault("job failure=result-error")
    task_id = kling.kling().json()["data"]["task_id"]
    reply = kling.kling_task(task_id)
    assert (reply.status_code, reply.json()["code"], reply.json()["data"]) == (400, "task_failed", None)


def test_a_success_can_be_without_files_or_of_black_ones(start: Start) -> None:
    emulator, client = start(failure="no-media", media_side=64)
    kling = Families(client)
    assert kling.kling_made()["task_result"] == {"images": []}
    emulator.add_fault("job failure=none flagged=true")
    [image] = kling.kling_made(IMAGES, prompt="x")["task_result"]["images"]
    assert Image.open(io.BytesIO(kling.download(image["url"]).content)).getextrema() == ((0, 0),) * 3


def test_units_are_told_when_asked(start: Start) -> None:
    _, client = start(kling_units="present")
    assert Families(client).kling_made()["final_unit_deduction"] == "2"
    _, client = start()
    assert "final_unit_deduction" not in Families(client).kling_made()


def test_files_are_kept_for_thirty_days(start: Start) -> None:
    _, client = start(time_scale=30 * 86400 * 4.0, media_side=64)
    kling = Families(client)
    url = kling.kling_made(IMAGES, prompt="x")["task_result"]["images"][0]["url"]
    assert kling.download(url).status_code == 200
    deadline = time.monotonic() + 20
    while kling.download(url).status_code == 200:
        assert time.monotonic() < deadline
    assert kling.download(url).status_code == 404


def test_the_account_keeps_the_kinds_of_job_apart(start: Start) -> None:
    emulator, client = start()
    kling = Families(client)
    for endpoint in (TEXT_TO_VIDEO, TEXT_TO_VIDEO, IMAGES):
        kling.kling(endpoint, prompt="same", model_name="kling-v1")
    groups = emulator.account()["posts_by_arguments"].values()
    assert sorted((each["family"], each["endpoint"], each["model"], each["posts"]) for each in groups) == [
        ("kling", IMAGES, "kling-v1", 1),
        ("kling", TEXT_TO_VIDEO, "kling-v1", 2),
    ]


def test_a_models_own_time_is_found_by_family_endpoint_and_name(start: Start) -> None:
    _, client = start(model_seconds={"kling/videos": 600.0})
    kling = Families(client)
    assert kling.kling_made(IMAGES, prompt="x")["task_status"] == "succeed"
    task_id = kling.kling(TEXT_TO_VIDEO).json()["data"]["task_id"]
    assert kling.kling_task(task_id, TEXT_TO_VIDEO).json()["data"]["task_status"] == "processing"


def test_a_bearer_is_asked_for_even_when_any_key_will_do(start: Start) -> None:
    _, client = start()
    assert client.call("GET", f"/kling/v1/{IMAGES}", key=f"Key {KEY}").status_code == 401
    assert client.call("GET", f"/kling/v1/{IMAGES}", key=BEARER).status_code == 200
