from __future__ import annotations

import json
from typing import TYPE_CHECKING

from tests.emulator.client import KEY, PICTURE

if TYPE_CHECKING:
    from tests.emulator.conftest import Start


def test_the_account_counts_posts_by_what_they_asked_for(start: Start) -> None:
    emulator, client = start()
    ids = [client.submit("a fox", seed=1), client.submit("a fox", seed=1)]
    other = client.submit("a fox", seed=1, model="other/model")
    groups = emulator.account()["posts_by_arguments"].values()
    assert sorted((group["model"], group["posts"], group["prompt"]) for group in groups) == [
        ("flux/dev", 2, "a fox"),
        ("other/model", 1, "a fox"),
    ]
    assert sorted(group["request_ids"] for group in groups) == sorted([ids, [other]])


def test_the_order_of_keys_and_the_form_of_the_id_make_no_difference(start: Start) -> None:
    emulator, client = start()
    client.call("POST", "/fal-ai/flux/dev", data=b'{"prompt": "x", "seed": 1}')
    client.call("POST", "/fal-ai/fal-ai/flux/dev", data=b'{"seed":1,"prompt":"\\u0078"}')
    [group] = emulator.account()["posts_by_arguments"].values()
    assert group["posts"] == 2


def test_the_account_follows_every_job(start: Start) -> None:
    emulator, client = start()
    request_id = client.submit()
    client.status(request_id)
    client.status(request_id)
    url = client.result(request_id).json()["images"][0]["url"]
    client.call("GET", url, key=None)
    client.cancel(request_id)
    [job] = emulator.account()["jobs"]
    assert job["request_id"] == request_id
    assert job["model"] == PICTURE
    assert job["accepted_posts"] == 1
    assert job["calls"] == {"status": 2, "result": 1, "cancel": 1, "media": 1}
    assert job["state"] == "finished"
    assert job["submitted_at"] <= job["started_at"] <= job["finished_at"]
    assert job["arguments_hash"] in emulator.account()["posts_by_arguments"]


def test_every_request_is_written_down_and_no_key_ever(start: Start) -> None:
    emulator, client = start(key=KEY)
    url = client.make().json()["images"][0]["url"]
    client.call("GET", url, key=None)
    client.call("GET", url)
    client.call("GET", "/nowhere/at/all?x=1", key=KEY)
    client.call("GET", "/v1/models", key="Bearer wrong-one")
    seen = emulator.requests()
    assert [each["operation"] for each in seen] == [
        "submit", "status", "result", "media", "media", None, "probe",
    ]  # fmt: skip
    assert [each["status"] for each in seen] == [200, 200, 200, 200, 200, 404, 401]
    assert [each["has_authorization"] for each in seen] == [True, True, True, False, True, True, True]
    assert [each["scheme"] for each in seen] == ["Key", "Key", "Key", None, "Key", None, "Bearer"]
    assert [each["key_matched"] for each in seen[:3]] == [True] * 3
    assert not seen[-1]["key_matched"]
    assert (seen[5]["path"], seen[5]["query"]) == ("/nowhere/at/all", "x=1")
    everything = json.dumps([seen, emulator.account()])
    assert KEY not in everything
    assert "wrong-one" not in everything


def test_request_options_are_written_down(start: Start) -> None:
    emulator, client = start()
    headers = {"X-Fal-Queue-Priority": "low", "X-Fal-No-Retry": "1", "X-Other": "no"}
    client.call("POST", f"/fal-ai/{PICTURE}", json={"prompt": "x"}, headers=headers)
    [job] = emulator.account()["jobs"]
    assert job["fal_headers"] == {"X-Fal-Queue-Priority": "low", "X-Fal-No-Retry": "1"}
    assert emulator.requests()[0]["fal_headers"] == job["fal_headers"]


def test_a_reset_forgets_everything(start: Start) -> None:
    emulator, client = start()
    request_id = client.submit()
    emulator.reset()
    assert emulator.requests() == []
    assert emulator.account()["jobs"] == []
    assert emulator.account()["totals"]["posts_received"] == 0
    assert client.status(request_id).status_code == 404


def test_looking_at_the_account_is_not_written_down(start: Start) -> None:
    emulator, _ = start()
    emulator.account()
    assert emulator.health() == {"status": "ok", "jobs": 0}
    assert emulator.requests() == []
