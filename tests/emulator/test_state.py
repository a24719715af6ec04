from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import requests

from airflow_provider_uniapi_fal.emulator.running import EmulatorProcess, running_emulator
from airflow_provider_uniapi_fal.emulator.state_file import HEADER, StateFile
from tests.emulator.client import Client

if TYPE_CHECKING:
    from tests.emulator.conftest import Start


@pytest.fixture
def state(tmp_path: Path) -> str:
    return str(tmp_path / "state.jsonl")


def test_everything_known_survives_a_restart(state: str) -> None:
    """Every kind of job, every count and every request is the same to the next emulator."""
    settings = {"queue_seconds": 0.0, "run_seconds": 600.0, "concurrency": 2, "state": state}
    rules = [
        "job match=done run_seconds=0",
        "job match=stuck stuck=true",
        "job match=ended cancel=already-completed",
    ]
    with running_emulator(**settings, faults=rules) as emulator:
        client = Client(emulator.url)
        ids = {
            name: client.submit(name, note="雪 \ud800")
            for name in ("done", "run", "signalled", "waiting", "removed", "stuck", "ended")
        }
        for name in ("signalled", "removed", "ended"):
            client.cancel(ids[name])
        media = client.result(ids["done"]).json()["images"][0]["url"]
        picture = client.call("GET", media, key=None).content
        client.call("GET", "/nowhere")
        emulator.add_fault("lost-reply match=storm times=1")
        with pytest.raises(requests.ConnectionError):
            client.post("storm", headers={"X-Fal-No-Retry": "1"})
        bodies = {name: client.status(each).json() for name, each in ids.items()}
        account, requests_seen = emulator.account(), emulator.requests()
        client.close()
    with running_emulator(**settings, faults=rules) as emulator:
        assert (emulator.account(), emulator.requests()) == (account, requests_seen)
        client = Client(emulator.url)
        assert {name: client.status(each).json() for name, each in ids.items()} == bodies
        moved = media.replace(media[: media.index("/files/")], emulator.url)
        assert client.call("GET", moved, key=None).content == picture
        assert client.submit("run") not in ids.values()
        assert emulator.requests()[-1]["number"] > requests_seen[-1]["number"]
        client.close()


def test_without_a_state_nothing_is_kept_or_written(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _, client = start()
    client.submit()
    assert list(tmp_path.iterdir()) == []


def test_used_up_rules_stay_used_up_unless_the_emulator_is_started_with_others(state: str) -> None:
    first = ["html times=1", "empty on=status"]

    def rules(faults: list[str], act: Callable[[Client], object] = lambda client: None) -> list[str]:
        with running_emulator(state=state, faults=faults) as emulator:
            client = Client(emulator.url)
            act(client)
            left = client.call("GET", f"{emulator.url}/_emulator/faults").json()
            client.close()
            return [rule["fault"] for rule in left]

    assert rules(first) == ["html", "empty"]
    assert rules(first, lambda client: client.post()) == ["empty"]
    assert rules(first) == ["empty"]
    assert rules(["slow"]) == ["slow"]
    assert rules(first, lambda client: client.call("POST", "/_emulator/reset")) == ["html", "empty"]
    assert rules(first) == ["html", "empty"]


def test_a_reset_forgets_the_state_too(state: str) -> None:
    with running_emulator(state=state) as emulator:
        client = Client(emulator.url)
        client.submit()
        emulator.reset()
        client.submit("another")
        client.close()
    with running_emulator(state=state) as emulator:
        [job] = emulator.account()["jobs"]
        assert job["prompt"] == "another"
        assert len(emulator.requests()) == 1


def test_a_line_cut_off_by_the_end_never_happened(state: str) -> None:
    with running_emulator(state=state, queue_seconds=60.0) as emulator:
        client = Client(emulator.url)
        ids = [client.submit(f"fox {number}") for number in range(2)]
        client.close()
    whole = Path(state).read_bytes()
    for cut in (5, len(HEADER), len(HEADER) + 1, whole.rindex(b'{"event": "job"') + 20):
        Path(state).write_bytes(whole[:cut])
        with running_emulator(state=state, queue_seconds=60.0) as emulator:
            known = [job["request_id"] for job in emulator.account()["jobs"]]
            assert known == (ids[:1] if cut > 1000 else [])
            client = Client(emulator.url)
            client.submit("after")
            client.close()
        with running_emulator(state=state) as emulator:
            assert len(emulator.account()["jobs"]) == len(known) + 1


def test_a_foreign_file_is_refused_and_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "letter.txt"
    file.write_text("Dear friend")
    with pytest.raises(OSError, match="is no state file"), running_emulator(state=str(file)):
        pass
    assert file.read_text() == "Dear friend"


def test_two_emulators_do_not_share_a_state(state: str) -> None:
    with (
        running_emulator(state=state),
        pytest.raises(OSError, match="in use by another emulator"),
        running_emulator(state=state),
    ):
        pass


def test_a_killed_emulator_loses_no_accepted_post() -> None:
    """Killed at any moment, it knows every job whose reply was received, and no job twice."""
    with EmulatorProcess(queue_seconds=60.0) as emulator:
        received: list[str] = []
        sent: list[int] = []
        numbers = itertools.count()
        over = threading.Event()

        def post() -> None:
            client = Client(emulator.url)
            while not over.is_set():
                number = next(numbers)
                sent.append(number)
                try:
                    received.append(client.submit(f"fox {number}"))
                except requests.RequestException:
                    over.wait(0.01)  # it is down for a while
            client.close()

        threads = [threading.Thread(target=post) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            for round_number in range(1, 4):
                enough, deadline = len(received) + 40 * round_number, time.monotonic() + 30
                while len(received) < enough:
                    assert time.monotonic() < deadline
                emulator.kill()
                emulator.restart()
        finally:
            over.set()
            for thread in threads:
                thread.join(30)
        account = emulator.account()
        known = [job["request_id"] for job in account["jobs"]]
        assert len(known) == len(set(known))
        assert set(received) <= set(known)
        totals = account["totals"]
        assert totals["posts_accepted"] == len(known) <= totals["posts_received"] <= len(sent)
        # At each kill every client had at most one post under way.
        assert len(known) - len(received) <= 3 * len(threads)


def test_a_post_under_way_at_the_kill_is_accepted_and_was_not_answered() -> None:
    with EmulatorProcess(faults=["slow seconds=60"]) as emulator:
        client = Client(emulator.url)

        def post_in_vain() -> None:
            with pytest.raises(requests.ConnectionError):
                client.post()

        waiting = threading.Thread(target=post_in_vain)
        waiting.start()
        deadline = time.monotonic() + 20
        while not emulator.account()["jobs"]:
            assert time.monotonic() < deadline
        emulator.restart()
        waiting.join(20)
        client.close()
        totals = emulator.account()["totals"]
        assert (totals["posts_received"], totals["posts_accepted"]) == (1, 1)
        assert totals["replies_by_status"] == {"closed": 1}
        [seen] = emulator.requests()
        assert (seen["operation"], seen["status"]) == ("submit", None)


def test_a_killed_emulator_answers_nobody_until_it_is_started_again_at_the_same_place() -> None:
    with EmulatorProcess(queue_seconds=0.0, run_seconds=0.0) as emulator:
        client, url, pid = Client(emulator.url), emulator.url, emulator.pid
        request_id = client.submit()
        client.close()  # before the server does, so that no connection of its own is left to hold the port
        emulator.kill()
        with socket.socket() as thief, pytest.raises(OSError, match="in use"):
            thief.bind(("127.0.0.1", int(url.rpartition(":")[2])))
        for _ in range(3):
            with pytest.raises(requests.ConnectionError, match="Connection refused"):
                client.status(request_id)
        emulator.kill()
        emulator.restart()
        assert (emulator.url, emulator.pid != pid) == (url, True)
        assert client.status(request_id).json()["status"] == "COMPLETED"
        assert client.result(request_id).status_code == 200
        client.close()
    emulator.stop()


def test_time_goes_on_while_the_emulator_is_down() -> None:
    with EmulatorProcess(queue_seconds=0.0, run_seconds=0.5) as emulator:
        client = Client(emulator.url)
        request_id = client.submit()
        emulator.restart()
        client.wait_for(request_id, "COMPLETED")
        [job] = emulator.account()["jobs"]
        assert job["finished_at"] - job["started_at"] == pytest.approx(0.5)
        client.close()


def test_a_process_can_keep_its_state_where_asked(state: str) -> None:
    for posts in (1, 2):
        with EmulatorProcess(state=state) as emulator:
            client = Client(emulator.url)
            client.submit()
            client.close()
            assert emulator.account()["totals"]["posts_accepted"] == posts


def test_a_state_file_takes_far_more_than_a_thousand_posts_a_second(state: str) -> None:
    state_file = StateFile(state)
    state_file.read()
    event: dict[str, Any] = {
        "number": 1,
        "model": "flux/dev",
        "body": "x" * 500,
        "behaviour": {"a": [1] * 30},
    }
    started = time.perf_counter()
    for _ in range(3000):  # a post is three lines
        state_file.write("job", **event)
    took = time.perf_counter() - started
    state_file.close()
    assert took < 1.0
