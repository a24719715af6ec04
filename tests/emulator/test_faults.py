from __future__ import annotations

import http.client
import socket
import time
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
import requests

from airflow_provider_uniapi_fal.emulator.faults import Allowance
from airflow_provider_uniapi_fal.emulator.refusals import REFUSALS
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


def test_half_a_surrogate_pair_is_sent_as_json_writes_it(start: Start) -> None:
    emulator, client = start()
    emulator.add_fault(fault="body", on="result", seed="\ud83d", **{"half\ude00": 1})
    assert b'"half\\ude00": 1' in client.result(client.submit()).content
    reply = client.result(client.submit("half \ud83d"))
    assert b'"prompt": "half \\ud83d"' in reply.content
    assert b'"seed": "\\ud83d"' in reply.content


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


def test_an_account_may_make_so_many_calls_a_second_and_after_a_pause_as_many_at_once() -> None:
    allowance = Allowance(4.0)
    assert [allowance.take(100.0) for _ in range(6)] == [True] * 4 + [False] * 2
    assert [allowance.take(100.5) for _ in range(3)] == [True, True, False]
    assert [allowance.take(900.0) for _ in range(5)] == [True] * 4 + [False]
    slow = Allowance(0.5)
    assert [slow.take(now) for now in (0.0, 1.0, 2.5, 3.0)] == [True, False, True, False]
    assert all(Allowance(0.0).take(0.0) for _ in range(100))


def test_a_call_too_many_is_refused_and_leaves_nothing_behind(start: Start) -> None:
    # On a clock this slow no call comes back within the test.
    emulator, client = start(calls_a_second=2.0, time_scale=0.001)
    replies = [client.post() for _ in range(3)]
    assert [reply.status_code for reply in replies] == [200, 429, 429]
    assert "Retry-After" not in replies[1].headers
    account = emulator.account()
    assert account["totals"]["posts_accepted"] == 1
    assert emulator.requests()[-1]["fault"] == "rate-limit"


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


@pytest.mark.parametrize("fault", ["lost-reply", "lost-request"])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("tls", [False, True])
def test_a_connection_can_be_closed_or_reset(
    start: Start, capfd: pytest.CaptureFixture[str], fault: str, reset: bool, tls: bool
) -> None:
    emulator, client = start(faults=[{"fault": fault, "reset": reset}], tls=tls)
    with pytest.raises(requests.ConnectionError) as raised:
        client.post()
    if not tls:  # Python's TLS calls both an end of file
        assert ("Connection reset by peer" in str(raised.value)) == reset
    assert emulator.account()["totals"]["posts_accepted"] == (fault == "lost-reply")
    assert emulator.requests()[0]["status"] is None
    assert capfd.readouterr() == ("", "")


def test_a_body_can_trickle_in(start: Start) -> None:
    emulator, client = start(faults=["trickle on=status seconds=0.4 pieces=4"])
    request_id = client.submit()
    started = time.monotonic()
    with client.call("GET", f"/fal-ai/flux/requests/{request_id}/status", stream=True) as reply:
        assert time.monotonic() - started < 0.3  # code and headers have come
        moments = [time.monotonic() for _ in reply.iter_content(1)]
    assert moments[-1] - moments[0] > 0.3
    assert len(moments) == int(reply.headers["Content-Length"])
    assert 1 <= sum(b - a > 0.1 for a, b in pairwise(moments)) <= 3
    assert emulator.requests()[-1]["status"] == 200


@pytest.mark.parametrize("reset", ["false", "true"])
@pytest.mark.parametrize("on", ["result", "media"])
def test_a_body_can_end_too_early(
    start: Start, capfd: pytest.CaptureFixture[str], on: str, reset: str
) -> None:
    _, client = start(faults=[f"truncated on={on} share=0.5 times=1 reset={reset}"])
    request_id = client.submit()
    url = f"/files/{request_id}/image-1.jpeg" if on == "media" else f"/fal-ai/flux/requests/{request_id}"
    with pytest.raises((requests.exceptions.ChunkedEncodingError, requests.ConnectionError)) as raised:
        client.call("GET", url)
    if reset == "false":
        [short] = [each for each in _causes(raised.value) if isinstance(each, http.client.IncompleteRead)]
        whole = client.call("GET", url).content
        assert short.expected == pytest.approx(len(whole) / 2, abs=2)
    assert client.call("GET", url).status_code == 200
    assert capfd.readouterr() == ("", "")


def _causes(error: BaseException) -> list[BaseException]:
    found, rest = [], [error]
    while rest:
        each = rest.pop()
        found.append(each)
        rest += [part for part in each.args if isinstance(part, BaseException)]
    return found


@pytest.mark.parametrize("announced", ["true", "false"])
def test_media_can_be_larger_than_they_said(start: Start, announced: str) -> None:
    size = 3_000_000
    _, client = start(faults=[f"oversized on=media size={size} announced={announced}"])
    about = client.make().json()["images"][0]
    reply = client.call("GET", about["url"], key=None)
    assert reply.headers.get("Content-Length") == (str(size) if announced == "true" else None)
    assert len(reply.content) == size > about["file_size"]
    assert reply.headers["Content-Type"] == "image/jpeg"
    assert client.call("HEAD", about["url"], key=None).content == b""


def test_media_can_be_of_another_type_or_a_page(start: Start) -> None:
    _, client = start(
        faults=["content-type on=media type=text/plain times=1", "html on=media status=200 times=1"]
    )
    url = client.make().json()["images"][0]["url"]
    wrong, page, right = (client.call("GET", url, key=None) for _ in range(3))
    assert (wrong.headers["Content-Type"], wrong.content) == ("text/plain", right.content)
    assert (page.status_code, page.headers["Content-Type"]) == (200, "text/html")
    assert right.headers["Content-Type"] == "image/jpeg"


def test_media_can_be_moved_elsewhere_or_lead_in_a_circle(start: Start) -> None:
    _, client = start(faults=["redirect on=media to='' status=302 times=4", "redirect on=media"])
    url = client.make().json()["images"][0]["url"]
    path = url.removeprefix(client.url)
    replies = [client.call("GET", url, key=None) for _ in range(5)]
    assert [reply.status_code for reply in replies] == [302] * 4 + [307]
    assert [reply.headers["Location"] for reply in replies] == [path] * 4 + [
        "https://elsewhere.invalid" + path
    ]


@pytest.mark.parametrize("because", REFUSALS)
def test_a_call_can_be_turned_away_for_every_reason(start: Start, because: str) -> None:
    emulator, client = start()
    request_id = client.submit()
    emulator.add_fault(fault="turned-away", because=because)
    reply = client.post("another")
    expected = REFUSALS[because]
    assert (reply.status_code, reply.content) == (expected.status, expected.body)
    assert because.startswith("kling-") or "request_id" not in reply.json()
    assert emulator.account()["totals"]["posts_accepted"] == 1
    # What is refused to a new job says nothing of an old one.
    assert client.status(request_id).status_code == 200


def test_a_locked_account_speaks_as_fal_does(start: Start) -> None:
    _, client = start(faults=["turned-away because=locked"])
    reply = client.post()
    assert reply.status_code == 403
    assert reply.json()["detail"].startswith("User is locked. Reason: Exhausted balance.")


def test_any_field_of_a_reply_can_be_changed_or_taken_out(start: Start) -> None:
    emulator, client = start(queue_seconds=60.0)
    emulator.add_fault(
        "body on=submit request_id=../../admin queue_position=missing status=IN_PROGRESS times=1"
    )
    emulator.add_fault("body on=submit request_id=missing times=1")
    emulator.add_fault({"fault": "body", "on": "submit", "request_id": None, "status": "FAILURE", "times": 1})
    emulator.add_fault("body on=status status=PAUSED times=1")
    emulator.add_fault("body on=media status=PAUSED")
    hostile, none, failure, plain = (client.post(f"fox {number}").json() for number in range(4))
    assert (hostile["request_id"], hostile["status"]) == ("../../admin", "IN_PROGRESS")
    assert "queue_position" not in hostile
    assert "request_id" not in none
    assert (failure["request_id"], failure["status"]) == (None, "FAILURE")
    assert emulator.account()["totals"]["posts_accepted"] == 4
    words = [client.status(plain["request_id"]).json()["status"] for _ in range(2)]
    assert words == ["PAUSED", "IN_QUEUE"]


def test_one_request_can_bring_its_own_faults(start: Start) -> None:
    emulator, client = start(faults=["html on=status"])
    with pytest.raises(requests.ConnectionError):
        client.post(headers={"X-Emulator-Fault": "lost-reply"})
    assert client.post().status_code == 200
    request_id = client.post(headers={"X-Emulator-Fault": "job failure=refused"}).json()["request_id"]
    assert client.result(request_id).status_code == 422
    assert client.call("GET", f"/fal-ai/flux/requests/{request_id}/status").status_code == 502
    own = client.call(
        "GET",
        f"/fal-ai/flux/requests/{request_id}/status",
        headers={"X-Emulator-Fault": '{"fault": "server-error", "status": 503}'},
    )
    assert (own.status_code, emulator.requests()[-1]["fault"]) == (503, "server-error")
    media = client.call("GET", f"/files/{request_id}/x.png", key=None, headers={"X-Emulator-Fault": "empty"})
    assert (media.status_code, media.content) == (404, b"")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("odd", "There is no fault"),
        ("html on=result", "holds for it alone"),
        ("job port=1", "A job has no port"),
        ("", "There is no fault"),
    ],
)
def test_a_wrong_rule_of_a_request_is_told_and_nothing_is_carried_out(
    start: Start, words: str, says: str
) -> None:
    emulator, client = start()
    reply = client.post(headers={"X-Emulator-Fault": words})
    assert reply.status_code == 400
    assert says in reply.json()["error"]["message"]
    assert emulator.account()["totals"]["posts_accepted"] == 0


def test_a_request_can_bring_two_rules_in_two_headers(start: Start) -> None:
    emulator, client = start()
    host, port = emulator.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            f"POST /fal-ai/{PICTURE} HTTP/1.1\r\nHost: x\r\nAuthorization: Key x\r\nContent-Length: 2\r\n"
            "X-Emulator-Fault: job stuck=true\r\nX-Emulator-Fault: lost-reply\r\n\r\n{}".encode()
        )
        assert connection.recv(100) == b""
    [job] = emulator.account()["jobs"]
    assert client.status(job["request_id"]).json()["status"] == "IN_QUEUE"
    other = client.status(job["request_id"])
    assert other.status_code == 202
    assert (
        client.call(
            "GET",
            f"/fal-ai/flux/requests/{job['request_id']}/status",
            headers={"X-Emulator-Fault": "job stuck=true"},
        ).status_code
        == 400
    )
