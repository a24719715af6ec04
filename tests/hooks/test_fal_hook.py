"""The hook against the emulator: its verbs and their twins, and that nothing is paid for twice."""

from __future__ import annotations

import asyncio
import inspect
import json
import pickle
import re
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException, AirflowSensorTimeout

from airflow_provider_uniapi_fal import exceptions
from airflow_provider_uniapi_fal.emulator.running import Emulator, running_emulator
from airflow_provider_uniapi_fal.exceptions import (
    FalAuthError,
    FalBalanceError,
    FalContentRefused,
    FalError,
    FalInputError,
    FalJobCancelled,
    FalJobFailed,
    FalProtocolError,
    FalRateLimited,
    FalResultExpired,
    FalSubmitOutcomeUnknown,
    error_of,
)
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.protocol.cadence import Experience
from airflow_provider_uniapi_fal.protocol.dialects.base import CancelOutcome, Submitted
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult, JobState
from airflow_provider_uniapi_fal.protocol.watching import WaitMore, Watch
from airflow_provider_uniapi_fal.reporting import failure_in_xcom
from tests.fakes import handle
from tests.transport.servers import free_port

KEY = "sk-test-0123456789"
MODEL = "flux/dev"
ARGUMENTS = {"prompt": "a fox", "image_size": {"width": 64, "height": 48}}

Connect = Callable[..., FalHook]
Start = Callable[..., Emulator]


@pytest.fixture
def start() -> Iterator[Start]:
    """Start emulators whose jobs end at once unless said otherwise."""
    with ExitStack() as stack:

        def begin(**settings: Any) -> Emulator:
            given = {"queue_seconds": 0.0, "run_seconds": 0.0, "key": KEY, **settings}
            return stack.enter_context(running_emulator(**given))

        yield begin


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Return a hook of a connection in the environment, in its JSON form."""

    def with_connection(host: str | None, *, key: str = KEY, extra: Any = None, **fields: Any) -> FalHook:
        connection = {
            "conn_type": "uniapi_fal",
            "host": host,
            "password": key,
            "extra": {"connect_timeout": 5, "read_timeout": 10} if extra is None else extra,
            **fields,
        }
        monkeypatch.setenv("AIRFLOW_CONN_FAL_DEFAULT", json.dumps(connection))
        return FalHook()

    return with_connection


@pytest.fixture
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the pauses between attempts be none."""
    monkeypatch.setattr("airflow_provider_uniapi_fal.protocol.retrying.backoff", lambda attempt, jitter: 0.0)


def both(hook: FalHook, verb: str, *args: Any, **kwargs: Any) -> list[Any]:
    """Call a verb, then its twin on an event loop; an error counts as what comes back."""
    found: list[Any] = []
    for call in (getattr(hook, verb), lambda *a, **k: asyncio.run(getattr(hook, f"a{verb}")(*a, **k))):
        try:
            found.append(call(*args, **kwargs))
        except FalError as error:
            found.append(error)
    return found


def same_error(hook: FalHook, verb: str, *args: Any, **kwargs: Any) -> FalError:
    """Return the error that both raise."""
    one, other = both(hook, verb, *args, **kwargs)
    assert isinstance(one, FalError), repr(one)
    assert type(one) is type(other)
    # What the libraries under the two call a fault of the network may differ.
    fates = [
        replace(e.failure, request_id=None, what=re.sub(r"\(.*\)", "", e.failure.what)) for e in (one, other)
    ]
    assert fates[0] == fates[1]
    return one


def posts(emulator: Emulator) -> int:
    return int(emulator.account()["totals"]["posts_received"])


def accepted(emulator: Emulator) -> int:
    return int(emulator.account()["totals"]["posts_accepted"])


def submit(hook: FalHook, prompt: str = "a fox", **options: Any) -> JobHandle:
    found = hook.submit(MODEL, {**ARGUMENTS, "prompt": prompt}, **options)
    assert isinstance(found, Submitted)
    return found.handle


def wait(hook: FalHook, handle: JobHandle) -> object:
    """Follow a job to its end in rounds, as the sensor does."""
    watch = Watch(handle, deadline=time.time() + 20, poke_interval=0.02)
    while isinstance(end := hook.one_round(watch), WaitMore):
        time.sleep(end.seconds)
    return end


# --- connections --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", ["", "/gw"])
def test_a_job_goes_all_the_way_with_a_connection_as_json(
    start: Start, connect: Connect, prefix: str
) -> None:
    emulator = start(base_prefix=prefix)
    hook = connect(f"{emulator.url}{prefix}/fal-ai")
    result = wait(hook, submit(hook))
    assert isinstance(result, JobResult)
    assert (result.media[0].width, result.media[0].height) == (64, 48)
    assert posts(emulator) == 1


@pytest.mark.parametrize(
    ("prefix", "form"),
    [
        ("", "uniapi-fal://:{key}@127.0.0.1:{port}/http"),
        ("", "uniapi-fal://:{key}@http%3A%2F%2F127.0.0.1:{port}"),
        ("/gw", "uniapi-fal://:{key}@http%3A%2F%2F127.0.0.1%3A{port}%2Fgw/"),
        ("/gw", "uniapi-fal://:{key}@http%3A%2F%2F127.0.0.1:{port}/gw?read_timeout=10"),
    ],
)
def test_a_connection_as_uri_leads_to_the_same_gateway(
    start: Start, monkeypatch: pytest.MonkeyPatch, prefix: str, form: str
) -> None:
    emulator = start(base_prefix=prefix)
    port = emulator.url.rpartition(":")[2]
    monkeypatch.setenv("AIRFLOW_CONN_MY_GATEWAY", form.format(key=KEY, port=port))
    hook = FalHook("my_gateway")
    assert submit(hook).fal_conn_id == "my_gateway"
    assert hook.account.base_url == f"{emulator.url}{prefix}"


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"key": ""}, FalAuthError, "no API key"),
        ({"key": "sk 1"}, FalAuthError, "white space"),
        ({"host": "ftp://x"}, FalInputError, "host"),
        ({"extra": "not JSON"}, FalInputError, "extra"),
        ({"extra": [1]}, FalInputError, "extra"),
        ({"extra": {"time_out": 5}}, FalInputError, "time_out"),
    ],
)
def test_a_wrong_connection_is_told_in_every_verb_before_anything_is_sent(
    connect: Connect, fields: dict[str, Any], error: type[FalError], says: str
) -> None:
    hook = connect(**{"host": "http://127.0.0.1:9", **fields})
    handle = JobHandle("fal", MODEL, "r", "/f/requests/r/status", "/f/requests/r", None, "fal_default", 0.0)
    calls: dict[str, tuple[Any, ...]] = {"submit": (MODEL, {}), "status": (handle,), "result": (handle,)}
    for verb, args in calls.items():
        found = same_error(hook, verb, *args)
        assert type(found) is error
        assert says in str(found)
    assert hook.test_connection()[0] is False
    assert says in hook.test_connection()[1]


def test_the_hook_is_what_the_provider_info_says() -> None:
    assert (FalHook.conn_type, FalHook.conn_name_attr, FalHook.default_conn_name) == (
        "uniapi_fal",
        "fal_conn_id",
        "fal_default",
    )


def test_each_verb_has_a_twin_with_the_same_arguments() -> None:
    for verb in ("submit", "status", "result", "cancel"):
        one, twin = (inspect.signature(getattr(FalHook, name)) for name in (verb, f"a{verb}"))
        assert one == twin


def test_the_key_is_read_again_when_asked(start: Start, connect: Connect) -> None:
    emulator = start()
    hook = connect(emulator.url, key="sk-outdated")
    assert hook.account.key == "sk-outdated"
    connect(emulator.url)

    async def read() -> tuple[str, str]:
        return (await hook.aaccount()).key, (await hook.aaccount(again=True)).key

    assert asyncio.run(read()) == ("sk-outdated", KEY)


# --- the verbs and their twins ------------------------------------------------------------------------------


@pytest.mark.parametrize("urls", ["fal", "gateway", "missing", "foreign"])
@pytest.mark.parametrize("model", ["flux/dev", "fal-ai/flux/dev", "bytedance/seedream/v4/text-to-image"])
def test_each_verb_and_its_twin_give_equal_values(
    start: Start, connect: Connect, urls: str, model: str
) -> None:
    emulator = start(urls=urls, cancel_url="null", metrics="missing")
    hook = connect(emulator.url)
    one, other = both(hook, "submit", model, ARGUMENTS)
    assert isinstance(one, Submitted)
    blank = {"request_id": "", "submitted_at": 0.0}
    changed = [
        replace(s.handle, **blank, status_path="", response_path="", cancel_path="") for s in (one, other)
    ]
    assert changed[0] == changed[1]
    status, astatus = both(hook, "status", one.handle, logs=True)
    assert status == astatus
    assert status.state is JobState.SUCCEEDED
    result, aresult = both(hook, "result", one.handle)
    assert result == aresult
    assert result.media[0].content_type is not None
    cancelled, acancelled = both(hook, "cancel", one.handle)
    assert cancelled is acancelled
    assert accepted(emulator) == 2


def test_a_pending_job_is_told_with_200_and_202(start: Start, connect: Connect) -> None:
    for code in (200, 202):
        hook = connect(start(stuck=True, pending_code=code).url)
        one, other = both(hook, "status", submit(hook))
        assert one == other
        assert (one.state, one.queue_position) == (JobState.PENDING, 0)
        assert isinstance(same_error(hook, "result", submit(hook)), FalProtocolError)


@pytest.mark.parametrize(
    ("cancel", "outcome"),
    [
        ("honest", CancelOutcome.REMOVED),
        ("requested", CancelOutcome.REQUESTED),
        ("already-completed", CancelOutcome.ALREADY_COMPLETED),
        ("not-found", CancelOutcome.NOT_FOUND),
        ("not-allowed", CancelOutcome.UNSUPPORTED),
    ],
)
def test_a_cancel_says_what_became_of_it(
    start: Start, connect: Connect, cancel: str, outcome: CancelOutcome
) -> None:
    hook = connect(start(stuck=True, cancel=cancel).url)
    assert hook.cancel(submit(hook)) is outcome
    assert asyncio.run(hook.acancel(submit(hook))) is outcome


def test_a_cancelled_job_ends_as_cancelled(start: Start, connect: Connect) -> None:
    hook = connect(start(stuck=True).url)
    handle = submit(hook)
    hook.cancel(handle)
    assert hook.status(handle).state is JobState.CANCELLED
    end = wait(hook, handle)
    assert isinstance(end, Failure)
    assert isinstance(error_of(end), FalJobCancelled)


def test_options_reach_the_gateway(start: Start, connect: Connect) -> None:
    emulator = start()
    hook = connect(emulator.url)
    submit(hook, priority="low", start_timeout=30, store_io=False, max_queue_length=7)
    (request,) = emulator.requests()
    sent = {name.lower(): value for name, value in request["fal_headers"].items()}
    assert sent == {"x-fal-queue-priority": "low", "x-fal-request-start-timeout": "30", "x-fal-store-io": "0"}
    assert request["query"] == "fal_max_queue_length=7"


def test_a_handle_is_built_from_what_a_user_has(start: Start, connect: Connect) -> None:
    hook = connect(start(urls="fal").url)
    handle = submit(hook)
    by_url = hook.handle_of(status_url=f"https://queue.fal.run/fal-ai{handle.status_path}")
    by_id = hook.handle_of(request_id=handle.request_id, model="fal-ai/flux/dev")
    assert hook.status(by_url) == hook.status(by_id) == hook.status(handle)
    assert hook.urls(handle)["status_url"] == f"{hook.account.base_url}/fal-ai{handle.status_path}"
    assert hook.handle_of(status_url=hook.urls(handle)["status_url"]).status_path == handle.status_path
    with pytest.raises(FalInputError):
        hook.handle_of(request_id="../x", model=MODEL)


# --- money --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fault",
    [
        "lost-reply",
        "server-error accepted=true",
        "server-error status=500",
        "html",
        "html status=200 accepted=true",
        "empty",
        "lost-request",
    ],
)
@pytest.mark.parametrize("twin", [False, True])
def test_a_submit_whose_outcome_is_unknown_is_posted_once(
    start: Start, connect: Connect, fault: str, twin: bool
) -> None:
    emulator = start(faults=[f"{fault} on=submit"])
    hook = connect(emulator.url)
    with pytest.raises(FalSubmitOutcomeUnknown) as caught:
        asyncio.run(hook.asubmit(MODEL, ARGUMENTS)) if twin else hook.submit(MODEL, ARGUMENTS)
    assert posts(emulator) == 1
    assert (caught.value.billed, caught.value.may_run) == ("maybe", True)
    assert isinstance(caught.value, AirflowFailException), "Airflow must not retry it"
    says = str(caught.value)
    assert "may still be running" in says
    assert "may have been billed" in says
    assert "does not submit" in says


def test_a_reply_slower_than_the_time_out_is_posted_once(start: Start, connect: Connect) -> None:
    emulator = start(faults=["slow on=submit seconds=3"])
    error = same_error(connect(emulator.url, extra={"read_timeout": 0.3}), "submit", MODEL, ARGUMENTS)
    assert isinstance(error, FalSubmitOutcomeUnknown)
    assert posts(emulator) == 2, "one for the verb, one for its twin"


@pytest.mark.parametrize("form", ["seconds", "date"])
@pytest.mark.parametrize("twin", [False, True])
def test_a_429_is_waited_out_and_accepted_once(start: Start, connect: Connect, form: str, twin: bool) -> None:
    emulator = start(faults=[f"rate-limit on=submit retry_after=0.2 form={form} times=1"])
    hook = connect(emulator.url)
    found = asyncio.run(hook.asubmit(MODEL, ARGUMENTS)) if twin else hook.submit(MODEL, ARGUMENTS)
    assert isinstance(found, Submitted)
    assert (posts(emulator), accepted(emulator)) == (2, 1)


def test_a_429_that_asks_for_too_long_is_handed_to_airflow(start: Start, connect: Connect) -> None:
    emulator = start(faults=["rate-limit on=submit retry_after=900"])
    error = same_error(connect(emulator.url), "submit", MODEL, ARGUMENTS)
    assert isinstance(error, FalRateLimited)
    assert error.failure.retry_after == 900
    assert not isinstance(error, AirflowException), "Airflow may retry it"
    assert (posts(emulator), accepted(emulator)) == (2, 0)


@pytest.mark.usefixtures("no_pauses")
def test_a_gateway_that_cannot_be_reached_says_that_nothing_was_sent(connect: Connect) -> None:
    error = same_error(connect(f"http://127.0.0.1:{free_port()}"), "submit", MODEL, ARGUMENTS)
    assert isinstance(error, FalProtocolError)
    assert "nothing was sent" in str(error)
    assert "was not billed" in str(error)
    assert not error.may_run


@pytest.mark.parametrize(
    ("model", "arguments", "options", "says"),
    [
        ("", ARGUMENTS, {}, "model:"),
        (None, ARGUMENTS, {}, "model:"),
        ("flux/../admin", ARGUMENTS, {}, "model:"),
        ("https://queue.fal.run/fal-ai/flux", ARGUMENTS, {}, "model:"),
        (MODEL, "a fox", {}, "arguments:"),
        (MODEL, {"image_urls": "https://x/a.png"}, {}, "image_urls"),
        (MODEL, {"cfg": float("nan")}, {}, "cfg"),
        (MODEL, ARGUMENTS, {"priorty": "low"}, "priorty"),
        (MODEL, ARGUMENTS, {"priority": "high"}, "priority"),
    ],
)
def test_bad_input_is_refused_before_any_request(
    start: Start, connect: Connect, model: Any, arguments: Any, options: dict[str, Any], says: str
) -> None:
    emulator = start()
    error = same_error(connect(emulator.url), "submit", model, arguments, **options)
    assert isinstance(error, FalInputError)
    assert says in str(error)
    assert emulator.requests() == []


def test_a_refused_key_and_an_unknown_path_are_told_without_a_job(start: Start, connect: Connect) -> None:
    emulator = start()
    assert isinstance(
        same_error(connect(emulator.url, key="sk-wrong-key"), "submit", MODEL, ARGUMENTS), FalAuthError
    )
    elsewhere = connect(f"{emulator.url}/elsewhere")
    assert isinstance(same_error(elsewhere, "submit", MODEL, ARGUMENTS), FalInputError)
    assert accepted(emulator) == 0


@pytest.mark.parametrize(
    ("settings", "error", "billed", "fate"),
    [
        ({"failure": "refused"}, FalContentRefused, "no", "refused the content"),
        ({"failure": "result-422"}, FalInputError, "no", "refused its input"),
        ({"failure": "result-500"}, FalJobFailed, "no", "job failed"),
        ({"failure": "result-failure"}, FalJobFailed, "maybe", "job failed"),
        ({"failure": "result-error"}, FalJobFailed, "maybe", "job failed"),
        ({"failure": "completed-error"}, FalJobFailed, "no", "job failed"),
        (
            {"failure": "completed-error", "error_type": "client_cancelled"},
            FalJobCancelled,
            "maybe",
            "cancelled",
        ),
        ({"result_seconds": 0.0}, FalResultExpired, "maybe", "does not have it"),
    ],
)
def test_each_end_of_a_job_has_its_error_with_its_fate(
    start: Start, connect: Connect, settings: dict[str, Any], error: type[FalError], billed: str, fate: str
) -> None:
    hook = connect(start(**settings).url)
    handle = submit(hook, prompt="a very private prompt")
    found = same_error(hook, "result", handle)
    assert type(found) is error
    assert found.billed == billed
    assert fate in str(found)
    assert handle.request_id in str(found)
    assert "A retry" in str(found)
    assert "private" not in str(found)
    assert KEY not in repr(found.failure)


@pytest.mark.parametrize("at_once", [False, True], ids=["while it is watched", "in the reply to the submit"])
def test_a_failure_told_by_the_status_word_names_the_job(
    start: Start, connect: Connect, at_once: bool
) -> None:
    emulator = start(failure="status-failure", queue_seconds=0.0 if at_once else 0.1)
    hook = connect(emulator.url)
    try:
        end = wait(hook, submit(hook))
    except FalJobFailed as error:
        end = error.failure
    assert isinstance(end, Failure)
    assert (end.kind, end.billed) == (FailureKind.JOB_FAILED, "maybe")
    (job,) = emulator.account()["jobs"]
    assert job["request_id"] in str(end)


# --- test_connection ----------------------------------------------------------------------------------------


def test_the_test_button_costs_nothing(start: Start, connect: Connect) -> None:
    emulator = start()
    assert connect(emulator.url).test_connection() == (
        True,
        "The gateway accepted the key. Nothing was spent.",
    )
    assert {request["method"] for request in emulator.requests()} == {"GET"}
    assert posts(emulator) == 0


@pytest.mark.parametrize(
    ("path", "key", "faults", "says"),
    [
        ("", "sk-wrong-key", [], "refused the key"),
        ("/elsewhere", KEY, [], "no such gateway"),
        ("", KEY, ["server-error on=probe status=403"], "no balance"),
        ("", KEY, ["server-error on=probe status=503"], "503"),
        ("", KEY, ["lost-reply on=probe"], "cannot be reached"),
        ("", KEY, ["redirect on=probe to=https://elsewhere.invalid"], "no such gateway"),
    ],
)
def test_the_test_button_tells_what_is_wrong(
    start: Start, connect: Connect, path: str, key: str, faults: list[str], says: str
) -> None:
    ok, text = connect(start(faults=faults).url + path, key=key).test_connection()
    assert not ok
    assert says in text


def test_the_test_button_tells_a_wrong_address_from_no_network(
    connect: Connect, stays_on_loopback: list[str]
) -> None:
    ok, text = connect(f"http://127.0.0.1:{free_port()}").test_connection()
    assert not ok
    assert "nothing listens at this address" in text

    # What the system says when a name leads nowhere.
    def no_such_name(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(socket, "getaddrinfo", no_such_name)
        ok, text = connect("http://gateway.invalid").test_connection()
    assert not ok
    assert "No host of this name was found" in text
    assert not stays_on_loopback


def test_the_test_button_tells_that_nobody_answers(connect: Connect) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        ok, text = connect(host, extra={"read_timeout": 0.3}).test_connection()
    assert not ok
    assert "No answer came in time" in text


# --- the errors ---------------------------------------------------------------------------------------------


def a_failure(kind: FailureKind) -> Failure:
    return Failure(
        kind,
        what="Something happened.",
        retry_does="looks again.",
        billed="maybe",
        may_run=True,
        error_type="t",
        retry_after=3.0,
        request_id="r-1",
    )


@pytest.mark.parametrize("kind", FailureKind)
def test_each_kind_has_an_error_that_survives_pickling(kind: FailureKind) -> None:
    error = error_of(a_failure(kind))
    assert error.kind is kind
    back = pickle.loads(pickle.dumps(error))
    assert type(back) is type(error)
    assert (back.failure, str(back)) == (error.failure, str(error))
    assert (back.error_type, back.billed, back.may_run, back.retry_does) == (
        "t",
        "maybe",
        True,
        "looks again.",
    )


@pytest.mark.parametrize(
    ("base", "names"),
    [
        (
            AirflowFailException,
            {
                "FalInputError",
                "FalContentRefused",
                "FalBalanceError",
                "FalAuthError",
                "FalSubmitOutcomeUnknown",
                "FalResultExpired",
            },
        ),
        (AirflowSensorTimeout, {"FalSensorTimeout"}),
        (
            AirflowException,
            {
                "FalInputError",
                "FalContentRefused",
                "FalBalanceError",
                "FalAuthError",
                "FalSubmitOutcomeUnknown",
                "FalResultExpired",
                "FalSensorTimeout",
            },
        ),
    ],
)
def test_only_what_airflow_must_treat_so_derives_from_its_classes(
    base: type[Exception], names: set[str]
) -> None:
    found = {
        name
        for name, cls in vars(exceptions).items()
        if isinstance(cls, type) and issubclass(cls, FalError) and issubclass(cls, base)
    }
    assert found == names


class Task:
    """Stands for a task instance that keeps what is pushed."""

    def __init__(self) -> None:
        self.pushed: dict[str, Any] = {}

    def xcom_push(self, key: str, value: Any) -> None:
        self.pushed[key] = value


def test_a_failure_is_left_in_xcom_and_raised() -> None:
    task = Task()
    context: Any = {"ti": task}
    with pytest.raises(FalBalanceError), failure_in_xcom(context):
        raise error_of(a_failure(FailureKind.BALANCE))
    (value,) = task.pushed.values()
    assert list(task.pushed) == ["failure"]
    assert json.loads(json.dumps(value)) == value
    assert (value["outcome"], value["kind"], value["billed"]) == ("failed", "balance", "maybe")
    assert value["message"].startswith("Request r-1: Something happened.")
    assert Failure.from_json(value) == a_failure(FailureKind.BALANCE)


def test_nothing_is_left_in_xcom_without_a_failure_or_on_another_error() -> None:
    task = Task()
    context: Any = {"ti": task}
    with failure_in_xcom(context):
        pass
    with pytest.raises(ZeroDivisionError), failure_in_xcom(context):
        raise ZeroDivisionError
    assert task.pushed == {}


def test_a_worker_looks_closely_before_it_hands_a_job_on_and_not_once_more_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    job, now, looks = handle(), 0.0, list[float]()

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    def look(hook: FalHook, watch: Watch) -> WaitMore:
        looks.append(round(now, 2))
        watch.state = JobState.RUNNING
        sleep(0.05)
        return WaitMore(1.5)

    clock = SimpleNamespace(monotonic=lambda: now, sleep=sleep, time=lambda: job.submitted_at + now)
    monkeypatch.setattr("airflow_provider_uniapi_fal.hooks.fal.time", clock)
    monkeypatch.setattr(FalHook, "one_round", look)
    monkeypatch.setattr("airflow_provider_uniapi_fal.hooks.fal.EXPERIENCE", Experience())
    end = FalHook().watch_for(Watch(job), 6.0, lambda line: None)
    assert isinstance(end, WaitMore)
    assert looks == pytest.approx([1.5, 3.05, 4.5, 5.15, 5.8], abs=0.02)
