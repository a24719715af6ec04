"""The fal dialect: its paths, and what it says about a job."""

from __future__ import annotations

import asyncio
import base64
import json
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from airflow_provider_uniapi_fal.emulator import inputs
from airflow_provider_uniapi_fal.emulator.jobs import Job, Phase
from airflow_provider_uniapi_fal.emulator.media import MediaFile, UnreadablePictureError
from airflow_provider_uniapi_fal.emulator.refusals import NOT_FOUND, REFUSALS
from airflow_provider_uniapi_fal.emulator.reply import Reply
from airflow_provider_uniapi_fal.emulator.server import Call, Gateway, Route

FAL_ORIGIN = "https://queue.fal.run"
FAMILY = "/fal-ai"
# Owners whose ids keep their first segment; every other id belongs to fal-ai, whether it says so or not.
OTHER_OWNERS = frozenset({"bytedance", "xai"})
# In these name spaces the owner comes second: the id of the app is three segments long.
NAMESPACES = frozenset({"workflows", "comfy"})
STATUS_WORDS = {Phase.QUEUED: "IN_QUEUE", Phase.RUNNING: "IN_PROGRESS", Phase.FINISHED: "COMPLETED"}
ERROR_CODES = {
    "request_timeout": 504,
    "startup_timeout": 504,
    "runner_scheduling_failure": 503,
    "runner_connection_timeout": 503,
    "runner_disconnected": 503,
    "runner_connection_refused": 503,
    "runner_connection_error": 503,
    "runner_incomplete_response": 502,
    "runner_server_error": 500,
    "internal_error": 500,
    "client_disconnected": 499,
    "client_cancelled": 499,
    "bad_request": 400,
}
# A stream looks at least this often whether its job has moved on: places in the queue and cancels come unannounced.
STREAM_TICK = 0.5
# A result of this size is not kept as long as a smaller one.
LARGE_RESULT = 10 * 1024


@dataclass(frozen=True)
class ModelId:
    """A model's id below the family prefix, without fal's own owner name."""

    path: str

    @classmethod
    def read(cls, text: str) -> ModelId:
        """Read an id with or without a leading ``fal-ai/``."""
        return cls(text.strip("/").removeprefix("fal-ai/"))

    @property
    def app(self) -> str:
        """The part of the id that addresses a request: owner and app, without what follows."""
        segments = self.path.split("/")
        length = 3 if segments[0] in NAMESPACES else 2 if segments[0] in OTHER_OWNERS else 1
        return "/".join(segments[:length])

    @property
    def owner_at_fal(self) -> str:
        """What stands before the id on fal's own host."""
        return "" if self.app.split("/")[0] in OTHER_OWNERS | NAMESPACES else "fal-ai/"


async def submit(gateway: Gateway, call: Call) -> Reply:
    """Accept a job, whatever its arguments."""
    model = ModelId.read(call.part("model"))
    if not model.path or "requests" in model.path.split("/"):
        return Reply.gateway_error(404, "There is no such address.")
    try:
        inputs.read_arguments(call.body)
    except ValueError:
        return _request_error("bad_request", "The body is not JSON.")
    longest = call.request.query.get("fal_max_queue_length", "")
    if longest.isdecimal() and gateway.waiting() > int(longest):
        return REFUSALS["queue-full"]
    call.job = gateway.begin(model.path, call)
    return Reply.json(_status_body(gateway, call.job, call, with_logs=False), headers=_headers(call.job))


async def status(gateway: Gateway, call: Call) -> Reply:
    """Say where a job is."""
    job, now = call.job, gateway.now()
    if job is None or not _is_addressed(job, call):
        return NOT_FOUND
    with_logs = call.request.query.get("logs", "").lower() in ("1", "true")
    code = 200 if job.phase is Phase.FINISHED else job.behaviour.pending_code
    return Reply.json(_status_body(gateway, job, call, with_logs=with_logs, now=now), code, _headers(job))


async def stream(gateway: Gateway, call: Call) -> Reply:
    """Tell where a job is whenever that changes, until its end."""
    job = call.job
    if job is None or not _is_addressed(job, call) or job.behaviour.stream == "missing":
        return NOT_FOUND
    if job.behaviour.stream == "not-allowed":
        return Reply.gateway_error(405, "Method not allowed.")
    with_logs = call.request.query.get("logs", "").lower() in ("1", "true")

    def events() -> AsyncIterator[bytes]:
        told = _events(gateway, job, call, with_logs=with_logs)
        return _buffered(told) if job.behaviour.stream == "buffered" else told

    return Reply(200, b"", "text/event-stream", _headers(job), pieces=events)


async def _events(gateway: Gateway, job: Job, call: Call, *, with_logs: bool) -> AsyncIterator[bytes]:
    behaviour, spoke_at = job.behaviour, gateway.now()
    told: dict[str, Any] = {}
    while True:
        now = gateway.now()
        body = _status_body(gateway, job, call, with_logs=with_logs, now=now)
        if body != told:
            told, spoke_at = body, now
            yield b"data: " + json.dumps(body).encode() + b"\n\n"
        elif now - spoke_at >= behaviour.comment_seconds and behaviour.stream != "no-comments":
            spoke_at = now
            yield b": still there\n\n"
        if job.phase is Phase.FINISHED or behaviour.stream == "cut":
            return
        if behaviour.stream == "silent":
            await asyncio.Event().wait()
        await asyncio.sleep(min(max(job.next_change_at(now) - now, 0.001), STREAM_TICK))


async def _buffered(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield b"".join([event async for event in events])


async def result(gateway: Gateway, call: Call) -> Reply:
    """Give what the model gave: media, or its error."""
    job, now = call.job, gateway.now()
    if job is None or not _is_addressed(job, call):
        return NOT_FOUND
    behaviour = job.behaviour
    if job.finished_at is None:
        if behaviour.early_result_code == 202:
            return Reply.json(_status_body(gateway, job, call, with_logs=False), 202, _headers(job))
        return Reply.json({"detail": "Request is still in progress"}, 400, _headers(job))
    age = now - job.finished_at
    if age > max(behaviour.result_seconds, behaviour.large_result_seconds):
        return NOT_FOUND
    reply = await _result(gateway, job, call)
    large = len(reply.body) >= LARGE_RESULT
    kept = behaviour.large_result_seconds if large else behaviour.result_seconds
    return reply if age <= kept else NOT_FOUND


async def _result(gateway: Gateway, job: Job, call: Call) -> Reply:
    arguments = inputs.read_arguments(job.body)
    failed = _failed_result(job, arguments)
    if failed is not None:
        return failed
    order = order_of(job)
    try:
        files = [await gateway.studio.develop(recipe) for recipe in order.recipes]
    except UnreadablePictureError as error:
        problem = {
            "loc": ["body", "image_url"],
            "msg": str(error),
            "type": "image_load_error",
            "input": "data URI",
        }
        return _model_error(job, 422, [problem])
    units = str(len(files) if not order.is_video else arguments.get("duration") or 5)
    urls = [_media_url(gateway, job, call, order, index, file) for index, file in enumerate(files)]
    body = _media_body(gateway, job, order, files, urls)
    return Reply.json(body, headers={**_headers(job), "x-fal-billable-units": units})


async def cancel(gateway: Gateway, call: Call) -> Reply:
    """Remove a waiting job, or signal a running one."""
    job = call.job
    gateway.now()
    if job is None or not _is_addressed(job, call) or job.behaviour.cancel == "not-found":
        return NOT_FOUND
    if job.behaviour.cancel == "not-allowed":
        return Reply.gateway_error(405, "Method not allowed.")
    if job.behaviour.cancel == "already-completed" and job.phase is not Phase.FINISHED:
        # The answer must not lie: the job ends a moment before the cancel arrives.
        gateway.end(job, cancelled=False)
    if job.phase is Phase.FINISHED:
        if job.behaviour.cancel_words == "detail":
            return Reply.json({"detail": f"Request {job.request_id} is already completed."}, 400)
        return _cancelled(job, "ALREADY_COMPLETED", 400)
    gateway.request_cancel(job)
    removed, requested = _cancelled(job, "OK", 200), _cancelled(job, "CANCELLATION_REQUESTED", 202)
    if job.behaviour.cancel == "ignored":
        return requested
    honest = removed if job.phase is Phase.QUEUED else requested
    if job.phase is Phase.QUEUED or job.behaviour.obeys_cancel or job.behaviour.cancel == "removed":
        gateway.end(job, cancelled=True)
    return {"requested": requested, "removed": removed}.get(job.behaviour.cancel, honest)


def _cancelled(job: Job, word: str, code: int) -> Reply:
    if job.behaviour.cancel_words == "success":
        # The pages of single models know no more than this.
        return Reply.json({"success": code != 400}, 200)
    return Reply.json({"status": word}, code)


async def media(gateway: Gateway, call: Call) -> Reply:
    """Give a media file to anyone."""
    job, now = call.job, gateway.now()
    if (
        job is None
        or job.finished_at is None
        or now > job.finished_at + job.behaviour.media_seconds
        or _failed_result(job, inputs.read_arguments(job.body)) is not None
    ):
        return NOT_FOUND
    order = order_of(job)
    for index, recipe in enumerate(order.recipes):
        if order.name(index) == call.part("name"):
            try:
                file = await gateway.studio.develop(recipe)
            except UnreadablePictureError:
                return NOT_FOUND
            return Reply(200, file.data, content_type=recipe.content_type)
    return NOT_FOUND


async def models(gateway: Gateway, call: Call) -> Reply:
    """List a few models, as a free proof that the key is right."""
    ids = ("flux-pro/kontext/text-to-image", "kling-video/v2.1/standard/image-to-video")
    return Reply.json({"object": "list", "data": [{"id": each, "object": "model"} for each in ids]})


async def usage(gateway: Gateway, call: Call) -> Reply:
    """Report an account without limit."""
    return Reply.json({"success": True, "data": {"balance": -1, "used": 0, "cache_used": 0}})


_REQUEST = FAMILY + "/{model:.+}/requests/{request_id}"
ROUTES = [
    Route("POST", FAMILY + "/{model:.+}", "submit", submit, "Key"),
    Route("GET", _REQUEST + "/status", "status", status, "Key"),
    Route("GET", _REQUEST + "/status/stream", "stream", stream, "Key"),
    Route("GET", _REQUEST + "/response", "result", result, "Key"),
    Route("GET", _REQUEST, "result", result, "Key"),
    Route("PUT", _REQUEST + "/cancel", "cancel", cancel, "Key"),
    Route("GET", "/files/{request_id}/{name}", "media", media, None),
    Route("GET", "/v1/models", "probe", models, "Bearer"),
    Route("GET", "/v1/billing/usage", "probe", usage, "Bearer"),
]


def order_of(job: Job) -> inputs.Order:
    """Return the media files that a job makes."""
    return inputs.order(
        job.model,
        inputs.read_arguments(job.body),
        seed=job.seed,
        black=job.behaviour.flagged,
        video_seconds=job.behaviour.video_seconds,
        inline=job.behaviour.data_uris,
    )


def _is_addressed(job: Job, call: Call) -> bool:
    """Tell whether the path names the job's model the way it is found: owner and app, or its whole id."""
    model = ModelId.read(job.model)
    found_at = {"both": (model.app, model.path), "app": (model.app,), "whole": (model.path,)}
    return ModelId.read(call.part("model")).path in found_at[job.behaviour.found_at]


def _status_body(
    gateway: Gateway, job: Job, call: Call, *, with_logs: bool, now: float = 0.0
) -> dict[str, Any]:
    behaviour = job.behaviour
    body: dict[str, Any] = {"status": STATUS_WORDS[job.phase], "request_id": job.request_id}
    if job.phase is Phase.FINISHED and not job.cancelled and behaviour.failure == "status-failure":
        return {**body, "status": "FAILURE", "error": "The job failed upstream."}
    base = _request_url(gateway, job, call)
    if base is not None:
        response = f"{base}/response" if behaviour.url_path == "whole" else base
        body |= {"response_url": response, "status_url": f"{base}/status"}
    if behaviour.gateway_request_id != "missing":
        own = job.request_id if behaviour.gateway_request_id == "same" else str(uuid.UUID(int=job.seed))
        body |= {"gateway_request_id": own}
    body |= _as_set(behaviour.cancel_url, "cancel_url", None if base is None else f"{base}/cancel")
    lines = [_log_line(*line) for line in job.log(now)] if with_logs else None
    body |= _as_set(behaviour.logs, "logs", lines)
    body |= _as_set(behaviour.metrics, "metrics", _metrics(gateway, job))
    if job.phase is Phase.QUEUED:
        body |= _as_set(behaviour.queue_position, "queue_position", gateway.queue.position(job))
    return body | _status_error(job)


def _as_set(shown: str, name: str, value: Any) -> dict[str, Any]:
    if shown == "missing":
        return {}
    return {name: value if shown == "present" else None}


def _request_url(gateway: Gateway, job: Job, call: Call) -> str | None:
    model, urls = ModelId.read(job.model), job.behaviour.urls
    if urls == "missing":
        return None
    path = model.app if job.behaviour.url_path == "app" else model.path
    if urls == "gateway":
        return f"{call.origin}{gateway.settings.base_prefix}{FAMILY}/{path}/requests/{job.request_id}"
    origin = FAL_ORIGIN if urls == "fal" else job.behaviour.foreign_origin.rstrip("/")
    return f"{origin}/{model.owner_at_fal}{path}/requests/{job.request_id}"


def _log_line(when: float, message: str) -> dict[str, str]:
    timestamp = datetime.fromtimestamp(when, timezone.utc).isoformat()
    return {"message": message, "level": "INFO", "source": "USER", "timestamp": timestamp}


def _metrics(gateway: Gateway, job: Job) -> dict[str, Any]:
    return {"inference_time": _inference_seconds(gateway, job)} if job.phase is Phase.FINISHED else {}


def _inference_seconds(gateway: Gateway, job: Job) -> float | None:
    seconds = job.inference_seconds
    return None if seconds is None else seconds * gateway.settings.time_scale


def _status_error(job: Job) -> dict[str, str]:
    if job.phase is not Phase.FINISHED:
        return {}
    if job.cancelled:
        return {"error": "The request was cancelled by the client.", "error_type": "client_cancelled"}
    if job.behaviour.failure == "completed-error":
        return {
            "error": "The request failed before the model could answer.",
            "error_type": job.behaviour.error_type,
        }
    return {}


def _headers(job: Job) -> dict[str, str]:
    return {"x-fal-request-id": job.request_id}


def _failed_result(job: Job, arguments: Any) -> Reply | None:
    """Return the result of a job that did not succeed, None for one that did."""
    error = _status_error(job)
    if error:
        return _request_error(error["error_type"], error["error"], _headers(job))
    failure = job.behaviour.failure
    if failure in ("result-failure", "status-failure"):
        body = {"status": "FAILURE", "request_id": job.request_id, "error": "The job failed upstream."}
        return Reply.json(body, headers=_headers(job))
    if failure == "result-error":
        error_object = {
            "message": "The job failed upstream.",
            "type": "upstream_error",
            "code": "task_failed",
        }
        return Reply.json({"error": error_object}, headers=_headers(job))
    prompt = arguments.get("prompt") if isinstance(arguments, dict) else None
    if failure == "result-500":
        detail = {
            "loc": ["body"],
            "msg": "Internal server error",
            "type": "internal_server_error",
            "input": prompt,
        }
        return _model_error(job, 500, [detail])
    if failure == "refused":
        message = "The content could not be processed because it was flagged by a content checker."
        detail = {
            "loc": ["body", "prompt"],
            "msg": message,
            "type": "content_policy_violation",
            "input": prompt,
        }
        return _model_error(job, 422, [detail])
    if failure == "result-422":
        detail = {"loc": ["body", "prompt"], "msg": "Value error", "type": "value_error", "input": prompt}
        return _model_error(job, 422, [detail])
    found = inputs.problems(job.model, arguments)
    return _model_error(job, 422, found) if found else None


def _request_error(error_type: str, message: str, headers: dict[str, str] | None = None) -> Reply:
    code = ERROR_CODES.get(error_type, 500)
    body = {"detail": message, "error_type": error_type}
    return Reply.json(body, code, {**(headers or {}), "X-Fal-Error-Type": error_type})


def _model_error(job: Job, code: int, detail: list[dict[str, Any]]) -> Reply:
    return Reply.json({"detail": detail}, code, {**_headers(job), "x-fal-billable-units": "0"})


def _media_url(
    gateway: Gateway, job: Job, call: Call, order: inputs.Order, index: int, file: MediaFile
) -> str:
    if order.inline:
        return f"data:{file.recipe.content_type};base64,{base64.b64encode(file.data).decode()}"
    return f"{call.origin}{gateway.settings.base_prefix}/files/{job.request_id}/{order.name(index)}"


def _media_body(
    gateway: Gateway, job: Job, order: inputs.Order, files: list[MediaFile], urls: list[str]
) -> dict[str, Any]:
    described = [
        {
            "url": url,
            "content_type": file.recipe.content_type,
            "file_name": order.name(index),
            "file_size": len(file.data),
        }
        for index, (file, url) in enumerate(zip(files, urls, strict=True))
    ]
    without = job.behaviour.failure == "no-media"
    if order.is_video:
        return {"video": None if without else described[0]}
    sizes = [{"width": file.recipe.width, "height": file.recipe.height} for file in files]
    return {
        "images": []
        if without
        else [{**about, **size} for about, size in zip(described, sizes, strict=True)],
        "timings": {"inference": _inference_seconds(gateway, job)},
        "seed": order.seed,
        "has_nsfw_concepts": [] if without else [job.behaviour.flagged] * len(files),
        "prompt": order.prompt,
    }
