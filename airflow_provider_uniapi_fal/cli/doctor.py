"""
``airflow fal doctor``: how this gateway answers what its documentation leaves open.

Free questions come first: the key, an unknown request, a wrong key, the paths of the other families. Then, after
asking, one cheap job: whatever can be told by watching it. The reading of the replies is pure; the conversation is
the provider's own, with each reply written down on its way.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from airflow_provider_uniapi_fal.cli.jobs import Accounted, arguments_of, intend, post, unknown_before
from airflow_provider_uniapi_fal.cli.terminal import (
    ExitCode,
    Stopped,
    confirm,
    exit_code_of,
    progress,
    say,
    show,
    show_rows,
    submitting,
    verb,
)
from airflow_provider_uniapi_fal.exceptions import FalError
from airflow_provider_uniapi_fal.hooks.fal import DEFAULT_CONN_ID, FalHook, watching_round
from airflow_provider_uniapi_fal.ledger.command_line import CommandLineJournal, SubmitEntry
from airflow_provider_uniapi_fal.protocol import verbs
from airflow_provider_uniapi_fal.protocol.dialects import dialect_named
from airflow_provider_uniapi_fal.protocol.dialects.base import CancelOutcome
from airflow_provider_uniapi_fal.protocol.dialects.fal import bare_model
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult
from airflow_provider_uniapi_fal.protocol.messages import (
    Done,
    Flow,
    HttpReply,
    HttpRequest,
    Send,
    Sent,
    Unreadable,
    advance,
    read_json,
)
from airflow_provider_uniapi_fal.protocol.watching import WaitMore, Watch
from airflow_provider_uniapi_fal.transport.blocking import BlockingTransport

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

    from airflow_provider_uniapi_fal.protocol.errors import Failure
    from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount

T = TypeVar("T")

#: The cheapest thing that a picture model does.
SMALL_PICTURE = {
    "prompt": "a grey square",
    "image_size": {"width": 256, "height": 256},
    "num_inference_steps": 1,
    "num_images": 1,
}

#: Bytes above which fal keeps a result for six minutes only, where it does not store results.
LARGE_RESULT = 10_000

COLUMNS = ("question", "answer", "seen")

URLS = "Are the URLs in a reply rewritten?"
STATUS_PATHS = "Which paths lead to a status?"
PENDING = "200 or 202 while pending?"
LOGS = "Do log lines come with logs=1?"
RESULT_PATHS = "Which paths lead to a result?"
RETENTION = "How long is a result kept?"
BEARER = "Does /fal-ai accept Bearer, too?"
STREAM = "Is there a stream of statuses?"
CANCEL = "Are cancellations passed on?"
MEDIA = "Where do media lie?"
REFUSAL = "How is a submit refused?"

#: Fields of an answer to a cancellation that say something of the job. A code alone may be anybody's.
_CANCEL_WORDS = {"status", "detail", "success"}

#: What one job tells, if it comes to a good end.
OF_THE_JOB = (URLS, STATUS_PATHS, PENDING, LOGS, RESULT_PATHS, RETENTION, BEARER, STREAM, CANCEL, MEDIA)

#: What is open as well, and what it would take to find out.
UNASKABLE = {
    "What do 403, 429 and a model without a channel answer?": "an empty account, a flood of requests, a second submit",
    "Are the X-Fal-… headers passed on?": "a job that one of them would change; start_timeout and the like may do nothing",
    "Is fal_webhook passed on?": "an address that fal can reach; the provider never needs one",
    "Does Kling honour external_task_id?": "two jobs of Kling's",
    "Is a job that failed refunded?": "a job that fails; compare the gateway's bill after one that did",
}
NOT_ASKED = "not asked"

#: The answer where no reply came, from which nothing follows.
NO_TELLING = "no telling"

UNKNOWN = "What does an unknown request answer?"
WRONG_KEY = "What does a wrong key answer?"

#: Where the other families would answer something.
FAMILIES = {"kling": "/v1/videos/text2video/0", "luma": "/generations/0"}


@dataclass(frozen=True)
class Finding:
    """
    One question and what this gateway answers to it.

    :param question: in a few words
    :param answer: what follows for the user
    :param seen: the evidence: codes and shapes, never a key, a prompt or an address of a file
    :param extra: fields of the connection's extra to set because of it
    """

    question: str
    answer: str
    seen: str
    extra: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Exchange:
    """One request and what came of it."""

    request: HttpRequest
    sent: Sent

    @property
    def reply(self) -> HttpReply | None:
        """The reply, if one arrived."""
        return self.sent if isinstance(self.sent, HttpReply) else None

    @property
    def body(self) -> Any:
        """The reply's JSON, or None."""
        read = None if self.reply is None else read_json(self.reply)
        return None if isinstance(read, Unreadable) else read

    @property
    def code(self) -> int:
        """The reply's HTTP status, 0 if none arrived."""
        return 0 if self.reply is None else self.reply.status

    @property
    def answers(self) -> bool:
        """Whether it is an answer about a job: JSON with a word for its state, or a result."""
        return self.reply is not None and self.reply.ok and isinstance(self.body, dict)


@verb
def doctor(args: argparse.Namespace) -> ExitCode | None:
    """Ask, and print the answers and the extras to set."""
    conn_id = args.conn_id or DEFAULT_CONN_ID
    hook = FalHook(conn_id)
    arguments = SMALL_PICTURE if args.arguments is None else arguments_of(args.arguments, ())
    request = hook.prepare(args.model, arguments)
    model = bare_model(args.model)
    journal = CommandLineJournal(args.journal)
    # It reads the journal, too: one that cannot be read is told of before anything is asked.
    unknown = unknown_before(
        journal, model, arguments, conn_id, "fal", resubmit=args.free or args.on_unknown_submit == "resubmit"
    )
    account = hook.account
    say(f"Asking {account.base_url} what costs nothing, with connection {conn_id}.")
    asked: list[Exchange] = []
    works, text = _run(account, recorded(verbs.probe(), asked))
    findings = [key_finding(works, text, asked[-1])]
    reached = asked[-1].reply is not None
    ended: Stopped | None = None
    if not reached:
        findings += (
            Finding(question, NOT_ASKED, "there was no reply to the first question")
            for question in free_questions(account)
        )
        ended = Stopped(f"{text} So nothing else was asked.", ExitCode.GATEWAY)
    else:
        findings += free_findings(account)
        if not works:
            code = ExitCode.ACCOUNT if tells_of_the_account(asked[-1]) else ExitCode.GATEWAY
            ended = Stopped(f"{text} No job was submitted.", code)
        elif not args.free:
            try:
                confirm(
                    f"Now one paid job: {model}. It is the only one, and it is posted once.", yes=args.yes
                )
            except Stopped as no:
                # What was found for free is shown all the same.
                ended = no
            else:
                seen = _Recorder(_with_scheme(account, extra_of(findings).get("auth_scheme")))
                entry = SubmitEntry.intent(model, arguments, conn_id)
                intend(journal, entry, unknown)
                submitting(args, "submits one more job.")
                try:
                    accepted = post(seen.hook(conn_id), journal, entry, args.model, request, "fal")
                except FalError as error:
                    # What was asked is not to be lost with it, and a refusal is an answer as well.
                    failure = error.failure
                    findings.append(refusal_finding(seen.exchanges[-1], failure))
                    ended = Stopped(str(failure), exit_code_of(failure), failure.to_json())
                else:
                    findings += job_findings(seen, journal, accepted, args.model, args.timeout)
    findings += unasked(findings)
    rows = [asdict(finding) for finding in findings]
    extra = extra_of(findings)
    if args.output == "json":
        show(
            {
                "findings": rows,
                "extra": extra if reached else None,
                "failure": None if ended is None else ended.facts,
            },
            args.output,
        )
    else:
        show_rows(rows, COLUMNS, args.output)
        if extra:
            say(f"Set in the extra of connection {conn_id}: {json.dumps(extra)}")
        elif works:
            say(f"Nothing needs to be set in the extra of connection {conn_id}.")
    if ended is None:
        return ExitCode.OK
    say(str(ended))
    return ended.code


def extra_of(findings: Iterable[Finding]) -> dict[str, Any]:
    """Return the fields of the connection's extra that the findings ask for."""
    return {name: value for finding in findings for name, value in (finding.extra or {}).items()}


def unasked(findings: Sequence[Finding]) -> list[Finding]:
    """Name what stays open: what the job would have told, and what no single cheap job can tell."""
    known = {finding.question for finding in findings}
    return [
        *(
            Finding(question, NOT_ASKED, "it takes one job that comes to a good end")
            for question in OF_THE_JOB
            if question not in known
        ),
        *(Finding(question, NOT_ASKED, f"it takes more: {why}") for question, why in UNASKABLE.items()),
    ]


def tells_of_the_account(seen: Exchange) -> bool:
    """Whether a reply to the probe that is no acceptance is about the key or the account, and not the gateway's."""
    return seen.code in (401, 402, 403) or seen.answers


def key_finding(works: bool, text: str, seen: Exchange) -> Finding:
    """
    Read the answer to the probe.

    :param seen: the last reply to it
    """
    answer = "yes" if works else "no" if tells_of_the_account(seen) else NO_TELLING
    return Finding("Is the key accepted?", answer, text)


def free_questions(account: GatewayAccount) -> list[str]:
    """Return what else can be asked without a job, whatever the answers are."""
    return [UNKNOWN, WRONG_KEY, *(_something_at(account, family, path) for family, path in FAMILIES.items())]


def free_findings(account: GatewayAccount) -> Iterator[Finding]:
    """Ask what can be asked without a job of a gateway that answers."""
    nobody = f"/flux/requests/{uuid.uuid4()}"
    unknown = _ask(account, HttpRequest("GET", "fal", f"{nobody}/status"))
    yield unknown_finding(unknown, account)
    stranger = _ask(_with_a_wrong_key(account), unknown.request)
    yield Finding(
        WRONG_KEY,
        _concluded(
            stranger,
            "a 401, as expected"
            if stranger.code == 401
            else "no 401: a status does not prove the key; the test button does",
        ),
        shape(stranger),
    )
    scheme = account.auth_schemes["fal"]
    other = "Bearer" if scheme == "Key" else "Key"
    if unknown.code == 401:
        swapped = _ask(_with_scheme(account, other), unknown.request)
        if swapped.code not in (0, 401):
            yield Finding(
                "Which word goes before the key?",
                f"{other}, not {scheme}",
                shape(swapped),
                {"auth_scheme": other},
            )
    for family, path in FAMILIES.items():
        seen = _ask(account, HttpRequest("GET", family, path))
        there = seen.code not in (404, 405) or isinstance(seen.body, dict)
        yield Finding(
            _something_at(account, family, path),
            _concluded(seen, "it answers in JSON" if there else "it does not look like it"),
            shape(seen),
        )


def job_findings(
    seen: _Recorder, journal: CommandLineJournal, accepted: JobHandle | JobResult, model: str, timeout: float
) -> list[Finding]:
    """
    Watch the one job to its end, and read what was seen on the way.

    :param seen: what came of the submit, last
    """
    findings = [submit_finding(seen.exchanges[-1], seen.account)]
    if isinstance(accepted, JobResult):
        return findings
    forms = [seen.ask(HttpRequest("GET", "fal", path)) for path in status_forms(accepted, model)]
    pending = [each for each in forms if each.answers and _word(each) in ("IN_QUEUE", "IN_PROGRESS")]
    status = HttpRequest("GET", "fal", accepted.status_path)
    with_logs = seen.ask(replace(status, query={"logs": "1"}))
    result, ended = _wait(seen, journal, accepted, timeout, pending)
    findings += [
        forms_finding(STATUS_PATHS, forms),
        pending_finding(pending),
    ]
    if ended:
        with_logs = seen.ask(replace(status, query={"logs": "1"}))
    findings.append(logs_finding(with_logs))
    if not ended:
        say(f"Request {accepted.request_id} had not ended after {timeout:g} s; the rest is left out.")
        return findings
    results = [seen.ask(HttpRequest("GET", "fal", path)) for path in result_forms(accepted, model)]
    findings += [
        forms_finding(RESULT_PATHS, results),
        result_finding(results),
        bearer_finding(
            _ask(_with_scheme(seen.account, "Bearer"), status), _ask(_with_a_wrong_key(seen.account), status)
        ),
        stream_finding(seen.ask(HttpRequest("GET", "fal", f"{accepted.status_path}/stream"))),
        # The job has ended: there is nothing left that this could stop.
        cancel_finding(
            accepted,
            seen.ask(HttpRequest("PUT", "fal", accepted.cancel_path or _beside(accepted, "/cancel"))),
        ),
    ]
    if result is not None:
        findings.append(media_finding(result, seen.account))
    return findings


def refusal_finding(posted: Exchange, failure: Failure) -> Finding:
    """Read the reply to a submit that brought no job: its shape, and what the provider takes it for."""
    return Finding(REFUSAL, f"in a way that is read as {failure.kind.value}", shape(posted))


def unknown_finding(seen: Exchange, account: GatewayAccount) -> Finding:
    """Read the answer to a status of a job that nobody has submitted."""
    if seen.reply is None:
        answer = NO_TELLING
    elif seen.code != 404:
        answer = "no 404: a lost job is told by waiting for it only"
    elif not isinstance(seen.body, dict):
        path = account.family_paths["fal"]
        answer = f"a 404 that is no JSON: is there anything at {path}? Look at host and family_paths"
    else:
        answer = "a 404, as expected"
    return Finding(UNKNOWN, answer, shape(seen))


def submit_finding(posted: Exchange, account: GatewayAccount) -> Finding:
    """Read the reply to the submit: whose addresses it names."""
    body = posted.body if isinstance(posted.body, dict) else {}
    hosts = {
        name: urlsplit(str(body[name])).netloc
        for name in ("status_url", "response_url", "cancel_url")
        if body.get(name)
    }
    ours = urlsplit(account.base_url).netloc
    if not hosts:
        answer = "there are none; paths are built from the id"
    elif set(hosts.values()) == {ours}:
        answer = "yes, they name this gateway"
    else:
        answer = (
            "no, they name " + ", ".join(sorted(set(hosts.values()) - {ours})) + "; only their paths are used"
        )
    absent = [name for name in ("cancel_url", "queue_position") if body.get(name) is None]
    note = f"; without {' and '.join(absent)}" if absent else ""
    return Finding(URLS, answer, f"HTTP {posted.code}{note}")


def forms_finding(question: str, forms: Sequence[Exchange]) -> Finding:
    """Say which of several paths answered."""
    good = [each for each in forms if each.answers]
    seen = ", ".join(f"{_anonymous(each.request.path)} {each.code or 'no answer'}" for each in forms)
    if not good:
        return Finding(question, "none: look at host and family paths", seen)
    first = "the one that the gateway named" if good[0] is forms[0] else _anonymous(good[0].request.path)
    return Finding(question, f"{first}{f' and {len(good) - 1} more' if len(good) > 1 else ''}", seen)


def pending_finding(pending: Sequence[Exchange]) -> Finding:
    """Say with which HTTP code a status answers before the end."""
    codes = sorted({each.code for each in pending})
    answer = " and ".join(map(str, codes)) if codes else "not seen: the job was too quick"
    return Finding(PENDING, answer, f"{len(pending)} statuses before the end")


def logs_finding(seen: Exchange) -> Finding:
    """Say whether log lines come with ``logs=1``."""
    logs = seen.body.get("logs") if isinstance(seen.body, dict) else None
    answer = "yes" if isinstance(logs, list) and logs else "no, or this model writes none"
    if seen.reply is None:
        return Finding(LOGS, NO_TELLING, shape(seen))
    return Finding(LOGS, answer, f"HTTP {seen.code}, logs {_kind(logs)}")


def result_finding(results: Sequence[Exchange]) -> Finding:
    """Say what is known of how long a result is kept: its length, and what its headers tell."""
    good = next((each for each in results if each.answers and each.reply is not None), None)
    if good is None or good.reply is None:
        return Finding(RETENTION, "not seen", "no result")
    length = len(good.reply.body)
    kept = "at least six minutes" if length >= LARGE_RESULT else "at least an hour"
    headers = [
        name
        for name in ("x-fal-billable-units", "x-fal-request-id", "cache-control", "expires")
        if name in good.reply.headers
    ]
    units = good.reply.headers.get("x-fal-billable-units")
    billed = f"; billable units: {units}" if units else ""
    return Finding(
        RETENTION,
        f"{kept}, as fal says of this length; not measured; fetch at once",
        f"{length} bytes, headers {', '.join(headers) or 'without hints'}{billed}",
    )


def bearer_finding(seen: Exchange, stranger: Exchange) -> Finding:
    """
    Say whether the fal paths take Bearer as well.

    :param seen: a status, asked for with that word
    :param stranger: the same status, asked for with a wrong key: where that is answered, nothing is proved
    """
    if seen.reply is None:
        answer = NO_TELLING
    elif not seen.answers or not _word(seen):
        answer = "no"
    elif _word(stranger) == _word(seen):
        answer = "not proved: a status needs no key here"
    else:
        answer = "yes"
    return Finding(BEARER, answer, shape(seen))


def stream_finding(seen: Exchange) -> Finding:
    """Say whether the gateway passes fal's event stream of statuses on."""
    kind = "" if seen.reply is None else seen.reply.headers.get("content-type", "")
    streams = seen.code == 200 and kind.startswith("text/event-stream")
    return Finding(STREAM, _concluded(seen, "yes" if streams else "no; statuses are polled"), shape(seen))


def cancel_finding(handle: JobHandle, seen: Exchange) -> Finding:
    """Read the answer to a cancellation of a job that has ended, by its words."""
    outcome = (
        CancelOutcome.UNCLEAR if seen.reply is None else dialect_named("fal").read_cancel(handle, seen.reply)
    )
    if outcome in (CancelOutcome.UNSUPPORTED, CancelOutcome.NOT_FOUND):
        answer = "no: what is submitted runs to its end"
    elif (
        outcome is CancelOutcome.UNCLEAR
        or not isinstance(seen.body, dict)
        or not _CANCEL_WORDS & set(seen.body)
    ):
        answer = NO_TELLING
    else:
        answer = "yes"
    return Finding(CANCEL, answer, shape(seen))


def media_finding(result: JobResult, account: GatewayAccount) -> Finding:
    """Say where the media lie, and whether landing needs leave to fetch from there."""
    hosts = sorted({urlsplit(file.url or "").hostname or "" for file in result.media if not file.inline})
    private = [host for host in hosts if _is_private(host) and host not in account.media_hosts]
    where = ", ".join(hosts) or "in the result itself"
    if not private:
        return Finding(MEDIA, "where they may be fetched from", where)
    allowed = sorted({*account.media_hosts, *private})
    return Finding(MEDIA, "at a private address", where, {"media_hosts": allowed})


def status_forms(handle: JobHandle, model: str) -> list[str]:
    """Return the paths under which a status may be found, the gateway's own first."""
    return [f"{base}/status" for base in _bases(handle, model)]


def result_forms(handle: JobHandle, model: str) -> list[str]:
    """Return the paths under which a result may be found, the gateway's own first."""
    bases = list(_bases(handle, model))
    return list(dict.fromkeys([handle.response_path, *bases, f"{bases[0]}/response"]))


def shape(seen: Exchange) -> str:
    """Say what kind of answer came, without quoting it: it may echo an input."""
    if seen.reply is None:
        return f"no reply ({seen.sent.reason})" if not isinstance(seen.sent, HttpReply) else ""
    kind = seen.reply.headers.get("content-type", "").partition(";")[0] or "no content type"
    if not isinstance(seen.body, dict):
        return f"HTTP {seen.code}, {kind}"
    fields = ", ".join(f"{str(name)[:30]} {_kind(value)}" for name, value in list(seen.body.items())[:6])
    return f"HTTP {seen.code}, {{{fields}}}"


class _Recorder:
    """Sends requests and keeps what came of them."""

    def __init__(self, account: GatewayAccount) -> None:
        self.account = account
        self.exchanges: list[Exchange] = []

    def ask(self, request: HttpRequest) -> Exchange:
        """Send one request that costs nothing."""
        exchange = _ask(self.account, request)
        self.exchanges.append(exchange)
        return exchange

    def hook(self, conn_id: str) -> FalHook:
        """Return a hook of this account whose submit is written down as it goes."""
        recorder = self

        class RecordingHook(FalHook):
            @property
            def account(self) -> GatewayAccount:
                return recorder.account

            def _submitting(self, model: str, request: HttpRequest, dialect: str) -> Flow[Any]:
                return recorded(super()._submitting(model, request, dialect), recorder.exchanges)

        return RecordingHook(conn_id)


def recorded(flow: Flow[T], exchanges: list[Exchange]) -> Flow[T]:
    """Return the same conversation, with each request and its reply added to a list."""
    effect = advance(flow, None)
    while not isinstance(effect, Done):
        sent = yield effect
        if isinstance(effect, Send) and sent is not None:
            exchanges.append(Exchange(effect.request, sent))
        effect = advance(flow, sent)
    return effect.value


def _wait(
    seen: _Recorder, journal: CommandLineJournal, handle: JobHandle, timeout: float, pending: list[Exchange]
) -> tuple[JobResult | None, bool]:
    """Wait for the job in the usual way; return its result, and whether it has ended."""
    watch = Watch(handle, deadline=time.time() + timeout, logs=False)
    with progress() as shown:
        shown.add_task("Waiting for the job", total=1)
        while True:
            end = BlockingTransport(seen.account).run(recorded(watching_round(watch), seen.exchanges))
            looked = seen.exchanges[-1]
            if looked.answers and _word(looked) in ("IN_QUEUE", "IN_PROGRESS"):
                pending.append(looked)
            if not isinstance(end, WaitMore):
                break
            time.sleep(end.seconds)
    try:
        with Accounted(journal, handle.request_id):
            return seen.hook(handle.fal_conn_id).delivered(watch, end), True
    except FalError as error:
        say(str(error))
        return None, not error.may_run


def _concluded(seen: Exchange, answer: str) -> str:
    """Return what follows from a reply, if one came."""
    return NO_TELLING if seen.reply is None else answer


def _something_at(account: GatewayAccount, family: str, path: str) -> str:
    return f"Is there something at {account.family_paths[family]}{path}?"


def _run(account: GatewayAccount, flow: Flow[T]) -> T:
    return BlockingTransport(account).run(flow)


def _ask(account: GatewayAccount, request: HttpRequest) -> Exchange:
    return Exchange(request, _run(account, verbs.send(request)))


def _with_a_wrong_key(account: GatewayAccount) -> GatewayAccount:
    return replace(account, key="sk-not-a-key")


def _with_scheme(account: GatewayAccount, scheme: str | None) -> GatewayAccount:
    if scheme is None:
        return account
    return replace(account, auth_schemes={**account.auth_schemes, "fal": scheme})


def _bases(handle: JobHandle, model: str) -> Iterator[str]:
    own = handle.status_path.removesuffix("/status")
    words = bare_model(model).split("/")
    apps = (words[0], "/".join(words[:2]), "/".join(words), "auto")
    yield from dict.fromkeys([own, *(f"/{app}/requests/{handle.request_id}" for app in apps)])


def _beside(handle: JobHandle, end: str) -> str:
    return handle.status_path.removesuffix("/status") + end


def _anonymous(path: str) -> str:
    head, _, tail = path.partition("/requests/")
    return f"{head}/requests/<id>{'/' + tail.partition('/')[2] if '/' in tail else ''}"


def _word(seen: Exchange) -> str:
    return str(seen.body.get("status", "")) if isinstance(seen.body, dict) else ""


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _is_private(host: str) -> bool:
    try:
        return not ip_address(host).is_global
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
