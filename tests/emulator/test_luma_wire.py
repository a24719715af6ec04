"""Luma's wire as the contract has it, over sockets."""

from __future__ import annotations

import io
import time
from typing import TYPE_CHECKING, Any

import av
import pytest
from PIL import Image

from tests.emulator.client import KEY
from tests.emulator.families import BEARER, SMALL_MEDIA, Families, picture

if TYPE_CHECKING:
    from tests.emulator.conftest import Start

FIELDS = {
    "id", "prompt", "state", "queue_state", "created_at", "batch_id", "video", "video_raw", "thumbnail",
    "last_frame", "liked", "estimate_wait_seconds", "failure_reason",
}  # fmt: skip


def first_frame(data: bytes) -> Image.Image:
    with av.open(io.BytesIO(data), "r") as container:
        frame: Image.Image = next(container.decode(video=0)).to_image()  # type: ignore[no-untyped-call]
    return frame


def shows_watermark(data: bytes) -> bool:
    red, green, blue = first_frame(data).getpixel((3, 3))  # type: ignore[misc]
    return red > 180 and green < 90 and blue > 130


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("gateway", ["pending", "processing", "completed"]),
        ("official", ["queued", "dreaming", "completed"]),
    ],
)
def test_a_video_goes_through_the_states_in_either_spelling(
    start: Start, words: str, expected: list[str]
) -> None:
    _, client = start(queue_seconds=0.15, run_seconds=0.3, luma_words=words, **SMALL_MEDIA)
    luma = Families(client)
    body = luma.luma().json()
    assert (set(body), body["prompt"], body["video"]) == (FIELDS, "a red fox", None)
    seen = [body["state"]]
    deadline = time.monotonic() + 20
    while seen[-1] != "completed":
        assert time.monotonic() < deadline
        body = luma.luma_task(body["id"]).json()
        seen += [body["state"]] if body["state"] != seen[-1] else []
    assert seen == expected
    assert (set(body), body["failure_reason"]) == (FIELDS, None)


def test_the_video_is_watermarked_and_its_download_is_not(start: Start) -> None:
    _, client = start(media_side=200, video_seconds=0.2)
    luma = Families(client)
    body = luma.luma_made()
    video = body["video"]
    shown, clean = (luma.download(video[name]).content for name in ("url", "download_url"))
    assert shows_watermark(shown)
    assert not shows_watermark(clean)
    assert first_frame(shown).size == (video["width"], video["height"])
    assert body["video_raw"]["duration"] == 0.2
    for url in (video["thumbnail"], body["thumbnail"]["url"], body["last_frame"]["url"]):
        assert Image.open(io.BytesIO(luma.download(url).content)).format == "JPEG"


@pytest.mark.parametrize(
    ("shown", "expected"),
    [("empty", {"download_url": ""}), ("null", {"download_url": None}), ("missing", {})],
)
def test_a_download_url_can_be_empty_or_absent(start: Start, shown: str, expected: dict[str, Any]) -> None:
    _, client = start(luma_download_url=shown, **SMALL_MEDIA)
    video = Families(client).luma_made()["video"]
    assert {name: video[name] for name in video if name == "download_url"} == expected
    assert video["url"]


def test_the_download_address_is_refused_before_the_end_and_given_after_it(start: Start) -> None:
    _, client = start(
        run_seconds=600.0, faults=["job match=fast run_seconds=0"], media_side=200, video_seconds=0.1
    )
    luma = Families(client)
    slow = luma.luma(user_prompt="slow").json()["id"]
    early = luma.call("GET", f"/luma/generations/{slow}/download_video_url")
    assert (early.status_code, set(early.json())) == (400, {"detail"})
    fast = luma.luma_made(user_prompt="fast")["id"]
    link = luma.call("GET", f"/luma/generations/{fast}/download_video_url").json()
    assert set(link) == {"url"}
    assert not shows_watermark(luma.download(link["url"]).content)
    assert luma.call("GET", "/luma/generations/none/download_video_url").status_code == 404


@pytest.mark.parametrize("code", [404, 403, 410])
def test_a_download_link_holds_for_minutes_and_the_video_for_longer(start: Start, code: int) -> None:
    _, client = start(luma_link_seconds=0.0, expired_code=code, **SMALL_MEDIA)
    luma = Families(client)
    body = luma.luma_made()
    link = body["video"]["download_url"]
    deadline = time.monotonic() + 20
    while luma.download(link).status_code == 200:
        assert time.monotonic() < deadline
    assert luma.download(link).status_code == code
    assert luma.download(link.partition("?")[0]).status_code == code
    assert luma.download(body["video"]["url"]).status_code == 200


def test_a_new_link_is_good_when_the_old_one_is_not(start: Start) -> None:
    _, client = start(luma_link_seconds=0.5, **SMALL_MEDIA)
    luma = Families(client)
    body = luma.luma_made()
    old = body["video"]["download_url"]
    deadline = time.monotonic() + 20
    while luma.download(old).status_code == 200:
        assert time.monotonic() < deadline
    address = f"/luma/generations/{body['id']}/download_video_url"
    while luma.download(luma.call("GET", address).json()["url"]).status_code != 200:
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("form", "names"), [("url", ["url"]), ("download_url", ["download_url"]), ("wrapped", ["data", "url"])]
)
def test_the_download_address_comes_in_three_forms(start: Start, form: str, names: list[str]) -> None:
    _, client = start(luma_link=form, **SMALL_MEDIA)
    luma = Families(client)
    found: Any = luma.call("GET", f"/luma/generations/{luma.luma_made()['id']}/download_video_url").json()
    for name in names:
        found = found[name]
    assert luma.download(found).status_code == 200


@pytest.mark.parametrize(
    ("form", "fields"), [("id", {"id"}), ("task_id", {"task_id"}), ("wrapped", {"code", "message", "data"})]
)
def test_a_submit_has_other_answers(start: Start, form: str, fields: set[str]) -> None:
    _, client = start(luma_submit=form)
    luma = Families(client)
    body = luma.luma().json()
    assert set(body) == fields
    task_id = body["data"]["id"] if form == "wrapped" else body[form]
    assert luma.luma_task(task_id).json()["state"] == "completed"


def test_a_task_can_be_wrapped_and_can_have_the_vendors_shape(start: Start) -> None:
    _, client = start(luma_task="wrapped", luma_shape="official", **SMALL_MEDIA)
    luma = Families(client)
    body = luma.luma_task(luma.luma().json()["id"]).json()
    assert (body["code"], body["data"]["state"]) == ("success", "completed")
    assert "video" not in body["data"]
    assert luma.download(body["data"]["assets"]["video"]).content[4:8] == b"ftyp"


def test_an_extension_goes_on_from_a_finished_video(start: Start) -> None:
    emulator, client = start(faults=["job match=slow run_seconds=600"], **SMALL_MEDIA)
    luma = Families(client)
    first = luma.luma_made()["id"]
    second = luma.luma(f"generations/{first}/extend", user_prompt="it runs on")
    assert second.status_code == 200
    assert second.json()["id"] != first
    assert luma.luma_task(second.json()["id"]).json()["video"]["url"]
    slow = luma.luma(user_prompt="slow").json()["id"]
    assert luma.luma(f"generations/{slow}/extend", user_prompt="x").status_code == 400
    assert luma.luma("generations/none/extend", user_prompt="x").status_code == 404
    assert luma.luma(f"generations/{client.submit()}/extend", user_prompt="x").status_code == 404
    jobs = [each for each in emulator.account()["jobs"] if each["family"] == "luma"]
    assert [each["endpoint"] for each in jobs] == ["generations", "extend", "generations"]


def test_extensions_of_different_videos_are_different_posts(start: Start) -> None:
    emulator, client = start()
    luma = Families(client)
    one, two = (luma.luma_made(user_prompt=each)["id"] for each in ("one", "two"))
    for source in (one, two, two):
        luma.luma(f"generations/{source}/extend", user_prompt="on")
    groups = emulator.account()["posts_by_arguments"].values()
    assert sorted(each["posts"] for each in groups if each["prompt"] == "on") == [1, 2]


def test_several_tasks_are_asked_for_at_once(start: Start) -> None:
    _, client = start()
    luma = Families(client)
    ids = [luma.luma(user_prompt=f"fox {number}").json()["id"] for number in range(3)]
    reply = luma.call("POST", "/luma/tasks", json={"ids": [*ids, "none", client.submit()]})
    assert [(each["id"], each["state"]) for each in reply.json()] == [(each, "completed") for each in ids]
    assert luma.call("POST", "/luma/tasks", json={}).status_code == 400


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"prompt": "x"}, "user_prompt is required"),
        ({"user_prompt": ["x"]}, "user_prompt must be a string"),
        ({"user_prompt": "x", "loop": "yes"}, "loop must be true or false"),
        ({"user_prompt": "x", "aspect_ratio": "2:1"}, "aspect_ratio must be one of"),
        ({"user_prompt": "x", "duration": "5"}, "duration must be one of"),
        ({"user_prompt": "x", "resolution": "8k"}, "resolution must be one of"),
    ],
)
def test_what_the_vendor_does_not_accept_makes_no_job(
    start: Start, arguments: dict[str, Any], says: str
) -> None:
    emulator, client = start()
    reply = Families(client).luma(**arguments)
    assert reply.status_code == 400
    assert says in reply.json()["detail"]
    assert emulator.account()["totals"]["posts_accepted"] == 0


def test_a_video_begins_with_its_first_picture(start: Start) -> None:
    _, client = start(**SMALL_MEDIA)
    luma = Families(client)
    for given in (picture(), "data:image/png;base64," + picture()):
        url = luma.luma_made(user_prompt="x", image_url=given)["video"]["download_url"]
        frame = first_frame(luma.download(url).content)
        red, green, blue = frame.getpixel((frame.width // 2, 5))  # type: ignore[misc]
        assert red > 150 > max(green, blue)


def test_what_holds_no_picture_is_no_file(start: Start) -> None:
    _, client = start(**SMALL_MEDIA)
    luma = Families(client)
    url = luma.luma_made(user_prompt="x", image_url="bm9uZQ==")["video"]["url"]
    assert luma.download(url).status_code == 404


@pytest.mark.parametrize(
    "failure", ["completed-error", "result-422", "result-500", "result-failure", "refused"]
)
def test_a_failed_task_says_why(start: Start, failure: str) -> None:
    emulator, client = start(failure=failure)
    luma = Families(client)
    body = luma.luma_made()
    assert (body["state"], body["video"]) == ("failed", None)
    assert ("moderation" in body["failure_reason"]) == (failure == "refused")
    assert luma.call("GET", f"/luma/generations/{body['id']}/download_video_url").status_code == 400
    emulator.add_fault("job failure_message='no credits'")
    assert luma.luma_made()["failure_reason"] == "no credits"


@pytest.mark.parametrize(("failure", "name"), [("status-failure", "code"), ("result-error", "error")])
def test_a_failed_task_can_be_an_error_under_200(start: Start, failure: str, name: str) -> None:
    _, client = start(failure=failure)
    luma = Families(client)
    reply = luma.luma_task(luma.luma().json()["id"])
    assert reply.status_code == 200
    assert name in reply.json()
    assert "state" not in reply.json()


def test_a_completed_task_can_be_without_video(start: Start) -> None:
    _, client = start(failure="no-media")
    body = Families(client).luma_made()
    assert (body["state"], body["video"]) == ("completed", None)


@pytest.mark.parametrize("key", [None, f"Key {KEY}", "Bearer wrong"])
def test_the_key_comes_as_a_bearer(start: Start, key: str | None) -> None:
    _, client = start(key=KEY)
    reply = client.call("POST", "/luma/generations", json={"user_prompt": "x"}, key=key)
    assert (reply.status_code, set(reply.json())) == (401, {"detail"})
    assert client.call("POST", "/luma/generations", json={"user_prompt": "x"}, key=BEARER).status_code == 200
