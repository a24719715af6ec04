from __future__ import annotations

import time
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING

import pytest
import requests

from tests.emulator.client import KEY, PICTURE

if TYPE_CHECKING:
    from tests.emulator.conftest import Start


def test_a_lost_reply_leaves_a_job_behind(start: Start, capfd: pytest.CaptureFixture[str]) -> None:
    emulator, client = start()
    emulator.add_fault("lost-reply on=submit match=storm times=1")
    client.submit("calm")
    with pytest.raises(requests.ConnectionError):
        client.post("a storm")
    client.submit("a storm")
    account = emulator.account()
    assert account["totals"]["posts_accepted"] == 3
    posts = {group["prompt"]: group["posts"] for group in account["posts_by_arguments"].values()}
    assert posts == {"calm": 1, "a storm": 2}
    assert account["totals"]["replies_by_status"]["closed"] == 1
    lost = emulator.requests()[1]
    assert (lost["fault"], lost["status"]) == ("lost-reply", None)
    assert lost["request_id"] in {job["request_id"] for job in account["jobs"]}
    assert capfd.readouterr() == ("", "")


def test_a_lost_request_leaves_nothing_behind(start: Start) -> None:
    emulator, client = start(faults=["lost-request times=1"])
    with pytest.raises(requests.ConnectionError):
        client.post()
    totals = emulator.account()["totals"]
    assert (totals["posts_received"], totals["posts_accepted"]) == (1, 0)


def test_a_rate_limit_says_when_to_come_back(start: Start) -> None:
    emulator, client = start(faults=["rate-limit times=1 retry_after=7"])
    emulator.add_fault(fault="rate-limit", times=1, retry_after=60, form="date")
    first, second = client.post(), client.post()
    assert (first.status_code, first.headers["Retry-After"]) == (429, "7")
    assert second.status_code == 429
    wait = parsedate_to_datetime(second.headers["Retry-After"]) - datetime.now(timezone.utc)
    assert 55 <= wait.total_seconds() <= 61
    assert emulator.account()["totals"]["posts_accepted"] == 0
    assert client.post().status_code == 200


@pytest.mark.parametrize(("accepted", "jobs"), [("false", 0), ("true", 1)])
@pytest.mark.parametrize("fault", ["server-error", "html"])
def test_a_5xx_comes_before_or_after_acceptance(start: Start, fault: str, accepted: str, jobs: int) -> None:
    emulator, client = start(faults=[f"{fault} status=504 accepted={accepted}"])
    reply = client.post()
    assert reply.status_code == 504
    assert emulator.account()["totals"]["posts_accepted"] == jobs
    html = reply.headers["Content-Type"].startswith("text/html")
    assert html == (fault == "html")
    assert reply.text.startswith("<html>") if html else "error" in reply.json()


def test_a_slow_reply_comes_late_but_whole(start: Start) -> None:
    _, client = start(faults=["slow seconds=0.3"])
    started = time.monotonic()
    assert client.post().status_code == 200
    assert time.monotonic() - started >= 0.3


def test_a_redirect_names_another_host(start: Start) -> None:
    _, client = start()
    request_id = client.submit()
    client_rule = "redirect on=status to=http://other.invalid:1/"
    emulator, client = start(faults=[client_rule])
    request_id = client.submit()
    reply = client.status(request_id, logs="1")
    assert reply.status_code == 307
    assert (
        reply.headers["Location"] == f"http://other.invalid:1/fal-ai/flux/requests/{request_id}/status?logs=1"
    )
    assert emulator.requests()[-1]["fault"] == "redirect"


def test_a_heartbeat_precedes_the_body_and_hides_the_code(start: Start) -> None:
    _, client = start(queue_seconds=60.0, faults=["heartbeat on=status beats=2 seconds=0"])
    reply = client.status(client.submit())
    assert reply.status_code == 200
    assert reply.content.startswith(b"\n\n{")
    assert reply.json()["status"] == "IN_QUEUE"


def test_bodies_can_be_marked_empty_or_no_utf_8(start: Start) -> None:
    faults = ["bom on=status times=1", "empty on=status times=1", "not-utf8 on=status times=1"]
    _, client = start(faults=faults)
    request_id = client.submit()
    marked, empty, latin, plain = (client.status(request_id) for _ in range(4))
    assert marked.content.startswith(b"\xef\xbb\xbf{")
    assert (empty.status_code, empty.content) == (200, b"")
    with pytest.raises(UnicodeDecodeError):
        latin.content.decode()
    assert plain.json()["status"] == "COMPLETED"


def test_later_calls_are_matched_by_the_body_that_was_submitted(start: Start) -> None:
    _, client = start(faults=["html on=result match=storm", "html on=cancel match=storm"])
    calm, storm = client.submit("calm"), client.submit("storm")
    assert (client.result(calm).status_code, client.result(storm).status_code) == (200, 502)
    assert (client.cancel(calm).status_code, client.cancel(storm).status_code) == (400, 502)


def test_media_and_probes_can_fail_too(start: Start) -> None:
    _, client = start(faults=["server-error on=probe status=500", "lost-reply on=media times=1"])
    assert client.call("GET", "/v1/models", key=f"Bearer {KEY}").status_code == 500
    url = client.make().json()["images"][0]["url"]
    with pytest.raises(requests.ConnectionError):
        client.call("GET", url, key=None)
    assert client.call("GET", url, key=None).status_code == 200


def test_a_rule_changes_only_the_jobs_it_matches(start: Start) -> None:
    emulator, client = start()
    emulator.add_fault({"fault": "job", "match": "cat", "failure": "refused", "times": 1})
    emulator.add_fault("job match=snail stuck=true")
    emulator.add_fault("job match=tortoise run_seconds=60")
    assert client.make("a dog").status_code == 200
    assert client.make("a cat").status_code == 422
    assert client.make("a cat").status_code == 200
    assert client.status(client.submit("a snail")).json()["status"] == "IN_QUEUE"
    assert client.status(client.submit("a tortoise")).json()["status"] == "IN_PROGRESS"


def test_a_wrong_key_uses_up_no_fault(start: Start) -> None:
    emulator, client = start(key=KEY, faults=["lost-request times=1"])
    assert client.call("POST", f"/fal-ai/{PICTURE}", key="Key wrong", json={}).status_code == 401
    assert len(client.call("GET", f"{emulator.url}/_emulator/faults").json()) == 1


def test_a_wrong_rule_is_refused_with_its_reason(start: Start) -> None:
    emulator, client = start()
    with pytest.raises(ValueError, match="There is no fault 'odd'"):
        emulator.add_fault("odd")
    with pytest.raises(ValueError, match="A job has no colour"):
        emulator.add_fault("job colour=red")
    for body in (b"", b"[]", b"5", b"\xff"):
        assert client.call("POST", f"{emulator.url}/_emulator/faults", data=body).status_code == 400


def test_rules_can_be_taken_back_and_a_reset_restores_the_first(start: Start) -> None:
    emulator, client = start(faults=["html times=1"])
    emulator.add_fault("empty")
    emulator.clear_faults()
    assert client.post().status_code == 200
    emulator.reset()
    assert client.post().status_code == 502
    assert client.post().status_code == 200
