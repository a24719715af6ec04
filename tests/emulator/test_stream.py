from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
import requests

from tests.emulator.client import KEY

if TYPE_CHECKING:
    from tests.emulator.conftest import Start


def stream(client: Any, request_id: str, *, seconds: float = 20.0) -> tuple[requests.Response, list[bytes]]:
    """Read a stream to its end; return the answer and its lines."""
    reply = requests.get(
        f"{client.url}/fal-ai/flux/requests/{request_id}/status/stream",
        headers={"Authorization": f"Key {KEY}"},
        stream=True,
        timeout=seconds,
    )
    return reply, [line for line in reply.iter_lines() if line]


def words(lines: list[bytes]) -> list[str]:
    return [json.loads(line[6:])["status"] for line in lines if line.startswith(b"data: ")]


def test_each_change_of_the_status_is_an_event_and_the_last_one_ends_the_stream(start: Start) -> None:
    emulator, client = start(queue_seconds=0.3, run_seconds=0.4, stream="offered")
    began = time.monotonic()
    reply, lines = stream(client, client.submit())
    assert (reply.status_code, reply.headers["Content-Type"]) == (200, "text/event-stream")
    assert words(lines) == ["IN_QUEUE", "IN_PROGRESS", "COMPLETED"]
    assert 0.6 < time.monotonic() - began < 5
    assert [each["operation"] for each in emulator.requests()] == ["submit", "stream"]


def test_a_comment_keeps_a_stream_open(start: Start) -> None:
    _, client = start(run_seconds=1.2, comment_seconds=0.1, stream="offered")
    _, lines = stream(client, client.submit())
    assert [line for line in lines if line.startswith(b":")]
    _, client = start(run_seconds=1.2, comment_seconds=0.1, stream="no-comments")
    _, lines = stream(client, client.submit())
    assert not [line for line in lines if line.startswith(b":")]


@pytest.mark.parametrize(("settings", "code"), [({}, 404), ({"stream": "not-allowed"}, 405)])
def test_a_gateway_may_not_stream(start: Start, settings: dict[str, str], code: int) -> None:
    _, client = start(**settings)
    assert stream(client, client.submit())[0].status_code == code


def test_a_proxy_that_buffers_sends_all_events_at_the_end(start: Start) -> None:
    _, client = start(run_seconds=0.5, stream="buffered")
    request_id = client.submit()
    with pytest.raises(requests.ReadTimeout):
        stream(client, request_id, seconds=0.2)
    assert words(stream(client, request_id)[1])[-1:] == ["COMPLETED"]


def test_a_stream_can_be_cut_off_or_fall_silent_after_the_first_event(start: Start) -> None:
    _, client = start(run_seconds=60.0, stream="cut")
    assert words(stream(client, client.submit())[1]) == ["IN_PROGRESS"]
    _, client = start(run_seconds=0.1, stream="silent")
    with pytest.raises(requests.ConnectionError):
        stream(client, client.submit(), seconds=0.5)


def test_a_client_that_leaves_its_stream_is_no_error(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    emulator, client = start(run_seconds=60.0, stream="offered", comment_seconds=0.02)
    with requests.get(
        f"{client.url}/fal-ai/flux/requests/{client.submit()}/status/stream",
        headers={"Authorization": f"Key {KEY}"},
        stream=True,
        timeout=20,
    ) as reply:
        next(reply.iter_content(1))
    give_up = time.monotonic() + 20
    while "closed" not in emulator.account()["totals"]["replies_by_status"] and time.monotonic() < give_up:
        time.sleep(0.01)
    assert emulator.account()["totals"]["replies_by_status"]["closed"] == 1
    assert [record.getMessage() for record in caplog.records] == []


def test_every_answer_can_be_late(start: Start) -> None:
    _, client = start(latency=0.2, latency_spread=0.1)
    began = time.monotonic()
    client.status(client.submit())
    assert time.monotonic() - began >= 0.36
