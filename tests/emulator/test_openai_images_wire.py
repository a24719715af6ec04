"""The OpenAI-images form as the contract has it, over sockets."""

from __future__ import annotations

import base64
import io
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
import requests
from PIL import Image

from tests.emulator.client import KEY
from tests.emulator.families import Families

if TYPE_CHECKING:
    from tests.emulator.conftest import Start

SMALL: dict[str, Any] = {"size": "64x48"}


def test_one_request_lasts_as_long_as_the_job_and_brings_the_pictures(start: Start) -> None:
    emulator, client = start(queue_seconds=0.2, run_seconds=0.3)
    started = time.monotonic()
    reply = Families(client).images(**SMALL, n=2)
    assert time.monotonic() - started >= 0.5
    body = reply.json()
    assert (reply.status_code, set(body)) == (200, {"created", "data"})
    files = [Families(client).download(each["url"]).content for each in body["data"]]
    assert [Image.open(io.BytesIO(data)).size for data in files] == [(64, 48)] * 2
    assert files[0] != files[1]
    [job] = emulator.account()["jobs"]
    assert (job["family"], job["model"]) == ("openai-images", "flux-pro/kontext/text-to-image")


@pytest.mark.parametrize(
    ("form", "asked", "name"),
    [
        ("asked", None, "url"), ("asked", "url", "url"), ("asked", "b64_json", "b64_json"),
        ("b64_json", "url", "b64_json"), ("url", "b64_json", "url"),
    ],
)  # fmt: skip
def test_pictures_come_as_addresses_or_in_the_answer(start: Start, form: str, asked: str, name: str) -> None:
    _, client = start(openai_format=form)
    options = {} if asked is None else {"response_format": asked}
    [about] = Families(client).images(**SMALL, **options).json()["data"]
    assert set(about) == {name}
    if name == "b64_json":
        assert Image.open(io.BytesIO(base64.b64decode(about[name]))).size == (64, 48)


@pytest.mark.parametrize(("counts", "number"), [("num_images", 2), ("n", 3), ("larger", 3)])
def test_either_count_can_be_the_one_that_counts(start: Start, counts: str, number: int) -> None:
    _, client = start(openai_count=counts)
    assert len(Families(client).images(**SMALL, n=3, num_images=2).json()["data"]) == number
    assert len(Families(client).images(**SMALL, n=2).json()["data"]) == 2
    assert len(Families(client).images(**SMALL).json()["data"]) == 1


def test_the_models_own_parameters_are_taken(start: Start) -> None:
    _, client = start(media_side=210)
    body = Families(client).images(aspect_ratio="21:9", output_format="png", seed=5).json()
    picture = Image.open(io.BytesIO(Families(client).download(body["data"][0]["url"]).content))
    assert (picture.format, picture.size) == ("PNG", (210, 90))


@pytest.mark.parametrize(
    ("arguments", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"model": None}, "model"),
        ({"n": 11}, "n"),
        ({"n": True}, "n"),
        ({"size": "large"}, "size"),
        ({"size": "9999x10"}, "size"),
        ({"response_format": "file"}, "response_format"),
        ({"num_images": 9}, "num_images"),
        ({"aspect_ratio": "2:1"}, "aspect_ratio"),
    ],
)
def test_what_is_not_accepted_makes_no_job(start: Start, arguments: dict[str, Any], param: str) -> None:
    emulator, client = start()
    reply = Families(client).images(**arguments)
    error = reply.json()["error"]
    assert (reply.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert emulator.account()["totals"]["posts_accepted"] == 0


@pytest.mark.parametrize(
    ("failure", "status", "code"),
    [
        ("completed-error", 500, "task_failed"),
        ("result-500", 500, "task_failed"),
        ("result-422", 400, "invalid_value"),
        ("refused", 400, "content_policy_violation"),
        ("result-error", 200, "task_failed"),
    ],
)
def test_a_failed_job_is_an_error_of_openais_form(start: Start, failure: str, status: int, code: str) -> None:
    emulator, client = start(failure=failure)
    reply = Families(client).images()
    assert (reply.status_code, reply.json()["error"]["code"]) == (status, code)
    assert emulator.account()["totals"]["posts_accepted"] == 1


@pytest.mark.parametrize("failure", ["result-failure", "status-failure"])
def test_a_failed_job_can_be_a_failure_under_200(start: Start, failure: str) -> None:
    _, client = start(failure=failure)
    reply = Families(client).images()
    assert (reply.status_code, reply.json()["status"]) == (200, "FAILURE")


def test_a_success_can_be_without_pictures_or_of_black_ones(start: Start) -> None:
    emulator, client = start(failure="no-media")
    assert Families(client).images().json()["data"] == []
    emulator.add_fault("job failure=none flagged=true")
    [about] = Families(client).images(**SMALL, response_format="b64_json").json()["data"]
    black = Image.open(io.BytesIO(base64.b64decode(about["b64_json"])))
    assert black.convert("L").getextrema() == (0, 0)


def test_a_broken_off_request_leaves_a_job_that_goes_on(start: Start) -> None:
    emulator, client = start(run_seconds=0.5)
    with pytest.raises(requests.Timeout):
        requests.post(
            f"{client.url}/v1/images/generations",
            json={"model": "flux/dev", "prompt": "x", **SMALL},
            headers={"Authorization": f"Bearer {KEY}"},
            timeout=0.15,
        )
    deadline = time.monotonic() + 20
    while emulator.account()["jobs"][0]["state"] != "finished":
        assert time.monotonic() < deadline
    assert emulator.account()["totals"]["posts_accepted"] == 1


def test_requests_wait_for_a_slot_and_for_each_other(start: Start) -> None:
    _, client = start(run_seconds=0.2, concurrency=1)
    started = time.monotonic()
    with ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda number: Families(client).images(**SMALL, seed=number), range(3)))
    assert [reply.status_code for reply in replies] == [200] * 3
    assert time.monotonic() - started >= 0.6


@pytest.mark.parametrize("key", [None, f"Key {KEY}", "Bearer wrong"])
def test_the_key_comes_as_a_bearer(start: Start, key: str | None) -> None:
    _, client = start(key=KEY)
    reply = client.call("POST", "/v1/images/generations", json={"model": "m", "prompt": "x"}, key=key)
    assert (reply.status_code, reply.json()["error"]["code"]) == (401, "invalid_api_key")
