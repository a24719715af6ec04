"""
The OpenAI-images dialect: one request that lasts as long as the job.

There is no id and nothing to come back to: whoever loses the connection has lost the pictures, while the job goes on.
"""

from __future__ import annotations

import asyncio
import base64
import math
import re
from collections.abc import Mapping
from typing import Any

from airflow_provider_uniapi_fal.emulator import inputs
from airflow_provider_uniapi_fal.emulator.jobs import Job, once
from airflow_provider_uniapi_fal.emulator.refusals import openai_error
from airflow_provider_uniapi_fal.emulator.reply import Reply
from airflow_provider_uniapi_fal.emulator.server import Call, Family, Gateway, PublicFile, Route

MOST_IMAGES = 10
SIZE = re.compile(r"(\d{2,4})x(\d{2,4})")
# Looks again after this long at the latest: a job may be ended from elsewhere.
LONGEST_LOOK_AWAY = 0.25

FAILURES = {
    "none": "200 with the pictures in `data`",
    "completed-error": '500 `{"error": {...}}`',
    "result-422": '400 `{"error": {...}}`',
    "result-500": "as `completed-error`",
    "result-failure": '200 with `{"status": "FAILURE"}`',
    "result-error": '200 with `{"error": {...}}`',
    "status-failure": "as `result-failure`",
    "refused": "400 with `code` `content_policy_violation`",
    "no-media": "200 with an empty `data`",
}


async def generate(gateway: Gateway, call: Call) -> Reply:
    """Begin a job, wait for it, and answer with its pictures."""
    try:
        arguments = inputs.read_arguments(call.body)
    except ValueError:
        return openai_error(400, "The body is not JSON.", code="invalid_json")
    problem = _problem(arguments)
    if problem is not None:
        name, message = problem
        return openai_error(400, message, code="invalid_value", param=name)
    model = arguments["model"]
    behaviour = gateway.behaviour(model, call, family=FAMILY.name, endpoint="generations")
    job = call.job = gateway.begin(model, call, behaviour, family=FAMILY.name, endpoint="generations")
    while job.finished_at is None:
        await asyncio.sleep(min(LONGEST_LOOK_AWAY, max(0.0, gateway.queue.next_event - gateway.now())))
        gateway.now()
    return _failed(job) or await _pictures(gateway, call, job)


def _problem(arguments: Any) -> tuple[str | None, str] | None:
    if not isinstance(arguments, Mapping):
        return None, "The body is not a JSON object."
    for name in ("model", "prompt"):
        if not isinstance(arguments.get(name), str) or not arguments[name]:
            return name, f"{name} is required and is a string."
    count = arguments.get("n")
    if count is not None and (type(count) is not int or not 1 <= count <= MOST_IMAGES):
        return "n", f"n is a number from 1 to {MOST_IMAGES}."
    size = arguments.get("size")
    if size not in (None, "auto") and _size(size) is None:
        return "size", "size is of the form 1024x1024."
    if arguments.get("response_format") not in (None, "url", "b64_json"):
        return "response_format", "response_format is url or b64_json."
    # The rest belongs to the model, as in fal's own form.
    found = inputs.problems("image", arguments)
    return (str(found[0]["loc"][-1]), found[0]["msg"]) if found else None


def _size(text: Any) -> tuple[int, int] | None:
    match = SIZE.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return None
    width, height = int(match[1]), int(match[2])
    sides = range(inputs.SMALLEST_SIDE, inputs.LARGEST_SIDE + 1)
    return (width, height) if width in sides and height in sides else None


def _failed(job: Job) -> Reply | None:
    failure = job.behaviour.failure
    message = job.behaviour.failure_message or "The generation failed."
    if failure in ("completed-error", "result-500"):
        return openai_error(500, message, code="task_failed")
    if failure == "result-422":
        return openai_error(400, message, code="invalid_value", param="prompt")
    if failure == "refused":
        message = job.behaviour.failure_message or "The request was rejected by the safety system."
        return openai_error(400, message, code="content_policy_violation", param="prompt")
    if failure == "result-error":
        return openai_error(200, message, code="task_failed")
    if failure in ("result-failure", "status-failure"):
        return Reply.json({"status": "FAILURE", "error": message})
    return None


async def _pictures(gateway: Gateway, call: Call, job: Job) -> Reply:
    form = job.behaviour.openai_format
    if form == "asked":
        form = job.arguments.get("response_format") or "url"
    made: list[dict[str, Any]] = []
    for name, file in files(job).items():
        # Both forms are answered when the picture is there, not before.
        data = (await gateway.develop(file.recipe)).data
        if form == "url":
            made.append({"url": gateway.media_url(call, job, name)})
        else:
            made.append({"b64_json": base64.b64encode(data).decode()})
    return Reply.json({"created": math.floor(job.submitted_at), "data": made})


def _recipes(job: Job) -> tuple[inputs.Recipe, ...]:
    arguments, behaviour = dict(job.arguments), job.behaviour
    counts = {name: arguments.get(name) or 1 for name in ("n", "num_images") if arguments.get(name)}
    counts["larger"] = max(counts.values(), default=1)
    count = counts.get(behaviour.openai_count, counts["larger"])
    size = _size(arguments.get("size"))
    if size is not None:
        arguments["image_size"] = {"width": size[0], "height": size[1]}
    arguments["num_images"] = count
    order = inputs.order(
        "image", arguments, seed=job.seed, black=behaviour.flagged, video_seconds=behaviour.video_seconds
    )
    return tuple(map(job.shown, order.recipes))


@once
def files(job: Job) -> dict[str, PublicFile]:
    """Return the files of a finished job, none if it failed."""
    if job.behaviour.failure != "none":
        return {}
    kept = job.behaviour.media_seconds
    return {
        f"image-{index + 1}.{recipe.file_format}": PublicFile(recipe, kept)
        for index, recipe in enumerate(_recipes(job))
    }


FAMILY = Family(
    "openai-images",
    (Route("POST", "/v1/images/generations", "submit", generate, "Bearer"),),
    files,
)
