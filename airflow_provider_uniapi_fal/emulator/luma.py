"""The Luma dialect: videos from a prompt, longer ones from them, and a short-lived address to download each."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from typing import Any

from airflow_provider_uniapi_fal.emulator import inputs
from airflow_provider_uniapi_fal.emulator.jobs import Job, Phase, once
from airflow_provider_uniapi_fal.emulator.refusals import detail, task_error
from airflow_provider_uniapi_fal.emulator.reply import Reply
from airflow_provider_uniapi_fal.emulator.server import Call, Family, Gateway, PublicFile, Route

PREFIX = "/luma/"
WATERMARK = "LUMA"
VIDEO, CLEAN_VIDEO, THUMBNAIL, LAST_FRAME = (
    "video.mp4",
    "video-clean.mp4",
    "thumbnail.jpeg",
    "last-frame.jpeg",
)
WORDS = {
    "gateway": {Phase.QUEUED: "pending", Phase.RUNNING: "processing"},
    "official": {Phase.QUEUED: "queued", Phase.RUNNING: "dreaming"},
}
RATIOS = ("1:1", "4:3", "3:4", "16:9", "9:16")
CHOICES = {"aspect_ratio": RATIOS, "duration": ("5s", "9s"), "resolution": ("540p", "720p", "1080p")}
TEXTS = ("user_prompt", "image_url", "image_end_url", "notify_hook", "model_name")
SWITCHES = ("expand_prompt", "loop")
DEFAULT_MODEL = "ray-v1"

FAILURES = {
    "none": "`completed`, with a video",
    "completed-error": "`failed` with a `failure_reason`",
    "result-422": "as `completed-error`",
    "result-500": "as `completed-error`",
    "result-failure": "as `completed-error`",
    "result-error": 'a query answers 200 `{"error": {...}}`',
    "status-failure": 'a query answers 200 `{"code": "task_failed", "message", "data": null}`',
    "refused": "`failed`; the `failure_reason` speaks of moderation",
    "no-media": "`completed` without a video",
}


async def generate(gateway: Gateway, call: Call) -> Reply:
    """Begin a video."""
    return _begin(gateway, call, "generations")


async def extend(gateway: Gateway, call: Call) -> Reply:
    """Begin a video that goes on from another."""
    gateway.now()
    source = FAMILY.job_at(gateway, call.part("source_id"))
    if source is None:
        return detail(404, "Generation not found")
    if source.phase is not Phase.FINISHED or source.behaviour.failure != "none":
        return detail(400, "The generation to extend is not completed")
    return _begin(gateway, call, "extend", source)


def _begin(gateway: Gateway, call: Call, endpoint: str, source: Job | None = None) -> Reply:
    try:
        arguments = inputs.read_arguments(call.body)
    except ValueError:
        return detail(400, "The body is not JSON")
    problem = _problem(arguments)
    if problem is not None:
        return detail(400, problem)
    model = arguments.get("model_name") or DEFAULT_MODEL
    behaviour = gateway.behaviour(model, call, family=FAMILY.name, endpoint=endpoint)
    about = {"family": FAMILY.name, "endpoint": endpoint, "source": source.request_id if source else ""}
    job = call.job = gateway.begin(model, call, behaviour, **about)
    if behaviour.luma_submit in ("id", "task_id"):
        return Reply.json({behaviour.luma_submit: job.request_id})
    # Even a job that starts at once is only queued.
    body = {**_generation(gateway, call, job), "state": WORDS[behaviour.luma_words][Phase.QUEUED]}
    media = ("video", "video_raw", "assets", "thumbnail", "last_frame")
    body.update({name: None for name in media if name in body})
    return _wrapped(body, behaviour.luma_submit == "wrapped")


def _problem(arguments: Any) -> str | None:
    if not isinstance(arguments, Mapping):
        return "The body is not a JSON object"
    if not arguments.get("user_prompt"):
        return "user_prompt is required"
    for name in TEXTS:
        if not isinstance(arguments.get(name) or "", str):
            return f"{name} must be a string"
    for name in SWITCHES:
        if not isinstance(arguments.get(name) or False, bool):
            return f"{name} must be true or false"
    for name, choices in CHOICES.items():
        if arguments.get(name) is not None and arguments[name] not in choices:
            return f"{name} must be one of {', '.join(choices)}"
    return None


async def task(gateway: Gateway, call: Call) -> Reply:
    """Say where a job is, and what it made."""
    job = call.job
    gateway.now()
    if job is None:
        return detail(404, "Generation not found")
    if job.phase is Phase.FINISHED and job.behaviour.failure == "status-failure":
        return task_error(200, "task_failed", _reason(job))
    if job.phase is Phase.FINISHED and job.behaviour.failure == "result-error":
        return Reply.gateway_error(200, _reason(job))
    return _wrapped(_generation(gateway, call, job), job.behaviour.luma_task == "wrapped")


async def tasks(gateway: Gateway, call: Call) -> Reply:
    """Say where several jobs are; of those that do not exist nothing is said."""
    gateway.now()
    try:
        asked = inputs.read_arguments(call.body)
        ids = [each for each in asked["ids"] if isinstance(each, str)]
    except (ValueError, TypeError, KeyError):
        return detail(400, "ids is required")
    found = (FAMILY.job_at(gateway, each) for each in ids)
    return Reply.json([_generation(gateway, call, job) for job in found if job is not None])


async def download_link(gateway: Gateway, call: Call) -> Reply:
    """Give an address of the video without watermark that holds for minutes only."""
    job = call.job
    gateway.now()
    if job is None:
        return detail(404, "Generation not found")
    if job.phase is not Phase.FINISHED or job.behaviour.failure != "none":
        return detail(400, "The generation is not completed")
    url = _clean_url(gateway, call, job)
    if job.behaviour.luma_link == "wrapped":
        return _wrapped({"url": url}, True)
    return Reply.json({job.behaviour.luma_link: url})


def _wrapped(body: dict[str, Any], wrapped: bool) -> Reply:
    return Reply.json({"code": "success", "message": "", "data": body} if wrapped else body)


def _generation(gateway: Gateway, call: Call, job: Job) -> dict[str, Any]:
    behaviour, finished = job.behaviour, job.phase is Phase.FINISHED
    failed = finished and behaviour.failure not in ("none", "no-media")
    word = WORDS[behaviour.luma_words].get(job.phase, "failed" if failed else "completed")
    created = datetime.fromtimestamp(job.submitted_at, timezone.utc).isoformat().replace("+00:00", "Z")
    body: dict[str, Any] = {
        "id": job.request_id,
        "prompt": job.arguments["user_prompt"],
        "state": word,
        "queue_state": None,
        "created_at": created,
        "batch_id": "",
        "liked": None,
        "estimate_wait_seconds": None if finished else 0,
        "failure_reason": _reason(job) if failed else None,
    }
    has_video = finished and behaviour.failure == "none"
    if behaviour.luma_shape == "official":
        assets = {"video": gateway.media_url(call, job, VIDEO), "image": None, "progress_video": None}
        return {**body, "assets": assets if has_video else None}
    nothing: dict[str, Any] = {"video": None, "video_raw": None, "thumbnail": None, "last_frame": None}
    return {**body, **(_media(gateway, call, job) if has_video else nothing)}


def _media(gateway: Gateway, call: Call, job: Job) -> dict[str, Any]:
    recipe = _recipe(job)
    size = {"width": recipe.width, "height": recipe.height}
    thumbnail = gateway.media_url(call, job, THUMBNAIL)
    video: dict[str, Any] = {"url": gateway.media_url(call, job, VIDEO), **size, "thumbnail": thumbnail}
    shown = job.behaviour.luma_download_url
    link = {"present": _clean_url(gateway, call, job), "empty": ""}.get(shown)
    if shown != "missing":
        video["download_url"] = link
    return {
        "video": video,
        "video_raw": {"url": link or "", **size, "duration": recipe.seconds},
        "thumbnail": {"url": thumbnail, **size},
        "last_frame": {"url": gateway.media_url(call, job, LAST_FRAME), **size},
    }


def _clean_url(gateway: Gateway, call: Call, job: Job) -> str:
    until = math.floor((gateway.now() + job.behaviour.luma_link_seconds) * 1000)
    return f"{gateway.media_url(call, job, CLEAN_VIDEO)}?until={until}"


def _reason(job: Job) -> str:
    if job.behaviour.failure_message:
        return job.behaviour.failure_message
    if job.behaviour.failure == "refused":
        return "The prompt did not pass the moderation."
    return "The generation failed, please try again later."


@once
def _recipe(job: Job) -> inputs.Recipe:
    arguments, behaviour = job.arguments, job.behaviour
    width, height = inputs.video_size(arguments.get("aspect_ratio") or "16:9")
    first, last = (_source(arguments.get(name)) for name in ("image_url", "image_end_url"))
    recipe = inputs.Recipe(
        "video",
        prompt=arguments["user_prompt"],
        seed=job.seed,
        width=width,
        height=height,
        file_format="mp4",
        black=behaviour.flagged,
        source=first or last,
        second=last if first else "",
        seconds=behaviour.video_seconds,
    )
    return job.shown(recipe)


def _source(text: str | None) -> str:
    if not text or text.startswith(("http://", "https://", "data:")):
        return text or ""
    return f"data:image/png;base64,{text}"


@once
def files(job: Job) -> dict[str, PublicFile]:
    """Return the files of a finished job, none if it failed."""
    if job.behaviour.failure != "none":
        return {}
    recipe, kept = _recipe(job), job.behaviour.media_seconds
    still = replace(recipe, kind="image", file_format="jpeg", second="", seconds=0.0)
    end = replace(still, seed=recipe.seed if recipe.source else recipe.seed + 1, source=recipe.second)
    return {
        VIDEO: PublicFile(replace(recipe, watermark=WATERMARK), kept),
        CLEAN_VIDEO: PublicFile(recipe, kept, by_link=True),
        THUMBNAIL: PublicFile(still, kept),
        LAST_FRAME: PublicFile(end, kept),
    }


_GENERATION = PREFIX + "generations/{request_id}"
FAMILY = Family(
    "luma",
    (
        Route("POST", PREFIX + "generations", "submit", generate, "Bearer"),
        Route("POST", PREFIX + "generations/{source_id}/extend", "submit", extend, "Bearer"),
        Route("GET", _GENERATION, "status", task, "Bearer"),
        Route("GET", _GENERATION + "/download_video_url", "result", download_link, "Bearer"),
        Route("POST", PREFIX + "tasks", "list", tasks, "Bearer"),
    ),
    files,
)
