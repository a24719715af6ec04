"""
The OpenAI-images form: one long request that is answered with the pictures.

There is no id to come back to: whatever breaks the request off leaves a job that may run and be billed, and whose
result is lost. Sources: UniAPI's FalAI page (path, body); OpenAI's form of request and reply.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from airflow_provider_uniapi_fal.protocol.arguments import (
    arguments_problems,
    as_json,
    model_problem,
    schema_problems,
    seconds,
)
from airflow_provider_uniapi_fal.protocol.dialects.base import (
    Dialect,
    Finished,
    ResultReading,
    StatusReading,
    SubmitReading,
)
from airflow_provider_uniapi_fal.protocol.dialects.reading import (
    Detail,
    Refusal,
    failed_submit,
    is_media_url,
    refused_submit,
    whole_or_none,
)
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, bad_input, unknown_outcome
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult, JobStatus, MediaFile
from airflow_provider_uniapi_fal.protocol.messages import HttpReply, HttpRequest, Unreadable, read_json
from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount, is_request_id
from airflow_provider_uniapi_fal.protocol.schemas import shipped_schema

PATH = "/images/generations"

#: Seconds for the answer: slow models of several pictures take minutes.
TIMEOUT = 900.0

#: OpenAI's codes that say more than the HTTP status they come with: 400 for a prompt, 429 for an empty account.
CODES = {
    "content_policy_violation": Refusal(400, content=True),
    "moderation_blocked": Refusal(400, content=True),
    "insufficient_quota": Refusal(402),
    "billing_hard_limit_reached": Refusal(402),
}

_OPTIONS = ("check_limits", "timeout")


class OpenAIImagesDialect(Dialect):
    """
    OpenAI images below the gateway's ``/v1``.

    Options: ``timeout``, seconds for the answer, default 900; ``check_limits``, False to send arguments that break
    the documented limits.
    """

    name = "openai_images"
    family = "openai"
    answers_at_once = True
    keeps = "The gateway keeps no results of this dialect."

    def remarks(self, model: str, arguments: Mapping[str, Any]) -> list[str]:
        """Say which number of pictures may be billed if two are given."""
        if "n" in arguments and "num_images" in arguments:
            n, num_images = whole_or_none(arguments["n"]), whole_or_none(arguments["num_images"])
            most = max(n or 0, num_images or 0)
            remark = (
                f"Both n ({n}) and num_images ({num_images}) are given; which of them counts is not documented: "
                f"up to {most} pictures may be made and billed. Give one of them."
            )
            return [remark]
        return []

    def submit_request(
        self, model: object, arguments: object, options: Mapping[str, Any]
    ) -> HttpRequest | Failure:
        """Return the post that is answered with the pictures, or the failure that names each wrong field."""
        problems = [problem for problem in (model_problem(model),) if problem]
        problems += [
            f"{name}: not an option of {self.name}; there are {', '.join(_OPTIONS)}"
            for name in options
            if name not in _OPTIONS
        ]
        timeout = options.get("timeout")
        try:
            timeout = TIMEOUT if timeout is None else seconds("timeout", timeout)
        except ValueError as error:
            problems.append(str(error))
        wrong = arguments_problems(arguments)
        problems += wrong
        if isinstance(arguments, Mapping) and not wrong:
            if arguments.get("model", model) != model:
                problems.append("arguments.model: another model than the one that is submitted to")
            if options.get("check_limits", True):
                problems += schema_problems(shipped_schema(f"{self.name}/generations"), arguments)
        if problems or not isinstance(arguments, Mapping):
            return bad_input("Refused before anything was sent: " + "; ".join(problems) + ".")
        body = {"model": model, **as_json(arguments)}
        return HttpRequest("POST", self.family, PATH, json=body, read_timeout=timeout)

    def read_submit(
        self, reply: HttpReply, *, model: str, fal_conn_id: str, account: GatewayAccount, now: float
    ) -> SubmitReading:
        """Read the answer: the pictures, a refusal, or an outcome that nobody knows."""
        body = read_json(reply)
        detail = Detail.of(body)
        code = _code_in(body)
        if not reply.ok:
            # A 5xx says nothing about the money, whatever its body says.
            return _answered(refused_submit(reply, detail, now, code=code if reply.status < 500 else None))
        if reply.oversized:
            return unknown_outcome("the answer is too long to be read", reply.status)
        if isinstance(body, Unreadable) or not isinstance(body, dict):
            return unknown_outcome("the gateway's answer cannot be read", reply.status)
        data = _with_data_uris(body.get("data"))
        media = tuple(_media_in(data))
        if media:
            handle = self._receipt(reply, model, fal_conn_id, now)
            return Finished(
                JobResult(handle, {**body, "data": data}, media, seed=whole_or_none(body.get("seed")))
            )
        if code is not None:
            return _answered(refused_submit(reply, detail, now, code=code))
        if body.get("error"):
            return failed_submit(reply, detail)
        return failed_submit(reply, Detail("no_media_generated", detail.text))

    def handle_of(
        self, request_id: object, model: object, *, fal_conn_id: str, now: float
    ) -> JobHandle | Failure:
        """Return the failure that there is nothing to come back to."""
        return _no_way_back()

    def handle_of_url(
        self, status_url: object, *, account: GatewayAccount, fal_conn_id: str, now: float
    ) -> JobHandle | Failure:
        """Return the failure that there is nothing to come back to."""
        return _no_way_back()

    def status_request(self, handle: JobHandle, *, logs: bool) -> HttpRequest | Failure:
        """Return the failure that there is nothing to come back to."""
        return _no_way_back(handle.request_id)

    def read_status(self, handle: JobHandle, reply: HttpReply, now: float) -> StatusReading:
        """Return the failure that there is nothing to come back to."""
        return _no_way_back(handle.request_id)

    def result_request(self, handle: JobHandle) -> HttpRequest | Failure:
        """Return the failure that there is nothing to come back to."""
        return _no_way_back(handle.request_id)

    def read_result(self, handle: JobHandle, reply: HttpReply, now: float) -> ResultReading:
        """Return the failure that there is nothing to come back to."""
        return _no_way_back(handle.request_id)

    def failure_of(self, handle: JobHandle, status: JobStatus) -> Failure:
        """Return the failure that there is nothing to come back to."""
        return _no_way_back(handle.request_id)

    def _receipt(self, reply: HttpReply, model: str, fal_conn_id: str, now: float) -> JobHandle:
        """
        Return a handle that names the job in accounts; no path in it leads anywhere.

        Its id is the gateway's for the request, where it tells one, and else made of the moment and the answer.
        """
        told = next(
            (id_ for name in ("x-request-id", "x-oneapi-request-id") if (id_ := reply.headers.get(name))),
            None,
        )
        made = f"{int(now * 1000):x}-{hashlib.sha256(reply.body).hexdigest()[:16]}"
        request_id = told if is_request_id(told) else made
        return JobHandle(self.name, model, str(request_id), PATH, PATH, None, fal_conn_id, now)


def _no_way_back(request_id: str | None = None) -> Failure:
    return Failure(
        FailureKind.INPUT,
        what="An OpenAI-images request is answered with its result; there is nothing to wait for or to fetch later.",
        retry_does="would be refused in the same way.",
        advice="Use OpenAIImagesOperator, which lands the pictures itself.",
        billed="maybe",
        request_id=request_id,
    )


def _answered(failure: Failure) -> Failure:
    """Return a refusal of what was asked for as one that may have come after the work, and been billed."""
    if failure.kind not in (FailureKind.INPUT, FailureKind.CONTENT_REFUSED) or failure.http_status == 404:
        return failure
    return replace(failure, what=failure.what.removesuffix(" Nothing was accepted."), billed="maybe")


def _code_in(body: Any) -> Refusal | None:
    error = body.get("error") if isinstance(body, dict) else None
    fields = error if isinstance(error, dict) else {}
    named = (fields.get(name) for name in ("code", "type"))
    return next((CODES[name] for name in named if isinstance(name, str) and name in CODES), None)


def _with_data_uris(data: Any) -> list[dict[str, Any]]:
    """Write base64 as data URIs, which are known everywhere as what must not enter an XCom."""
    items = [item for item in (data if isinstance(data, list) else ()) if isinstance(item, dict)]
    return [
        {**item, "b64_json": f"data:;base64,{item['b64_json']}"}
        if isinstance(item.get("b64_json"), str) and not item["b64_json"].startswith("data:")
        else item
        for item in items
    ]


def _media_in(data: list[dict[str, Any]]) -> Iterator[MediaFile]:
    for index, item in enumerate(data):
        address = item.get("b64_json") or item.get("url")
        if is_media_url(address):
            yield MediaFile(f"data[{index}]", str(address))
