"""
What the vendors' task APIs have in common: a post makes a task, and a GET of it tells its state and its result.

There is no cancelling and no address of its own for the result. Gateways wrap the same fields in different ways
(``{"id"}``, ``{"task_id"}``, ``{"code", "message", "data": {…}}``), and all of them are read.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from airflow_provider_uniapi_fal.protocol.arguments import arguments_problems, as_json, schema_problems
from airflow_provider_uniapi_fal.protocol.dialects.base import (
    NOT_READY,
    Dialect,
    LookAgain,
    ResultReading,
    StatusReading,
    SubmitReading,
    Submitted,
)
from airflow_provider_uniapi_fal.protocol.dialects.reading import (
    LOOKS_AGAIN,
    Detail,
    Refusal,
    failed_submit,
    files_below,
    no_media,
    quoted,
    refused_read,
    refused_submit,
    text_or_none,
)
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, bad_input, unknown_outcome
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult, JobState, JobStatus, MediaFile
from airflow_provider_uniapi_fal.protocol.messages import HttpReply, HttpRequest, excerpt, read_json
from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount, is_request_id, path_below_family

#: What gateways of this kind answer besides the vendors' own words.
GATEWAY_STATES = {
    "NOT_START": JobState.PENDING,
    "SUBMITTED": JobState.PENDING,
    "PENDING": JobState.PENDING,
    "QUEUED": JobState.PENDING,
    "PROCESSING": JobState.RUNNING,
    "RUNNING": JobState.RUNNING,
    "IN_PROGRESS": JobState.RUNNING,
    "SUCCEEDED": JobState.SUCCEEDED,
    "SUCCESS": JobState.SUCCEEDED,
    "COMPLETED": JobState.SUCCEEDED,
    "FAILED": JobState.FAILED,
    "FAILURE": JobState.FAILED,
    "ERROR": JobState.FAILED,
    "CANCELLED": JobState.CANCELLED,
    "CANCELED": JobState.CANCELLED,
    "CANCEL": JobState.CANCELLED,
}

#: The one option: False sends arguments that break the vendor's documented limits, should they have changed.
CHECK_LIMITS = "check_limits"


class TaskDialect(Dialect):
    """
    A dialect of tasks.

    :cvar states: the vendor's words for states, in capitals, with those of gateways
    :cvar codes: the vendor's error codes
    """

    states: ClassVar[Mapping[str, JobState]] = GATEWAY_STATES
    codes: ClassVar[Mapping[int, Refusal]] = {}

    @abstractmethod
    def submit_path(self, model: str) -> str:
        """Return the path that tasks of a kind are posted to."""

    @abstractmethod
    def task_path(self, model: str, request_id: str) -> str:
        """Return the path of one task."""

    @abstractmethod
    def model_of_task(self, path: str) -> tuple[str, str] | None:
        """Return kind and id of the task with this path, None if it is none of a task."""

    @abstractmethod
    def model_problem(self, model: object) -> str | None:
        """Return what is wrong with the name of a kind of task, or None."""

    @abstractmethod
    def schema(self, model: str) -> Mapping[str, Any]:
        """Return the JSON Schema with the vendor's limits for a kind of task."""

    def more_problems(self, model: str, arguments: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with arguments and cannot be said in JSON Schema, one text for each field."""
        return []

    def media_in(self, task: Mapping[str, Any]) -> Iterator[MediaFile]:
        """Find the media files of a task that has succeeded."""
        return files_below(task, "")

    def remarks(self, model: str, arguments: Mapping[str, Any]) -> list[str]:
        """Name the arguments that the vendor's documentation did not know when this version was written."""
        unknown = sorted(set(map(str, arguments)) - set(self.schema(model)["properties"]))
        return [f"Not known to this version and sent as it is: {', '.join(unknown)}."] if unknown else []

    def submit_request(
        self, model: object, arguments: object, options: Mapping[str, Any]
    ) -> HttpRequest | Failure:
        """Return the post that submits a job, or the failure that names each wrong field."""
        problems = [
            f"{name}: not an option of {self.name}; there is {CHECK_LIMITS}"
            for name in options
            if name != CHECK_LIMITS
        ]
        problem = self.model_problem(model)
        problems += [problem] if problem else []
        wrong = arguments_problems(arguments)
        problems += wrong
        if isinstance(model, str) and isinstance(arguments, Mapping) and not problem and not wrong:
            if options.get(CHECK_LIMITS, True):
                problems += schema_problems(self.schema(model), arguments)
            problems += self.more_problems(model, arguments)
        if problems or not isinstance(model, str):
            return bad_input("Refused before anything was sent: " + "; ".join(problems) + ".")
        return HttpRequest("POST", self.family, self.submit_path(model), json=as_json(arguments))

    def read_submit(
        self, reply: HttpReply, *, model: str, fal_conn_id: str, account: GatewayAccount, now: float
    ) -> SubmitReading:
        """Read the reply to a submit: an id is a job, whatever is said around it."""
        body = read_json(reply)
        detail, refusal = self._detail(body)
        if refusal is not None or not reply.ok:
            return refused_submit(reply, detail, now, code=refusal)
        request_id = _id_in(body)
        if request_id is not None:
            handle = self._built(model, request_id, fal_conn_id, now)
            status = self.read_status(handle, reply, now)
            if not isinstance(status, JobStatus):
                status = JobStatus(JobState.PENDING, word="")
            return Submitted(handle, status)
        if isinstance(body, dict) and (body.get("error") or _code_of(body) or self._state(body)[0] in _ENDED):
            return failed_submit(reply, detail)
        return unknown_outcome("the gateway's reply has no usable task id", reply.status)

    def handle_of(
        self, request_id: object, model: object, *, fal_conn_id: str, now: float
    ) -> JobHandle | Failure:
        """Return a handle built from an id and a kind of task alone."""
        if not is_request_id(request_id):
            return bad_input("request_id: an id made of letters, digits, '_' and '-' is needed.")
        problem = self.model_problem(model)
        if problem:
            return bad_input(
                f"{problem}.", "With request_id, give the model, too: its path leads to the job."
            )
        return self._built(str(model), str(request_id), fal_conn_id, now)

    def handle_of_url(
        self, status_url: object, *, account: GatewayAccount, fal_conn_id: str, now: float
    ) -> JobHandle | Failure:
        """Return a handle built from the address of a task; its host is not used."""
        path = path_below_family(status_url, account.family_paths[self.family], account.base_url)
        found = self.model_of_task(path or "")
        if found is None or not is_request_id(found[1]):
            return bad_input(f"status_url: the address of a task of {self.name} is needed.")
        return self._built(*found, fal_conn_id, now)

    def status_request(self, handle: JobHandle, *, logs: bool) -> HttpRequest:
        """Return the request that asks how the job is going; there are no logs."""
        return HttpRequest("GET", self.family, handle.status_path)

    def read_status(self, handle: JobHandle, reply: HttpReply, now: float) -> StatusReading:
        """Read the reply to it: any 2xx with a known word is an answer, nearly all else is "look again"."""
        if reply.oversized:
            return LookAgain("the status is too long to read here", oversized=True)
        body = read_json(reply)
        detail, refusal = self._detail(body)
        state, word = self._state(body)
        if detail.type in _FAILED_CODES or (refusal is not None and refusal.content):
            state, word = JobState.FAILED, word or str(detail.type)
        if state in _ENDED:
            # The task's own word counts more than the code around it.
            return JobStatus(state, word, error=self._reason(body) or detail.text, error_type=detail.type)
        if refusal is not None or not reply.ok:
            return refused_read(handle, reply, body, detail, now, may_run=True, code=refusal)
        if not isinstance(body, dict):
            return LookAgain("the status cannot be read" + quoted(body))
        if not word:
            return LookAgain(f"the status has no word for the state{detail.words}", bounded=True)
        return JobStatus(state, word)

    def result_request(self, handle: JobHandle) -> HttpRequest:
        """Return the request that fetches the result: the task itself has it."""
        return HttpRequest("GET", self.family, handle.response_path)

    def read_result(self, handle: JobHandle, reply: HttpReply, now: float) -> ResultReading:
        """Read the reply to it. Success is a task that has succeeded by its own word and has media."""
        status = self.read_status(handle, reply, now)
        if isinstance(status, Failure):
            return replace(status, may_run=False)
        if isinstance(status, LookAgain):
            return status
        if status.state in (JobState.FAILED, JobState.CANCELLED):
            return self.failure_of(handle, status)
        if status.state is not JobState.SUCCEEDED:
            return NOT_READY
        task = _task_in(read_json(reply))
        media = tuple(self.media_in(task))
        if not media:
            return no_media(handle, "there is no address in it")
        units = task.get("final_unit_deduction")
        return JobResult(
            handle=handle,
            data=task,
            media=media,
            billable_units=str(units) if isinstance(units, (str, int, float)) else None,
        )

    def failure_of(self, handle: JobHandle, status: JobStatus) -> Failure:
        """Return the failure that a failed or cancelled status tells of; nobody says whether it is charged."""
        detail = Detail(status.error_type, status.error)
        code = status.error_type or ""
        refusal = self.codes.get(int(code)) if code.isdecimal() else None
        kind, what, advice = FailureKind.JOB_FAILED, "The job failed", ""
        if status.state is JobState.CANCELLED:
            kind, what = FailureKind.JOB_CANCELLED, "The job was cancelled"
        elif refusal is not None and refusal.content:
            kind, what = FailureKind.CONTENT_REFUSED, "The model refused the content"
            advice = "Change the prompt or the input media."
        return Failure(
            kind,
            what=f"{what}{detail.words}.",
            retry_does=LOOKS_AGAIN,
            advice=advice,
            billed="maybe",
            error_type=status.error_type,
            request_id=handle.request_id,
        )

    def _built(self, model: str, request_id: str, fal_conn_id: str, now: float) -> JobHandle:
        path = self.task_path(model, request_id)
        return JobHandle(self.name, model, request_id, path, path, None, fal_conn_id, now)

    def _state(self, body: Any) -> tuple[JobState, str]:
        """Return the state and the server's word for it, from whichever field has it."""
        for fields in (_task_in(body), body if isinstance(body, dict) else {}):
            for name in ("task_status", "state", "status"):
                word = fields.get(name)
                if isinstance(word, str) and word.strip():
                    found = word.strip()[:60]
                    return self.states.get(found.upper(), JobState.UNKNOWN), found
        return JobState.UNKNOWN, ""

    def _reason(self, body: Any) -> str | None:
        task = _task_in(body)
        texts = (task.get(name) for name in ("task_status_msg", "failure_reason", "fail_reason"))
        found = next((text for text in map(text_or_none, texts) if text), None)
        return excerpt(found) if found else None

    def _detail(self, body: Any) -> tuple[Detail, Refusal | None]:
        """Return what is said of an error, and what the vendor's code for it stands for, if there is one."""
        code = _code_of(body)
        detail = Detail.of(body)
        if code is None:
            return detail, None
        refusal = self.codes.get(int(code)) if code.isdecimal() else None
        return Detail(code, detail.text), refusal


_ENDED = (JobState.FAILED, JobState.CANCELLED)

#: What gateways say, instead of the vendor's task, of one that has failed.
_FAILED_CODES = ("task_failed",)


def _task_in(body: Any) -> Mapping[str, Any]:
    """Return the task's own fields, out of the envelope that they may be in."""
    inner = body.get("data") if isinstance(body, dict) else None
    fields = inner if isinstance(inner, dict) else body
    return fields if isinstance(fields, dict) else {}


def _id_in(body: Any) -> str | None:
    if not isinstance(body, dict):
        return None
    data = body.get("data")
    candidates = [fields.get(name) for fields in (_task_in(body), body) for name in ("task_id", "id")]
    for value in [*candidates, data]:
        text = str(value) if isinstance(value, int) and not isinstance(value, bool) else value
        if isinstance(text, str) and is_request_id(text):
            return text
    return None


def _code_of(body: Any) -> str | None:
    """Return a body's code if it says that something went wrong."""
    code = body.get("code") if isinstance(body, dict) else None
    if isinstance(code, bool) or not isinstance(code, (int, str)):
        return None
    text = str(code).strip()
    return None if text.lower() in ("", "0", "200", "success", "ok") else excerpt(text)
