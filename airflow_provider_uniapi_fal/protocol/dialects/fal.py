"""
The fal queue, as the gateway offers it: submit, poll the status, fetch the result, cancel.

Sources: fal's documentation of its queue and its errors; UniAPI's FalAI and submit pages; what third parties
recorded of the live service. Where they disagree, both sides are read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypedDict

from airflow_provider_uniapi_fal.protocol.arguments import arguments_problems, as_json, model_problem
from airflow_provider_uniapi_fal.protocol.dialects.base import (
    NOT_READY,
    CancelOutcome,
    Dialect,
    LookAgain,
    ResultReading,
    StatusReading,
    SubmitReading,
    Submitted,
)
from airflow_provider_uniapi_fal.protocol.dialects.reading import (
    LOOKS_AGAIN,
    MEDIA_KEYS,
    REFUSED_TYPES,
    Detail,
    failed_submit,
    files_below,
    no_media,
    number,
    page_instead,
    quoted,
    refused_read,
    refused_submit,
    text_or_none,
    whole_or_none,
)
from airflow_provider_uniapi_fal.protocol.errors import (
    Billed,
    Failure,
    FailureKind,
    bad_input,
    unknown_outcome,
)
from airflow_provider_uniapi_fal.protocol.job import (
    JobHandle,
    JobResult,
    JobState,
    JobStatus,
    LogLine,
    MediaFile,
)
from airflow_provider_uniapi_fal.protocol.messages import HttpReply, HttpRequest, Unreadable, read_json
from airflow_provider_uniapi_fal.protocol.origin import (
    GatewayAccount,
    is_request_id,
    path_below_family,
)

#: fal itself knows the first three words only; the others are those that gateways of this family answer.
STATES = {
    "IN_QUEUE": JobState.PENDING,
    "IN_PROGRESS": JobState.RUNNING,
    "COMPLETED": JobState.SUCCEEDED,
    "QUEUED": JobState.PENDING,
    "PENDING": JobState.PENDING,
    "NOT_START": JobState.PENDING,
    "SUBMITTED": JobState.PENDING,
    "PROCESSING": JobState.RUNNING,
    "RUNNING": JobState.RUNNING,
    "SUCCESS": JobState.SUCCEEDED,
    "SUCCEEDED": JobState.SUCCEEDED,
    "FAILURE": JobState.FAILED,
    "FAILED": JobState.FAILED,
    "ERROR": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "CANCELED": JobState.CANCELLED,
    "CANCEL": JobState.CANCELLED,
}

#: Request and platform errors of which fal says that they are not charged and may pass.
_TRANSIENT_TYPES = {
    "request_timeout",
    "startup_timeout",
    "runner_scheduling_failure",
    "runner_connection_timeout",
    "runner_disconnected",
    "runner_connection_refused",
    "runner_connection_error",
    "runner_incomplete_response",
    "runner_server_error",
    "internal_error",
    "internal_server_error",
    "generation_timeout",
    "downstream_service_unavailable",
}
_CANCELLED_TYPES = {"client_cancelled", "client_disconnected"}
_FAILED_422_TYPES = {"no_media_generated"}

_PATH = re.compile(r"(?P<app>(?:/[^/]+)+)/requests/(?P<id>[^/]+)(?P<rest>/status|/cancel|/response)?")


class SubmitOptions(TypedDict, total=False):
    """
    fal's request options by name; None leaves one out. Whether the gateway passes them on is not documented.

    Source: fal's page on the headers of the queue.

    * ``start_timeout``: seconds in which the job must have started, else fal fails it
      (``X-Fal-Request-Start-Timeout``)
    * ``priority``: ``normal`` or ``low`` (``X-Fal-Queue-Priority``)
    * ``runner_hint``: text by which fal sends jobs to the same runner (``X-Fal-Runner-Hint``)
    * ``no_retry``: True turns fal's own retries off (``X-Fal-No-Retry``)
    * ``store_io``: False keeps fal from storing input and output; the result then lasts an hour or less
      (``X-Fal-Store-IO``)
    * ``object_lifetime``: seconds that fal keeps the media (``X-Fal-Object-Lifecycle-Preference``)
    * ``max_queue_length``: refuse the job if the queue is longer (``fal_max_queue_length``)
    """

    start_timeout: float | None
    priority: str | None
    runner_hint: str | None
    no_retry: bool | None
    store_io: bool | None
    object_lifetime: int | None
    max_queue_length: int | None


@dataclass(frozen=True)
class _Option:
    """One request option of fal's: its header or query parameter, and how a value is checked and written."""

    header: str
    problem: str
    write: Any
    query: bool = False


def _seconds(value: object) -> str | None:
    ok = isinstance(value, (int, float)) and not isinstance(value, bool) and 0.1 < value < 1e9
    return str(value) if ok else None


def _whole(value: object) -> str | None:
    ok = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return str(value) if ok else None


def _lifetime(value: object) -> str | None:
    written = _whole(value)
    return written and json.dumps({"expiration_duration_seconds": value})


def _hint(value: object) -> str | None:
    ok = isinstance(value, str) and 0 < len(value) <= 200 and value.isascii() and value.isprintable()
    return str(value) if ok and value == str(value).strip() else None


_OPTIONS = {
    "start_timeout": _Option("X-Fal-Request-Start-Timeout", "a number of seconds above 0.1", _seconds),
    "priority": _Option(
        "X-Fal-Queue-Priority", "'normal' or 'low'", lambda v: v if v in ("normal", "low") else None
    ),
    "runner_hint": _Option("X-Fal-Runner-Hint", "a short printable ASCII text", _hint),
    "no_retry": _Option(
        "X-Fal-No-Retry", "True or False", lambda v: ("1" if v else "") if isinstance(v, bool) else None
    ),
    "store_io": _Option(
        "X-Fal-Store-IO", "True or False", lambda v: ("" if v else "0") if isinstance(v, bool) else None
    ),
    "object_lifetime": _Option(
        "X-Fal-Object-Lifecycle-Preference", "a whole number of seconds above 0", _lifetime
    ),
    "max_queue_length": _Option("fal_max_queue_length", "a whole number above 0", _whole, query=True),
}


class FalDialect(Dialect):
    """fal's queue behind the gateway's ``/fal-ai`` prefix."""

    name = "fal"
    family = "fal"
    keeps = "fal keeps results for an hour, those above 10 KB for six minutes."

    def model_id(self, model: str) -> str:
        """Return a model id without the leading ``fal-ai/``."""
        return bare_model(model)

    def submit_request(
        self, model: object, arguments: object, options: Mapping[str, Any]
    ) -> HttpRequest | Failure:
        """Return the post that submits a job, or the failure that names each wrong field."""
        problems = [p for p in (model_problem(model),) if p] + arguments_problems(arguments)
        headers: dict[str, str] = {}
        query: dict[str, str] = {}
        for name, value in options.items():
            if value is None:
                continue
            if name not in _OPTIONS:
                problems.append(f"{name}: not an option of the fal queue; there are {', '.join(_OPTIONS)}")
                continue
            option = _OPTIONS[name]
            written = option.write(value)
            if written is None:
                problems.append(f"{name}: {option.problem} is needed, not {value!r}")
            elif written:
                (query if option.query else headers)[option.header] = written
        if problems or not isinstance(model, str) or not isinstance(arguments, Mapping):
            return bad_input("Refused before anything was sent: " + "; ".join(problems) + ".")
        return HttpRequest(
            "POST", self.family, f"/{bare_model(model)}", query, headers, json=as_json(arguments)
        )

    def read_submit(
        self, reply: HttpReply, *, model: str, fal_conn_id: str, account: GatewayAccount, now: float
    ) -> SubmitReading:
        """Read the reply to a submit."""
        body = read_json(reply)
        if not reply.ok:
            return refused_submit(reply, _detail(body, reply), now, billed=_billed(reply))
        if not isinstance(body, dict):
            return unknown_outcome("the gateway's reply cannot be read", reply.status)
        if STATES.get(_word(body)) is JobState.FAILED or (body.get("error") and "request_id" not in body):
            request_id = body["request_id"] if is_request_id(body.get("request_id")) else None
            return failed_submit(reply, Detail.of(body), request_id)
        urls = {
            name: path_below_family(body.get(name), account.family_paths[self.family], account.base_url)
            for name in ("status_url", "response_url", "cancel_url")
        }
        request_id = body.get("request_id") or _id_in(urls["status_url"]) or _id_in(urls["response_url"])
        if not is_request_id(request_id):
            return unknown_outcome("the gateway's reply has no usable request id", reply.status)
        built = self._built(str(request_id), model, fal_conn_id, now)
        status_path = _usable(urls["status_url"], "/status")
        if status_path:
            # What the server did not name lies beside what it named.
            base = status_path.removesuffix("/status")
            built = replace(built, response_path=base, cancel_path=f"{base}/cancel")
        handle = replace(
            built,
            status_path=status_path or built.status_path,
            response_path=_usable(urls["response_url"], "", "/response") or built.response_path,
            cancel_path=_usable(urls["cancel_url"], "/cancel") or built.cancel_path,
        )
        status = self.read_status(handle, reply, now)
        if not isinstance(status, JobStatus):
            status = JobStatus(JobState.PENDING, word="")
        return Submitted(handle, status)

    def handle_of(
        self, request_id: object, model: object, *, fal_conn_id: str, now: float
    ) -> JobHandle | Failure:
        """Return a handle built from an id and a model alone."""
        if not is_request_id(request_id):
            return bad_input("request_id: an id made of letters, digits, '_' and '-' is needed.")
        problem = model_problem(model)
        if problem:
            return bad_input(
                f"{problem}.", "With request_id, give the model, too: its path leads to the job."
            )
        return self._built(str(request_id), bare_model(str(model)), fal_conn_id, now)

    def handle_of_url(
        self, status_url: object, *, account: GatewayAccount, fal_conn_id: str, now: float
    ) -> JobHandle | Failure:
        """Return a handle built from the address of a status; its host is not used."""
        path = path_below_family(status_url, account.family_paths[self.family], account.base_url)
        match = _PATH.fullmatch(path or "")
        if match is None or match["rest"] != "/status" or not is_request_id(match["id"]):
            return bad_input("status_url: an address that ends in /requests/<id>/status is needed.")
        base = f"{match['app']}/requests/{match['id']}"
        built = self._built(match["id"], match["app"][1:], fal_conn_id, now)
        return replace(built, status_path=f"{base}/status", response_path=base, cancel_path=f"{base}/cancel")

    def alternatives(self, handle: JobHandle) -> tuple[JobHandle, ...]:
        """
        Return the handle, then those with other paths where the same job may be found.

        The server's own path comes first, then owner and app (both readings: with the gateway's prefix as
        the owner, and with an owner in the model id), then the whole model id: fal's two pages disagree on
        which it is, and what a gateway makes of it is not documented.
        """
        segments = handle.model.split("/")
        apps = [_app_of(handle.model), "/".join(segments[:2]), handle.model]
        found = {handle.status_path: handle}
        for app in apps:
            other = _with_app(handle, f"/{app}")
            found.setdefault(other.status_path, other)
        return tuple(found.values())

    def status_request(self, handle: JobHandle, *, logs: bool) -> HttpRequest:
        """Return the request that asks how the job is going."""
        return HttpRequest("GET", self.family, handle.status_path, {"logs": "1"} if logs else {})

    def stream_request(self, handle: JobHandle, *, logs: bool) -> HttpRequest:
        """Return the request for the stream of statuses (fal's pages on the queue; the gateway's say nothing)."""
        request = self.status_request(handle, logs=logs)
        return replace(
            request, path=f"{request.path}/stream", headers={**request.headers, "Accept": "text/event-stream"}
        )

    def read_status(self, handle: JobHandle, reply: HttpReply, now: float) -> StatusReading:
        """Read the reply to it: any 2xx with a known word is an answer, nearly all else is "look again"."""
        if not reply.ok:
            body = read_json(reply)
            return refused_read(handle, reply, body, _detail(body, reply), now, may_run=True)
        if reply.oversized:
            return LookAgain("the status is too long to read here", oversized=True)
        body = read_json(reply)
        if not isinstance(body, dict):
            return LookAgain("the status cannot be read" + quoted(body))
        word = _word(body)
        if not word:
            return LookAgain(f"the status has no word for the state{Detail.of(body).words}", bounded=True)
        metrics = body.get("metrics")
        position = whole_or_none(body.get("queue_position"))
        status = JobStatus(
            state=STATES.get(word, JobState.UNKNOWN),
            word=word,
            queue_position=position if position is not None and position >= 0 else None,
            logs=tuple(_log_lines(body.get("logs"))),
            inference_time=number(metrics.get("inference_time")) if isinstance(metrics, dict) else None,
        )
        if not status.finished:
            return status
        detail = Detail.of(body)
        if status.state is JobState.SUCCEEDED and (body.get("error") or body.get("error_type")):
            cancelled = detail.type in _CANCELLED_TYPES
            status = replace(status, state=JobState.CANCELLED if cancelled else JobState.FAILED)
        if status.state in (JobState.FAILED, JobState.CANCELLED):
            status = replace(status, error=detail.text, error_type=detail.type)
        return status

    def result_request(self, handle: JobHandle) -> HttpRequest:
        """Return the request that fetches the result."""
        return HttpRequest("GET", self.family, handle.response_path)

    def read_result(self, handle: JobHandle, reply: HttpReply, now: float) -> ResultReading:
        """Read the reply to it. Success is a 2xx whose body is the model's answer and no error in disguise."""
        if reply.oversized:
            return LookAgain("the result is too long to read here", oversized=True)
        body = read_json(reply)
        if not reply.ok:
            return self._failed_result(handle, reply, body, now)
        if isinstance(body, Unreadable):
            return LookAgain("the result cannot be read" + quoted(body))
        media = tuple(_media_in(body))
        if isinstance(body, dict) and not media:
            state = STATES.get(_word(body))
            if reply.status == 202 or state in (JobState.PENDING, JobState.RUNNING):
                return NOT_READY
            if _is_error(body):
                return self._failed_result(handle, reply, body, now)
            empty = [key for key in MEDIA_KEYS if key in body and not body[key]]
            if empty:
                return no_media(handle, f"{', '.join(empty)} is empty", _billed(reply) or "maybe")
        seed = body.get("seed") if isinstance(body, dict) else None
        return JobResult(
            handle=handle,
            data=body,
            media=media,
            seed=whole_or_none(seed),
            billable_units=reply.headers.get("x-fal-billable-units"),
        )

    def failure_of(self, handle: JobHandle, status: JobStatus) -> Failure:
        """Return the failure that a failed or cancelled status tells of."""
        detail = Detail(status.error_type, status.error)
        cancelled = status.state is JobState.CANCELLED
        return _job_failure(handle, detail, http_status=None, billed=None, cancelled=cancelled)

    def cancel_request(self, handle: JobHandle) -> HttpRequest | None:
        """Return the request that cancels the job. The gateway's pages do not name it: it may be refused."""
        return HttpRequest("PUT", self.family, handle.cancel_path) if handle.cancel_path else None

    def read_cancel(self, handle: JobHandle, reply: HttpReply) -> CancelOutcome:
        """
        Read the reply to it, in any of the shapes that fal, its models' schemas and gateways give it.

        Only fal's documented 200 and OK mean that the job was taken from the queue, which makes it safe to submit
        again. What else says that it is done or accepted may be about a job that runs, and is billed.
        """
        body = read_json(reply)
        fields = body if isinstance(body, dict) else {}
        word = _word(fields)
        text = str(fields.get("detail") or "").lower()
        if word == "ALREADY_COMPLETED" or "already completed" in text:
            return CancelOutcome.ALREADY_COMPLETED
        if word == "NOT_FOUND":
            return CancelOutcome.NOT_FOUND
        if reply.ok and (word == "CANCELLATION_REQUESTED" or reply.status == 202):
            return CancelOutcome.REQUESTED
        if reply.status == 200 and word == "OK":
            return CancelOutcome.REMOVED
        if reply.ok and (word in ("OK", "CANCELLED", "CANCELED") or fields.get("success") is True):
            return CancelOutcome.REQUESTED
        if reply.status in (404, 405, 501):
            return CancelOutcome.UNSUPPORTED
        return CancelOutcome.UNCLEAR

    def _built(self, request_id: str, model: str, fal_conn_id: str, now: float) -> JobHandle:
        """Build the paths from owner and app, the way fal's own clients do."""
        empty = JobHandle(self.name, model, request_id, "", "", None, fal_conn_id, now)
        return _with_app(empty, f"/{_app_of(model)}")

    def _failed_result(self, handle: JobHandle, reply: HttpReply, body: Any, now: float) -> ResultReading:
        detail = _detail(body, reply)
        if "still in progress" in (detail.text or "").lower():
            return NOT_READY
        if reply.status in (401, 402, 403, 429) or 300 <= reply.status < 400:
            return refused_read(handle, reply, body, detail, now, may_run=False)
        page = page_instead(reply, body, now)
        if reply.status == 404 and page is not None:
            return page
        if reply.status in (404, 405, 410):
            return LookAgain("the result is not there (any more)", bounded=True, not_found=True)
        if reply.status >= 500 and not _is_fals_own_error(body, reply):
            # A gateway in trouble may say so in JSON as well, in OpenAI's style with a type of its own.
            said = quoted(body) or detail.words
            return LookAgain(
                f"HTTP {reply.status} instead of the result{said}", bounded=isinstance(body, dict)
            )
        cancelled = isinstance(body, dict) and STATES.get(_word(body)) is JobState.CANCELLED
        return _job_failure(handle, detail, reply.status, _billed(reply), cancelled=cancelled)


def bare_model(model: str) -> str:
    """Return a model id without the leading ``fal-ai/``, which the gateway's path has already."""
    return model.removeprefix("fal-ai/")


def _app_of(model: str) -> str:
    """
    Return the part of a model id that fal's status paths use: owner and app, without the subpath.

    The owner ``fal-ai`` is the gateway's prefix, so that for its models one word is left. Whether a gateway
    passes other owners on is not documented; a model id alone does not tell an owner from an app, so of
    these only the namespaced ids can be told.
    """
    segments = model.split("/")
    return "/".join(segments[:3] if segments[0] in ("workflows", "comfy") else segments[:1])


def _with_app(handle: JobHandle, app: str) -> JobHandle:
    base = f"{app}/requests/{handle.request_id}"
    return replace(handle, status_path=f"{base}/status", response_path=base, cancel_path=f"{base}/cancel")


def _usable(path: str | None, *endings: str) -> str | None:
    """Return a server's path if it leads to a request in the expected way."""
    match = _PATH.fullmatch(path or "")
    if match is None or not is_request_id(match["id"]) or (match["rest"] or "") not in endings:
        return None
    return path


def _id_in(path: str | None) -> str | None:
    match = _PATH.fullmatch(path or "")
    return match["id"] if match else None


def _word(body: Mapping[str, Any]) -> str:
    word = body.get("status")
    return word.strip().upper()[:60] if isinstance(word, str) else ""


def _is_error(body: Mapping[str, Any]) -> bool:
    """
    Whether an answer without media under 2xx is an error in disguise, in any of the shapes that errors have.

    The gateway's heartbeat commits itself to 200 before it knows how a request ends.
    """
    if STATES.get(_word(body)) in (JobState.FAILED, JobState.CANCELLED):
        return True
    if body.get("error") or body.get("error_type"):
        return True
    said = set(body) - {"status", "request_id"}
    return said == {"detail"} or (
        {"code", "message"} <= said <= {"code", "message", "data"} and not body.get("data")
    )


def _log_lines(logs: object) -> Iterator[LogLine]:
    for item in logs if isinstance(logs, list) else ():
        if isinstance(item, str):
            yield LogLine(item)
        elif isinstance(item, dict) and isinstance(item.get("message"), str):
            yield LogLine(
                item["message"], text_or_none(item.get("level")), text_or_none(item.get("timestamp"))
            )


def _detail(body: Any, reply: HttpReply) -> Detail:
    return Detail.of(body, reply.headers.get("x-fal-error-type"))


def _is_fals_own_error(body: Any, reply: HttpReply) -> bool:
    """Whether an error has a type in one of the places where fal and its models put it."""
    if "x-fal-error-type" in reply.headers:
        return True
    if not isinstance(body, dict):
        return False
    detail = body.get("detail")
    parts = detail if isinstance(detail, list) else []
    return bool(body.get("error_type")) or any(isinstance(part, dict) and part.get("type") for part in parts)


def _billed(reply: HttpReply) -> Billed | None:
    """Read what the server says of the bill: ``X-Fal-Billable-Units``, the units that were charged."""
    units = reply.headers.get("x-fal-billable-units")
    try:
        charged = float(units or "nan")
    except ValueError:
        return None
    return None if math.isnan(charged) else ("yes" if charged > 0 else "no")


def _job_failure(
    handle: JobHandle, detail: Detail, http_status: int | None, billed: Billed | None, *, cancelled: bool
) -> Failure:
    """
    Tell the kind of a job's failure from its type, else from its status code.

    fal: 5xx is never charged; a 422 "may still be charged if a runner spent GPU time"; whether a cancelled
    run is charged is not documented.
    """
    kind, transient = FailureKind.JOB_FAILED, False
    expected: Billed = "maybe"
    what = "The job failed"
    advice = ""
    if cancelled or detail.type in _CANCELLED_TYPES or http_status == 499:
        kind, what = FailureKind.JOB_CANCELLED, "The job was cancelled"
    elif detail.type in REFUSED_TYPES:
        kind, what = FailureKind.CONTENT_REFUSED, "The model refused the content"
        advice = "Change the prompt or the input media."
    elif detail.type in _TRANSIENT_TYPES or (http_status is not None and http_status >= 500):
        transient, expected = True, "no"
    elif detail.type in _FAILED_422_TYPES:
        advice = "Another seed or prompt may do."
    elif http_status in (400, 413, 422) or (http_status is None and detail.type is not None):
        kind, what = FailureKind.INPUT, "The model refused its input"
        advice = "Correct the arguments, then clear the task that submits."
    return Failure(
        kind,
        what=f"{what}{detail.words}.",
        retry_does=LOOKS_AGAIN,
        advice=advice,
        billed=billed or expected,
        transient=transient and (billed or expected) == "no",
        error_type=detail.type,
        http_status=http_status,
        request_id=handle.request_id,
    )


def _media_in(data: Any) -> Iterator[MediaFile]:
    """
    Find the media files in a model's answer.

    fal's models put a file (``{"url": …}``) or a list of files under names of their own, so every mapping
    with a URL counts, wherever it is, and every top-level ``…_url``. ``has_nsfw_concepts[i]`` belongs to
    ``images[i]``. The URLs that errors have in them lead to explanations.
    """
    flags = data.get("has_nsfw_concepts") if isinstance(data, dict) else None
    flagged = {f"images[{i}]" for i, flag in enumerate(flags) if flag} if isinstance(flags, list) else set()
    if isinstance(data, dict):
        data = {key: value for key, value in data.items() if key not in ("detail", "error")}
    for file in files_below(data, ""):
        yield replace(file, flagged=True) if file.where in flagged else file
