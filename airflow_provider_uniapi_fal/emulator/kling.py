"""The Kling dialect: its envelope, its numeric codes, and its four kinds of job."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_uniapi_fal.emulator import inputs, kling_inputs
from airflow_provider_uniapi_fal.emulator.jobs import Job, Phase, once
from airflow_provider_uniapi_fal.emulator.kling_inputs import ENDPOINTS
from airflow_provider_uniapi_fal.emulator.refusals import kling_error, task_error
from airflow_provider_uniapi_fal.emulator.reply import Reply
from airflow_provider_uniapi_fal.emulator.server import Call, Family, Gateway, PublicFile, Route

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from airflow_provider_uniapi_fal.emulator.settings import Settings

PREFIX = "/kling/v1/"
WORDS = {Phase.QUEUED: "submitted", Phase.RUNNING: "processing"}
WATERMARK = "KLING"
LARGEST_PAGE, DEFAULT_PAGE, LAST_PAGE = 500, 30, 1000

FAILURES = {
    "none": "`succeed`, with the files in `task_result`",
    "completed-error": "`failed` with a `task_status_msg`",
    "result-422": "as `completed-error`",
    "result-500": "as `completed-error`",
    "result-failure": "as `completed-error`",
    "result-error": 'a query answers 400 `{"code": "task_failed", "message", "data": null}`',
    "status-failure": "a query answers 200 with `code` 5000, `task_status` is `failed`",
    "refused": "`failed`; the `task_status_msg` speaks of risk control",
    "no-media": "`succeed` with no files",
}


def _submit(endpoint: str) -> Callable[[Gateway, Call], Awaitable[Reply]]:
    async def submit(gateway: Gateway, call: Call) -> Reply:
        """Accept a job if its arguments are right and there is a slot for it."""
        try:
            arguments = inputs.read_arguments(call.body)
        except ValueError:
            return kling_error(1200, "The body is not JSON")
        if not isinstance(arguments, Mapping):
            return kling_error(1200, "The body is not a JSON object")
        problem = kling_inputs.problem(endpoint, arguments)
        if problem is not None:
            return kling_error(1201, problem)
        if not _has_room(gateway, kling_inputs.slots(endpoint, arguments)):
            return kling_error(1303)
        model = kling_inputs.model_of(endpoint, arguments)
        behaviour = gateway.behaviour(model, call, family=FAMILY.name, endpoint=endpoint)
        own_id = arguments.get("external_task_id") or ""
        if behaviour.kling_external_id == "ignored":
            own_id = ""
        if own_id and gateway.queue.named(FAMILY.name, own_id) is not None:
            return kling_error(1201, "external_task_id already exists")
        about = {"family": FAMILY.name, "endpoint": endpoint, "own_id": own_id}
        job = call.job = gateway.begin(model, call, behaviour, **about)
        if behaviour.kling_submit == "openai-video":
            body = {"id": job.request_id, "task_id": job.request_id, "object": "video", "model": model}
            return Reply.json(
                {**body, "status": "queued", "progress": 0, "created_at": int(job.submitted_at)}
            )
        # Even a job that starts at once is only submitted.
        data = {**_data(gateway, call, job), "task_status": "submitted"}
        data.pop("task_result", None)
        return Reply.json(data) if behaviour.kling_submit == "bare" else _enveloped(data)

    return submit


def _has_room(gateway: Gateway, wanted: int) -> bool:
    most = gateway.settings.kling_slots
    if not most:
        return True
    gateway.now()
    unfinished = (
        job for job in gateway.queue.jobs.values() if job.family == FAMILY.name and job.finished_at is None
    )
    return wanted + sum(kling_inputs.slots(job.endpoint, job.arguments) for job in unfinished) <= most


def _task(endpoint: str) -> Callable[[Gateway, Call], Awaitable[Reply]]:
    async def task(gateway: Gateway, call: Call) -> Reply:
        """Say where a job is, and what it made."""
        job = call.job
        gateway.now()
        if job is None or job.endpoint != endpoint:
            return kling_error(1203)
        finished = job.phase is Phase.FINISHED
        if finished and job.behaviour.failure == "result-error":
            return task_error(400, "task_failed", _message(job))
        if job.behaviour.kling_task == "code-success":
            return Reply.json({"code": "success", "message": "", "data": _other_data(gateway, call, job)})
        data = _data(gateway, call, job)
        if finished and job.behaviour.failure == "status-failure":
            return Reply.json({**_envelope(data), "code": 5000, "message": _message(job)})
        return _enveloped(data)

    return task


def _tasks(endpoint: str) -> Callable[[Gateway, Call], Awaitable[Reply]]:
    async def tasks(gateway: Gateway, call: Call) -> Reply:
        """List the jobs of one kind, the newest first."""
        gateway.now()
        try:
            page = int(call.request.query.get("pageNum", 1))
            size = int(call.request.query.get("pageSize", DEFAULT_PAGE))
        except ValueError:
            return kling_error(1201, "pageNum and pageSize must be numbers")
        if not (1 <= page <= LAST_PAGE and 1 <= size <= LARGEST_PAGE):
            return kling_error(
                1201, f"pageNum must be from 1 to {LAST_PAGE}, pageSize from 1 to {LARGEST_PAGE}"
            )
        found = [
            job
            for job in gateway.queue.jobs.values()
            if job.family == FAMILY.name and job.endpoint == endpoint
        ]
        shown = found[::-1][(page - 1) * size : page * size]
        return _enveloped([_data(gateway, call, job) for job in shown])

    return tasks


def _envelope(data: Any) -> dict[str, Any]:
    return {"code": 0, "message": "SUCCEED", "request_id": str(uuid.uuid4()), "data": data}


def _enveloped(data: Any) -> Reply:
    return Reply.json(_envelope(data))


def _data(gateway: Gateway, call: Call, job: Job) -> dict[str, Any]:
    last_change = max(filter(None, (job.submitted_at, job.started_at, job.finished_at)))
    data: dict[str, Any] = {
        "task_id": job.request_id,
        "task_status": _word(job),
        "task_status_msg": _message(job),
        "task_info": {"external_task_id": job.own_id} if job.own_id else {},
        "created_at": int(job.submitted_at * 1000),
        "updated_at": int(last_change * 1000),
    }
    if job.phase is Phase.FINISHED and not _has_failed(job):
        data["task_result"] = _result(gateway, call, job)
        if job.behaviour.kling_units != "missing":
            units = str(kling_inputs.slots(job.endpoint, job.arguments))
            data["final_unit_deduction"] = units if job.behaviour.kling_units == "present" else None
    return data


def _other_data(gateway: Gateway, call: Call, job: Job) -> dict[str, Any]:
    data: dict[str, Any] = {"task_id": job.request_id, "status": WORDS.get(job.phase, "succeeded")}
    if job.phase is not Phase.FINISHED:
        return data
    if _has_failed(job):
        return {**data, "status": "failed", "fail_reason": _message(job)}
    made = [gateway.media_url(call, job, name) for name in files(job) if "watermark" not in name]
    return {**data, "url": made[0] if made else None}


def _word(job: Job) -> str:
    if job.phase is not Phase.FINISHED:
        return WORDS[job.phase]
    return "failed" if _has_failed(job) else job.behaviour.kling_success


def _has_failed(job: Job) -> bool:
    return job.behaviour.failure not in ("none", "no-media")


def _message(job: Job) -> str:
    if job.phase is not Phase.FINISHED or not _has_failed(job):
        return ""
    if job.behaviour.failure_message:
        return job.behaviour.failure_message
    if job.behaviour.failure == "refused":
        return "Failure to pass the risk control system"
    return "The task failed, please try again later"


def _result(gateway: Gateway, call: Call, job: Job) -> dict[str, Any]:
    made = []
    urls = {name: gateway.media_url(call, job, name) for name in files(job)}
    for index, (name, url) in enumerate((name, url) for name, url in urls.items() if "watermark" not in name):
        about: dict[str, Any] = {"index": index, "url": url}
        if _is_video(job):
            # The ids are as stable as the job.
            own = str(uuid.UUID(int=job.seed + index))
            about = {"id": own, "url": url, "duration": job.arguments.get("duration") or "5"}
        if job.behaviour.kling_watermark_url != "missing":
            about["watermark_url"] = urls.get(_watermarked(name))
        made.append(about)
    return {"videos" if _is_video(job) else "images": made}


def _is_video(job: Job) -> bool:
    return job.endpoint.startswith("videos/")


def _watermarked(name: str) -> str:
    stem, _, ending = name.rpartition(".")
    return f"{stem}-watermark.{ending}"


@once
def files(job: Job) -> dict[str, PublicFile]:
    """Return the files of a finished job, none if it failed."""
    if job.behaviour.failure != "none":
        return {}
    made: dict[str, PublicFile] = {}
    kept = job.behaviour.kling_media_seconds
    for index, recipe in enumerate(kling_inputs.recipes(job)):
        name, shown = f"{recipe.kind}-{index + 1}.{recipe.file_format}", job.shown(recipe)
        made[name] = PublicFile(shown, kept)
        if job.behaviour.kling_watermark_url == "present":
            made[_watermarked(name)] = PublicFile(replace(shown, watermark=WATERMARK), kept)
    return made


def _find(gateway: Gateway, name: str) -> Job | None:
    """Return the job with this id, the service's or the client's own."""
    return gateway.queue.jobs.get(name) or gateway.queue.named(FAMILY.name, name)


def _dress(settings: Settings, reply: Reply) -> Reply:
    """Let errors come under 200, if that is how the gateway passes them on."""
    return replace(reply, status=200) if settings.kling_http == "200" and reply.status >= 400 else reply


FAMILY = Family(
    "kling",
    tuple(
        route
        for endpoint in ENDPOINTS
        for route in (
            Route("POST", PREFIX + endpoint, "submit", _submit(endpoint), "Bearer"),
            Route("GET", PREFIX + endpoint, "list", _tasks(endpoint), "Bearer"),
            Route("GET", PREFIX + endpoint + "/{request_id}", "status", _task(endpoint), "Bearer"),
        )
    ),
    files,
    find=_find,
    dress=_dress,
)
