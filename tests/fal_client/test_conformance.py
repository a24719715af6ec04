"""
The unmodified fal-client from PyPI against the emulator.

It reads its environment when it is imported and speaks https only, so each test runs it in a process of its own, with
its hosts pointed at an emulator with TLS. It proves the emulator: what a client that was made for the real queue
understands is the queue's language. And it is the measure for what this provider does better.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from airflow_provider_uniapi_fal.emulator.running import Emulator, running_emulator
from airflow_provider_uniapi_fal.exceptions import FalSubmitOutcomeUnknown
from airflow_provider_uniapi_fal.hooks.fal import FalHook

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = "fal-ai/flux-pro/kontext/text-to-image"
ARGUMENTS = {"prompt": "a fox", "image_size": {"width": 64, "height": 48}}
# What fal-client follows: addresses that lead back here, and one for the cancel, which UniAPI does not document.
AS_FAL = {"tls": True, "urls": "gateway", "cancel_url": "present"}

FOLLOW_SYNC = """
handle = fal_client.submit(MODEL, arguments=ARGUMENTS)
events = list(handle.iter_events(with_logs=True, interval=0.02))
result = handle.get()
say(id=handle.request_id, words=[type(each).__name__ for each in events], first=vars(events[0]),
    logs=len(events[-1].logs), metrics=events[-1].metrics, result=result)
"""
FOLLOW_ASYNC = """
async def main():
    handle = await fal_client.submit_async(MODEL, arguments=ARGUMENTS)
    events = [each async for each in handle.iter_events(with_logs=True, interval=0.02)]
    result = await handle.get()
    say(id=handle.request_id, words=[type(each).__name__ for each in events], first=vars(events[0]),
        logs=len(events[-1].logs), metrics=events[-1].metrics, result=result)
asyncio.run(main())
"""
SUBSCRIBE_SYNC = """
say(result=fal_client.subscribe(MODEL, arguments=ARGUMENTS))
"""
SUBSCRIBE_ASYNC = """
say(result=asyncio.run(fal_client.subscribe_async(MODEL, arguments=ARGUMENTS)))
"""
CANCEL_SYNC = """
handle = fal_client.submit(MODEL, arguments=ARGUMENTS)
before = type(handle.status()).__name__
handle.cancel()
again = fal_client.SyncClient().get_handle(MODEL, handle.request_id)
after = again.status()
try:
    again.get()
except fal_client.FalClientHTTPError as error:
    say(before=before, after=type(after).__name__, error_type=after.error_type, code=error.status_code)
"""
CANCEL_ASYNC = """
async def main():
    handle = await fal_client.submit_async(MODEL, arguments=ARGUMENTS)
    before = type(await handle.status()).__name__
    await handle.cancel()
    again = await fal_client.AsyncClient().get_handle(MODEL, handle.request_id)
    after = await again.status()
    try:
        await again.get()
    except fal_client.FalClientHTTPError as error:
        say(before=before, after=type(after).__name__, error_type=after.error_type, code=error.status_code)
asyncio.run(main())
"""
RAISES = """
try:
    fal_client.subscribe(MODEL, arguments=ARGUMENTS)
except Exception as error:
    say(error=type(error).__name__, text=str(error), code=getattr(error, "status_code", None))
"""


def fal_client(emulator: Emulator, code: str, *, before: str = "", timeout: float = 60) -> dict[str, Any]:
    """Run code that uses fal-client against an emulator, and return what it says."""
    assert emulator.ca_file is not None
    host = emulator.url.removeprefix("https://").replace("127.0.0.1", "localhost")
    prelude = (
        "import asyncio, json\n"
        f"{before}\n"
        "import fal_client\n"
        f"MODEL, ARGUMENTS = {MODEL!r}, {ARGUMENTS!r}\n"
        "def say(**words): print(json.dumps(words))\n"
    )
    environment = {
        **os.environ,
        "FAL_KEY": "any:thing",
        "FAL_RUN_HOST": host,
        "FAL_QUEUE_RUN_HOST": host,
        "SSL_CERT_FILE": emulator.ca_file,
    }
    ended = subprocess.run(
        [sys.executable, "-c", prelude + code],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment,
    )
    assert ended.returncode == 0, ended.stderr
    said: dict[str, Any] = json.loads(ended.stdout)
    return said


@pytest.fixture
def emulator() -> Iterator[Emulator]:
    with running_emulator(**AS_FAL, queue_seconds=0.4, run_seconds=0.6) as emulator:
        yield emulator


@pytest.mark.parametrize("code", [FOLLOW_SYNC, FOLLOW_ASYNC], ids=["sync", "async"])
def test_it_submits_follows_and_fetches(emulator: Emulator, code: str) -> None:
    said = fal_client(emulator, code)
    order = [word for index, word in enumerate(said["words"]) if word not in said["words"][:index]]
    assert order == ["Queued", "InProgress", "Completed"]
    assert said["first"] == {"position": 0}
    assert said["logs"] > 3
    assert said["metrics"]["inference_time"] == pytest.approx(0.6)
    image = said["result"]["images"][0]
    assert (image["width"], image["height"]) == (64, 48)
    [job] = emulator.account()["jobs"]
    assert (job["request_id"], "fal-ai/" + job["model"]) == (said["id"], MODEL)
    assert job["calls"]["result"] == 1


@pytest.mark.parametrize("code", [SUBSCRIBE_SYNC, SUBSCRIBE_ASYNC], ids=["sync", "async"])
def test_it_subscribes(emulator: Emulator, code: str) -> None:
    assert fal_client(emulator, code)["result"]["prompt"] == "a fox"
    assert emulator.account()["totals"]["posts_accepted"] == 1


@pytest.mark.parametrize("code", [CANCEL_SYNC, CANCEL_ASYNC], ids=["sync", "async"])
def test_it_cancels_and_finds_its_job_by_the_id_alone(code: str) -> None:
    with running_emulator(**AS_FAL, queue_seconds=60.0) as emulator:
        said = fal_client(emulator, code)
        assert said == {
            "before": "Queued",
            "after": "Completed",
            "error_type": "client_cancelled",
            "code": 499,
        }
        [job] = emulator.account()["jobs"]
        assert (job["cancelled"], job["calls"]["cancel"]) == (True, 1)


@pytest.mark.parametrize(
    ("settings", "error", "code"),
    [
        ({"failure": "refused"}, "FalClientHTTPError", 422),
        ({"failure": "completed-error", "error_type": "runner_server_error"}, "FalClientHTTPError", 500),
        ({"failure": "status-failure", "run_seconds": 0.3}, "ValueError", None),
        ({"faults": ["turned-away because=locked"]}, "FalClientHTTPError", 403),
        ({"faults": ["html on=result status=200"]}, "JSONDecodeError", None),
        # The gateway's documented reply has no cancel_url: the job is paid for and lost.
        ({"cancel_url": "missing"}, "KeyError", None),
    ],
)
def test_it_fails_as_it_does_at_the_real_queue(
    settings: dict[str, Any], error: str, code: int | None
) -> None:
    with running_emulator(**{**AS_FAL, "queue_seconds": 0.0, "run_seconds": 0.0, **settings}) as emulator:
        said = fal_client(emulator, RAISES)
        assert (said["error"], said["code"]) == (error, code)
        assert emulator.account()["totals"]["posts_received"] == 1


LOST = """
import time
started = time.monotonic()
async def main():
    try:
        await fal_client.submit_async(MODEL, arguments=ARGUMENTS)
    except Exception as error:
        say(error=type(error).__name__, seconds=time.monotonic() - started)
asyncio.run(main())
"""


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
def test_a_lost_reply_makes_it_post_ten_times_with_growing_pauses(reset: bool) -> None:
    """Its pauses add up to 25 to 71 s, so they are counted and not waited for; all else is as installed."""
    before = "import time; pauses = []; time.sleep = pauses.append"
    code = RAISES.replace("say(", "say(pauses=pauses, ")
    with running_emulator(**AS_FAL, faults=[{"fault": "lost-reply", "reset": reset}]) as emulator:
        said = fal_client(emulator, code, before=before)
        assert said["error"] in ("RemoteProtocolError", "ReadError")
        assert len(said["pauses"]) == 9
        for number, pause in enumerate(said["pauses"]):
            assert 0.05 * 2**number <= pause <= 0.15 * 2**number
        totals = emulator.account()["totals"]
        assert (totals["posts_received"], totals["posts_accepted"]) == (10, 10)


def test_one_lost_reply_is_paid_for_twice_as_installed() -> None:
    with running_emulator(
        **AS_FAL, queue_seconds=0.0, run_seconds=0.0, faults=["lost-reply times=1"]
    ) as emulator:
        assert fal_client(emulator, SUBSCRIBE_SYNC)["result"]["prompt"] == "a fox"
        [paid] = emulator.account()["posts_by_arguments"].values()
        assert paid["posts"] == 2


@pytest.mark.timeout(150)
def test_the_same_lost_reply_is_ten_posts_of_fal_client_and_one_of_this_provider(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Side by side, nothing shortened: fal-client's async client waits 13 to 37 s in all, ours not at all."""
    with running_emulator(**AS_FAL, faults=["lost-reply"]) as emulator:
        said = fal_client(emulator, LOST, timeout=120)
        assert said["error"] in ("RemoteProtocolError", "ReadError")
        assert emulator.account()["totals"]["posts_accepted"] == 10
        assert said["seconds"] > 13

        connection = {"conn_type": "uniapi_fal", "host": emulator.url, "password": "any-key"}
        extra = {"extra": {"ca_bundle": str(emulator.ca_file)}}
        monkeypatch.setenv("AIRFLOW_CONN_FAL_DEFAULT", json.dumps({**connection, **extra}))
        with pytest.raises(FalSubmitOutcomeUnknown):
            FalHook().submit(MODEL, ARGUMENTS)
        assert emulator.account()["totals"]["posts_accepted"] == 11
        with pytest.raises(FalSubmitOutcomeUnknown):
            asyncio.run(FalHook().asubmit(MODEL, ARGUMENTS))
        assert emulator.account()["totals"]["posts_accepted"] == 12
