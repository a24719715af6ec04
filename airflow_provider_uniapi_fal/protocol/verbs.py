"""
The verbs submit, status, result and cancel as conversations with the gateway, each written once.

A verb is a generator: it yields what it wants sent or how long it wants to sleep, is given what came back, and
returns a value. The blocking and the non-blocking driver run the very same generator, so that the two cannot
differ.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from airflow_provider_uniapi_fal.protocol import retrying
from airflow_provider_uniapi_fal.protocol.dialects import dialect_named
from airflow_provider_uniapi_fal.protocol.dialects.base import (
    CancelOutcome,
    Dialect,
    Finished,
    LookAgain,
    ResultReading,
    StatusReading,
    SubmitReading,
    Submitted,
)
from airflow_provider_uniapi_fal.protocol.dialects.fal import STATES
from airflow_provider_uniapi_fal.protocol.dialects.reading import Detail, number
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, unknown_outcome
from airflow_provider_uniapi_fal.protocol.job import JobState, JobStatus
from airflow_provider_uniapi_fal.protocol.messages import (
    Done,
    Flow,
    HttpReply,
    HttpRequest,
    NotSent,
    ReplyLost,
    Send,
    Sent,
    Sleep,
    advance,
    read_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult
    from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount


Reading = TypeVar("Reading", bound="StatusReading | ResultReading")

#: A reply of so many bytes is kept to know it again.
LONGEST_KEPT = 2048


def send(request: HttpRequest) -> Flow[Sent]:
    """Send one request and return what came of it."""
    return (yield from _sent(Send(request)))


def _sent(effect: Send) -> Flow[Sent]:
    sent = yield effect
    assert sent is not None, "a driver answers Send with what came back"  # noqa: S101
    return sent


def submit(
    dialect: Dialect,
    request: HttpRequest,
    *,
    model: str,
    fal_conn_id: str,
    account: GatewayAccount,
    clock: Callable[[], float],
    jitter: Callable[[], float],
) -> Flow[SubmitReading]:
    """
    Submit one job: at most one post that the gateway may have accepted.

    :param request: the post, from the dialect
    :param clock: seconds since the epoch
    :param jitter: random numbers from 0 to 1
    :return: submitted, finished, or the failure that says whether a job may exist
    """
    waited = 0.0
    attempt = 0
    while True:
        attempt += 1
        sent = yield from send(request)
        if isinstance(sent, ReplyLost):
            return unknown_outcome(f"the reply was lost ({sent.reason})")
        reading: SubmitReading | NotSent = (
            sent
            if isinstance(sent, NotSent)
            else dialect.read_submit(sent, model=model, fal_conn_id=fal_conn_id, account=account, now=clock())
        )
        if isinstance(reading, (Submitted, Finished)):
            return reading
        delay = retrying.submit_again_after(reading, attempt=attempt, waited=waited, jitter=jitter())
        if delay is None:
            break
        waited += delay
        yield Sleep(delay)
    if isinstance(reading, NotSent):
        return Failure(
            FailureKind.PROTOCOL,
            what=f"The gateway could not be reached ({reading.reason}); nothing was sent.",
            retry_does="submits.",
            advice="Look at the connection's host, the network and the proxy.",
        )
    return reading


def _question(dialect: Dialect, handle: JobHandle, *, logs: bool) -> Send | Failure:
    request = dialect.status_request(handle, logs=logs)
    return request if isinstance(request, Failure) else Send(request, brief=True)


class Resting:
    """
    Knows of a submit whether it rests, which it does only when its last post provably was not accepted.

    Whoever breaks it off then leaves nothing in doubt.
    """

    def __init__(self) -> None:
        self.now = False

    def of(self, flow: Flow[SubmitReading]) -> Flow[SubmitReading]:
        """Return the submit, which is the same."""
        effect = advance(flow, None)
        while not isinstance(effect, Done):
            self.now = isinstance(effect, Sleep)
            answer = yield effect
            self.now = False
            effect = advance(flow, answer)
        return effect.value


class LastLook:
    """The last look at a job that went on: most looks ask the same again, and most replies say the same again."""

    __slots__ = ("_body", "_http_status", "_logs", "_of", "_question", "_status")

    def __init__(self) -> None:
        self._of: JobHandle | None = None
        self._logs = False
        self._question: Send | Failure | None = None
        self._http_status = 0
        self._body = b""
        self._status: JobStatus | None = None

    def question(self, dialect: Dialect, handle: JobHandle, *, logs: bool) -> Send | Failure:
        """Return what is to be sent to ask how a job is going, or the failure that there is no asking."""
        # An equal handle is compared in more time than it takes to put the question anew.
        if self._question is None or self._of is not handle or self._logs is not logs:
            self._of, self._logs, self._question = handle, logs, _question(dialect, handle, logs=logs)
        return self._question

    def said(self, reply: HttpReply) -> JobStatus | None:
        """Return what a reply says if it is the last one again."""
        return self._status if reply.body == self._body and reply.status == self._http_status else None

    def keep(self, reply: HttpReply, reading: StatusReading) -> None:
        """Keep a reply, unless it is long, as one with a log is, or calls for more than waiting."""
        if isinstance(reading, JobStatus) and not reading.finished and len(reply.body) <= LONGEST_KEPT:
            self._http_status, self._body, self._status = reply.status, reply.body, reading


def look(
    dialect: Dialect,
    handle: JobHandle,
    *,
    logs: bool,
    clock: Callable[[], float],
    last: LastLook | None = None,
) -> Flow[StatusReading]:
    """
    Ask once how a job is going.

    :param last: what the last look at the same job brought, and takes what this one brings
    """
    question = (_question if last is None else last.question)(dialect, handle, logs=logs)
    if isinstance(question, Failure):
        return question
    sent = yield from _sent(question)
    if not isinstance(sent, HttpReply):
        return LookAgain(_no_reply(sent))
    if last is None:
        return dialect.read_status(handle, sent, clock())
    again = last.said(sent)
    if again is not None:
        return again
    reading = dialect.read_status(handle, sent, clock())
    last.keep(sent, reading)
    return reading


def fetch(dialect: Dialect, handle: JobHandle, *, clock: Callable[[], float]) -> Flow[ResultReading]:
    """Ask once for the result."""
    request = dialect.result_request(handle)
    if isinstance(request, Failure):
        return request
    sent = yield from send(request)
    if not isinstance(sent, HttpReply):
        return LookAgain(_no_reply(sent))
    return dialect.read_result(handle, sent, clock())


def status(
    dialect: Dialect,
    handle: JobHandle,
    *,
    logs: bool,
    clock: Callable[[], float],
    jitter: Callable[[], float],
) -> Flow[StatusReading]:
    """Ask how a job is going, a few times if need be, also under the other paths where it may be found."""
    return (
        yield from _patiently(dialect, handle, lambda h: look(dialect, h, logs=logs, clock=clock), jitter)
    )


def result(
    dialect: Dialect, handle: JobHandle, *, clock: Callable[[], float], jitter: Callable[[], float]
) -> Flow[ResultReading]:
    """Ask for the result, a few times if need be, also under the other paths where it may be found."""

    def ask(found: JobHandle) -> Flow[ResultReading]:
        return fetch(dialect, found, clock=clock)

    return (yield from _patiently(dialect, handle, ask, jitter))


def landable(
    dialect: Dialect, job: JobResult, *, clock: Callable[[], float], jitter: Callable[[], float]
) -> Flow[JobResult | LookAgain | Failure]:
    """
    Ask for the addresses from which the media are best fetched, a few times if need be.

    :return: the result with them; or why there are none, when the result has to do as it is
    """
    request = dialect.landing_request(job)
    if request is None:
        return job

    def ask(_: JobHandle) -> Flow[ResultReading]:
        sent = yield from send(request)
        if not isinstance(sent, HttpReply):
            return LookAgain(_no_reply(sent))
        return dialect.read_landing(job, sent, clock())

    return (yield from _patiently(dialect, job.handle, ask, jitter))


def cancel(dialect: Dialect, handle: JobHandle) -> Flow[CancelOutcome]:
    """Ask once to cancel the job."""
    request = dialect.cancel_request(handle)
    if request is None:
        return CancelOutcome.UNSUPPORTED
    sent = yield from send(request)
    return dialect.read_cancel(handle, sent) if isinstance(sent, HttpReply) else CancelOutcome.UNCLEAR


def probe() -> Flow[tuple[bool, str]]:
    """
    Ask the gateway for the account's balance, or else for its models: free, and enough to try the key.

    Accepted is a key with which one of them came in its own form; whatever else came with a 2xx proves nothing.

    Sources: UniAPI's general pages and a third party's client; both addresses belong to the OpenAI form.
    """
    answer = (False, "")
    for path, query, is_whole in (
        ("/billing/usage", {"unit": "usd"}, _is_usage),
        ("/models", {}, _is_list_of_models),
    ):
        sent = yield from send(HttpRequest("GET", "openai", path, query))
        answer, definite = _read_probe(sent, is_whole)
        if definite:
            break
    return answer


#: What a refusal says that is about the account and not about the key.
_NO_BALANCE = ("402", "403", "余额", "balance", "quota", "locked")


def _is_usage(body: Mapping[str, Any]) -> bool:
    data = body.get("data")
    return isinstance(data, dict) and number(data.get("balance")) is not None


def _is_list_of_models(body: Mapping[str, Any]) -> bool:
    data = body.get("data")
    if not isinstance(data, list) or not all(isinstance(each, dict) and each.get("id") for each in data):
        return False
    return bool(data) or body.get("object") == "list"


def _is_refusal(body: Mapping[str, Any]) -> bool:
    """Whether a body says that something went wrong, whatever code it came under."""
    word = str(body.get("status") or "").upper()
    return (
        bool(body.get("error") or body.get("error_type"))
        or body.get("success") is False
        or str(body.get("code") or 0).lower() not in ("0", "200", "success")
        or STATES.get(word) in (JobState.FAILED, JobState.CANCELLED)
    )


def _read_probe(sent: Sent, is_whole: Callable[[Mapping[str, Any]], bool]) -> tuple[tuple[bool, str], bool]:
    """
    Return what to tell the user, and whether another address need not be tried.

    :param is_whole: whether a body has the form of what was asked for
    """
    if not isinstance(sent, HttpReply):
        return (False, f"The gateway cannot be reached ({sent.reason}). {_where_to_look(sent.reason)}"), True
    if sent.status == 401:
        return (
            False,
            "The gateway refused the key (HTTP 401). Put the right one into the password field.",
        ), True
    if sent.status in (402, 403):
        text = f"The gateway refused the account (HTTP {sent.status}): no balance, or the account is locked."
        return (False, text), True
    body = read_json(sent)
    if sent.ok and isinstance(body, dict) and _is_refusal(body):
        # Its words are not quoted: they may repeat the key.
        said = f"{body.get('code')} {Detail.of(body).words}".lower()
        if any(word in said for word in _NO_BALANCE):
            text = f"The gateway refused the account (under HTTP {sent.status}): no balance, or it is locked."
        else:
            text = (
                f"The gateway answered with a refusal (under HTTP {sent.status}), most likely of the key. Put the "
                "right one into the password field."
            )
        return (False, text), True
    if sent.ok and isinstance(body, dict) and is_whole(body):
        data = body["data"]
        balance = None if isinstance(data, list) else number(data["balance"])
        if balance is None or balance < 0:
            return (True, "The gateway accepted the key. Nothing was spent."), True
        if balance == 0:
            return (False, "The gateway accepted the key, but the account has no balance."), True
        return (True, f"The gateway accepted the key; it reports a balance of {balance:g} USD."), True
    if sent.status == 404 or sent.ok or 300 <= sent.status < 400:
        text = (
            f"There is no such gateway at this address (HTTP {sent.status}). Look at host and family paths."
        )
        return (False, text), False
    return (False, f"The gateway answered with HTTP {sent.status}. Try again later."), True


#: What the transports' reasons say, in the words of the system's own errors, and what that means here.
_REASONS = (
    (
        ("gaierror",),
        (
            "No host of this name was found: look at the connection's host. If that is right, this machine has no "
            "network or no name service."
        ),
    ),
    (
        ("ConnectionRefused",),
        (
            "The machine is there, but nothing listens at this address: look at the connection's host and port, or at "
            "those of the proxy if there is one."
        ),
    ),
    (("unreachable",), "This machine has no way to it: look at its network, and at the proxy."),
    (("CA certificates",), "Look at ca_bundle."),
    (
        ("CERTIFICATE_VERIFY", "CertVerification", "certificate"),
        (
            "Its certificate is not trusted: look at the connection's host, and at ca_bundle if the gateway has a "
            "private one."
        ),
    ),
    (("Timeout", "timed out", "too slowly"), "No answer came in time: look at network, firewall and proxy."),
    (("Proxy", "proxy"), "Look at the proxy."),
)


def _where_to_look(reason: str) -> str:
    for words, advice in _REASONS:
        if any(word in reason for word in words):
            return advice
    return "Look at host, network and proxy."


def unclear(handle: JobHandle, again: LookAgain) -> Failure:
    """Return the failure for reads that never said anything definite."""
    if again.not_found and again.bounded:
        return Failure(
            FailureKind.RESULT_EXPIRED,
            what=f"The gateway does not have it: {again.reason}.",
            retry_does="is not made; a clear looks again and will most likely find the same.",
            advice=f"{dialect_named(handle.dialect).keeps} If the job is younger, look at the connection's host and family paths.",
            billed="maybe",
            may_run=True,
            request_id=handle.request_id,
        )
    return Failure(
        FailureKind.PROTOCOL,
        what=f"The gateway's answers cannot be understood: {again.reason}.",
        retry_does="of a wait looks again.",
        advice="Look at network, proxy and the connection's host: 'airflow fal doctor --free' asks how the gateway answers.",
        billed="maybe",
        may_run=True,
        retry_after=again.retry_after,
        request_id=handle.request_id,
    )


def unfinished(handle: JobHandle) -> Failure:
    """Return the failure for a result that was asked for before the job has ended."""
    return Failure(
        FailureKind.PROTOCOL,
        what="The job has not ended yet, so there is no result.",
        retry_does="asks for the result again.",
        advice="Wait for it: 'airflow fal wait', or a FalQueueSensor in a DAG.",
        billed="maybe",
        may_run=True,
        request_id=handle.request_id,
    )


def _patiently(
    dialect: Dialect,
    handle: JobHandle,
    ask: Callable[[JobHandle], Flow[Reading]],
    jitter: Callable[[], float],
) -> Flow[Reading]:
    paths = list(dialect.alternatives(handle))
    attempt = 0
    while True:
        reading = yield from ask(paths[0])
        if not isinstance(reading, LookAgain) or reading.oversized:
            return reading
        if reading.not_found and len(paths) > 1:
            paths.pop(0)
            continue
        attempt += 1
        if attempt >= retrying.MAX_READ_ATTEMPTS or reading.bounded:
            return reading
        delay = retrying.backoff(attempt, jitter()) if reading.retry_after is None else reading.retry_after
        yield Sleep(min(delay, retrying.LONGEST_READ_PAUSE))


def _no_reply(sent: NotSent | ReplyLost) -> str:
    return f"no reply ({sent.reason})"
