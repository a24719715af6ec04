"""What holds for every family alike: faults, the account, state, prefixes, the time scale."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from airflow_provider_uniapi_fal.emulator.faults import Rule, RuleBook
from airflow_provider_uniapi_fal.emulator.refusals import REASONS
from airflow_provider_uniapi_fal.emulator.running import running_emulator
from tests.emulator.client import KEY, SMALL, Client
from tests.emulator.families import BEARER, SMALL_MEDIA, Families

if TYPE_CHECKING:
    from tests.emulator.conftest import Start

Post = Callable[..., requests.Response]


def post_fal(client: Client, prompt: str = "a fox", **options: Any) -> requests.Response:
    return client.call("POST", "/fal-ai/flux/dev", json={"prompt": prompt, "image_size": SMALL}, **options)


def post_kling(client: Client, prompt: str = "a fox", **options: Any) -> requests.Response:
    options = {"key": BEARER, **options}
    return client.call("POST", "/kling/v1/videos/text2video", json={"prompt": prompt}, **options)


def post_luma(client: Client, prompt: str = "a fox", **options: Any) -> requests.Response:
    return client.call(
        "POST", "/luma/generations", json={"user_prompt": prompt}, **{"key": BEARER, **options}
    )


def post_images(client: Client, prompt: str = "a fox", **options: Any) -> requests.Response:
    body = {"model": "flux/dev", "prompt": prompt, "size": "64x48"}
    return client.call("POST", "/v1/images/generations", json=body, **{"key": BEARER, **options})


POSTS: dict[str, Post] = {
    "fal": post_fal, "kling": post_kling, "luma": post_luma, "openai-images": post_images,
}  # fmt: skip
STATUS = {
    "fal": ("Key", "/fal-ai/flux/requests/{}/status"),
    "kling": ("Bearer", "/kling/v1/videos/text2video/{}"),
    "luma": ("Bearer", "/luma/generations/{}"),
}
every_family = pytest.mark.parametrize("family", POSTS)
every_queue = pytest.mark.parametrize("family", STATUS)


def id_of(reply: requests.Response) -> str:
    body = reply.json()
    return str(
        body.get("request_id")
        if "status" in body
        else body["data"]["task_id"]
        if "data" in body
        else body["id"]
    )


def look(client: Client, family: str, request_id: str) -> requests.Response:
    scheme, path = STATUS[family]
    return client.call("GET", path.format(request_id), key=f"{scheme} {KEY}")


@every_family
def test_a_lost_reply_leaves_a_job_behind(start: Start, family: str) -> None:
    emulator, client = start(faults=["lost-reply on=submit match=storm times=1"])
    with pytest.raises(requests.ConnectionError):
        POSTS[family](client, "a storm")
    assert POSTS[family](client, "a storm").status_code == 200
    account = emulator.account()
    [group] = account["posts_by_arguments"].values()
    assert (group["posts"], group["prompt"], group["family"]) == (2, "a storm", family)
    assert emulator.requests()[0]["request_id"] == account["jobs"][0]["request_id"]


@every_family
def test_a_lost_request_leaves_nothing_behind(start: Start, family: str) -> None:
    emulator, client = start(faults=["lost-request times=1"])
    with pytest.raises(requests.ConnectionError):
        POSTS[family](client)
    totals = emulator.account()["totals"]
    assert (totals["posts_received"], totals["posts_accepted"]) == (1, 0)


@every_family
def test_a_rate_limit_is_in_the_familys_words(start: Start, family: str) -> None:
    emulator, client = start(faults=["rate-limit times=1 retry_after=7"])
    reply = POSTS[family](client)
    assert (reply.status_code, reply.headers["Retry-After"]) == (429, "7")
    says = {"kling": 1302, "luma": None, "fal": None, "openai-images": None}[family]
    assert reply.json().get("code") == says
    assert ("detail" in reply.json()) == (family == "luma")
    assert emulator.account()["totals"]["posts_accepted"] == 0
    assert POSTS[family](client).status_code == 200


@pytest.mark.parametrize(("accepted", "jobs"), [("false", 0), ("true", 1)])
@pytest.mark.parametrize("fault", ["server-error", "html"])
@every_family
def test_a_5xx_comes_before_or_after_acceptance(
    start: Start, family: str, fault: str, accepted: str, jobs: int
) -> None:
    emulator, client = start(faults=[f"{fault} status=503 accepted={accepted}"])
    reply = POSTS[family](client)
    assert reply.status_code == 503
    assert reply.headers["Content-Type"].startswith("text/html") == (fault == "html")
    assert emulator.account()["totals"]["posts_accepted"] == jobs
    if fault == "server-error":
        assert (reply.json().get("code") == 5001) == (family == "kling")


@pytest.mark.parametrize(
    ("fault", "check"),
    [
        ("slow seconds=0.2", lambda reply: reply.json()),
        ("trickle seconds=0.1 pieces=3", lambda reply: reply.json()),
        ("heartbeat beats=2 seconds=0.01", lambda reply: reply.text.startswith("\n\n") and reply.json()),
        ("bom", lambda reply: reply.content.startswith(b"\xef\xbb\xbf")),
        ("empty", lambda reply: reply.content == b""),
        ("content-type type=text/plain", lambda reply: reply.headers["Content-Type"] == "text/plain"),
        ("body odd=1", lambda reply: reply.json()["odd"] == 1),
        ("oversized size=5000", lambda reply: len(reply.content) == 5000),
        ("not-utf8", lambda reply: b"\xe0 la vol\xe9e" in reply.content),
    ],
    ids=lambda value: value.split()[0] if isinstance(value, str) else "",
)
@every_family
def test_an_answer_can_arrive_in_every_odd_way(
    start: Start, family: str, fault: str, check: Callable[[requests.Response], Any]
) -> None:
    emulator, client = start(faults=[fault])
    assert check(POSTS[family](client))
    assert emulator.account()["totals"]["posts_accepted"] == 1


@every_family
def test_a_redirect_and_a_cut_answer(start: Start, family: str) -> None:
    _, client = start(faults=["redirect times=1", "truncated times=1"])
    assert POSTS[family](client).headers["Location"].startswith("https://elsewhere.invalid/")
    with pytest.raises(requests.RequestException):
        POSTS[family](client)


@every_family
def test_a_post_can_be_turned_away_for_every_reason(start: Start, family: str) -> None:
    emulator, client = start(
        faults=[{"fault": "turned-away", "because": each, "times": 1} for each in REASONS]
    )
    for because in REASONS:
        reply = POSTS[family](client)
        assert reply.status_code >= 400 or because == "failure", because
        assert isinstance(reply.json(), dict)
    assert emulator.account()["totals"]["posts_accepted"] == 0


@pytest.mark.parametrize(
    ("family", "because", "status", "code"),
    [
        ("kling", "bad-key", 401, 1000),
        ("kling", "locked", 429, 1101),
        ("kling", "top-up", 429, 1102),
        ("kling", "not-found", 404, 1203),
        ("kling", "queue-full", 429, 1303),
        ("kling", "failure", 200, 5000),
        ("luma", "failure", 200, "fail_to_submit_task"),
    ],
)
def test_a_reason_has_the_familys_own_code(
    start: Start, family: str, because: str, status: int, code: int | str
) -> None:
    _, client = start(faults=[f"turned-away because={because}"])
    reply = POSTS[family](client)
    assert (reply.status_code, reply.json()["code"]) == (status, code)


def test_the_gateways_own_refusals_come_in_two_styles(start: Start) -> None:
    for style in ("openai", "task"):
        _, client = start(gateway_errors=style, faults=["turned-away because=no-balance"])
        replies = {family: post(client) for family, post in POSTS.items()}
        assert {reply.status_code for reply in replies.values()} == {403}
        for family, reply in replies.items():
            as_task = style == "task" and family in ("kling", "luma")
            assert set(reply.json()) == ({"code", "message", "data"} if as_task else {"error"})


def test_a_rule_can_hold_for_one_family(start: Start) -> None:
    emulator, client = start(
        faults=["turned-away family=luma because=locked", "job family=kling failure=refused"]
    )
    assert [post(client).status_code for post in POSTS.values()] == [200, 200, 403, 200]
    assert emulator.account()["totals"]["posts_accepted"] == 3
    [fal, kling, _] = emulator.account()["jobs"]
    assert look(client, "fal", fal["request_id"]).json().get("error") is None
    assert look(client, "kling", kling["request_id"]).json()["data"]["task_status"] == "failed"


def test_a_rule_for_a_family_is_written_like_any_other() -> None:
    rule = Rule.read("slow family=kling seconds=1")
    assert Rule.read(rule.as_mapping()) == rule
    book = RuleBook((rule,))
    assert book.strike("submit", b"", "luma") is None
    assert book.strike("submit", b"", "kling") == rule
    with pytest.raises(ValueError, match="'family' is one of"):
        Rule.read("slow family=sora")


@every_queue
def test_reads_are_struck_by_what_was_submitted(start: Start, family: str) -> None:
    emulator, client = start(faults=["html on=status match=storm"])
    calm, storm = (id_of(POSTS[family](client, prompt)) for prompt in ("calm", "a storm"))
    assert look(client, family, calm).status_code == 200
    assert look(client, family, storm).status_code == 502
    assert [job["calls"]["status"] for job in emulator.account()["jobs"]] == [1, 1]


@pytest.mark.parametrize(
    ("family", "rule", "path"),
    [
        ("kling", "body on=status data.task_status=paused", ("data", "task_status")),
        ("luma", "body on=status state=paused", ("state",)),
        ("fal", "body on=status status=paused", ("status",)),
    ],
)
def test_a_state_can_be_a_word_that_nobody_knows(
    start: Start, family: str, rule: str, path: tuple[str, ...]
) -> None:
    _, client = start(faults=[rule, "body on=status times=1 data.task_status=missing"])
    found: Any = look(client, family, id_of(POSTS[family](client))).json()
    for name in path:
        found = found[name]
    assert found == "paused"


@every_queue
def test_a_job_is_nobodys_in_another_family(start: Start, family: str) -> None:
    _, client = start()
    request_id = id_of(POSTS[family](client))
    assert {other: look(client, other, request_id).status_code for other in STATUS} == {
        other: 200 if other == family else 404 for other in STATUS
    }


@every_queue
def test_all_of_it_works_behind_a_prefix(start: Start, family: str) -> None:
    _, client = start(base_prefix="/gw", **SMALL_MEDIA)
    assert look(client, family, id_of(POSTS[family](client))).status_code == 200
    url = Families(client).images(size="64x48").json()["data"][0]["url"]
    assert "/gw/files/" in url
    assert client.call("GET", url, key=None).status_code == 200


def test_everything_known_of_every_family_survives_a_restart(tmp_path: Path) -> None:
    settings = {
        "queue_seconds": 0.0, "run_seconds": 0.0, "state": str(tmp_path / "state.jsonl"), **SMALL_MEDIA,
        "faults": ["job match=long run_seconds=600"],
    }  # fmt: skip
    with running_emulator(**settings) as emulator:
        client = Client(emulator.url)
        families = Families(client)
        ids = {family: id_of(POSTS[family](client, "long")) for family in STATUS}
        done = {family: id_of(POSTS[family](client, "done")) for family in STATUS}
        post_images(client)
        own = families.kling("videos/text2video", prompt="x", external_task_id="mine")
        families.luma(f"generations/{done['luma']}/extend", user_prompt="on")
        url = look(client, "kling", done["kling"]).json()["data"]["task_result"]["videos"][0]["url"]
        video = families.download(url).content
        before = {name: look(client, name, each).json() for name, each in ids.items()}
        account = emulator.account()
        client.close()
    with running_emulator(**settings) as emulator:
        assert emulator.account() == account
        client = Client(emulator.url)
        after = {name: look(client, name, each).json() for name, each in ids.items()}
        for body in (*before.values(), *after.values()):
            if "code" in body:
                body.pop("request_id")  # Kling's number of the call
        assert after == before
        assert look(client, "kling", "mine").json()["data"]["task_id"] == id_of(own)
        moved = url.replace(url[: url.index("/files/")], emulator.url)
        assert client.call("GET", moved, key=None).content == video
        client.close()


@every_queue
def test_the_scale_shortens_jobs_of_every_family(start: Start, family: str) -> None:
    _, client = start(run_seconds=600.0, time_scale=6000.0)
    request_id = id_of(POSTS[family](client))
    ended = ("COMPLETED", "completed", "succeed")
    deadline = time.monotonic() + 20
    while not any(f'"{word}"' in look(client, family, request_id).text for word in ended):
        assert time.monotonic() < deadline


def test_fal_headers_mean_nothing_to_the_others(start: Start) -> None:
    _, client = start()
    for post in POSTS.values():
        assert post(client, headers={"X-Fal-No-Retry": "1"}).status_code == 200


def test_a_request_brings_rules_of_its_own_to_every_family(start: Start) -> None:
    emulator, client = start()
    for post in POSTS.values():
        header = {"X-Emulator-Fault": "turned-away because=no-channel"}
        assert post(client, headers=header).status_code == 404
    assert emulator.account()["totals"]["posts_accepted"] == 0


def test_a_list_is_a_list_whatever_strikes_it(start: Start) -> None:
    _, client = start(faults=["body on=list odd=1 times=1", "html on=list"])
    luma = Families(client)
    request_id = luma.luma().json()["id"]
    assert luma.call("POST", "/luma/tasks", json={"ids": [request_id]}).json()[0]["id"] == request_id
    assert luma.call("GET", "/kling/v1/videos/text2video").status_code == 502
