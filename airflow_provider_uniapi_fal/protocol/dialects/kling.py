"""
Kling's task API: images, videos from text and from images, virtual try-on.

Sources: Kling's documentation of its API v1 (paths, fields, limits, codes); UniAPI's page on Kling (``/kling`` before
the official path, ``Bearer``); records of other gateways of the family for the envelopes that are read besides.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from types import MappingProxyType
from typing import Any

from airflow_provider_uniapi_fal.protocol.dialects.base import MediaInputs
from airflow_provider_uniapi_fal.protocol.dialects.reading import Refusal, files_below
from airflow_provider_uniapi_fal.protocol.dialects.tasks import GATEWAY_STATES, TaskDialect
from airflow_provider_uniapi_fal.protocol.job import JobState, MediaFile
from airflow_provider_uniapi_fal.protocol.pictures import pixels
from airflow_provider_uniapi_fal.protocol.schemas import shipped_schema

IMAGE_GENERATION = "images/generations"
TEXT_TO_VIDEO = "videos/text2video"
IMAGE_TO_VIDEO = "videos/image2video"
VIRTUAL_TRY_ON = "images/kolors-virtual-try-on"
MODELS = (IMAGE_GENERATION, TEXT_TO_VIDEO, IMAGE_TO_VIDEO, VIRTUAL_TRY_ON)

STATES = {
    "SUBMITTED": JobState.PENDING,
    "PROCESSING": JobState.RUNNING,
    "SUCCEED": JobState.SUCCEEDED,
    "FAILED": JobState.FAILED,
}

#: Kling's codes, each with the HTTP status that says the same here; Kling itself sends 429 for an empty account.
CODES = {
    **dict.fromkeys((1000, 1001, 1002, 1003, 1004), Refusal(401)),
    **dict.fromkeys((1100, 1101, 1102), Refusal(402)),
    1103: Refusal(403),
    **dict.fromkeys((1200, 1201), Refusal(400)),
    **dict.fromkeys((1202, 1203), Refusal(404)),
    **dict.fromkeys((1300, 1301), Refusal(400, content=True)),
    **dict.fromkeys((1302, 1303), Refusal(429)),
    1304: Refusal(401),
    5000: Refusal(500),
    5001: Refusal(503),
    5002: Refusal(504),
}

MAX_PICTURE_BYTES = 10 * 1024 * 1024
MIN_PICTURE_PIXELS = 300
MAX_PICTURE_RATIO = 2.5

_PICTURES = ("image", "image_tail", "human_image", "cloth_image")
_AXES = ("horizontal", "vertical", "pan", "tilt", "roll", "zoom")


class KlingDialect(TaskDialect):
    """Kling behind the gateway's ``/kling`` prefix. A *model* is a kind of task here: one of :data:`MODELS`."""

    name = "kling"
    family = "kling"
    keeps = "Kling keeps the files of a task for 30 days."
    states = MappingProxyType({**GATEWAY_STATES, **STATES})
    codes = CODES
    media_inputs = MediaInputs(
        keys=(*_PICTURES, "mask", "static_mask"),
        endings=(),
        bare=True,
        max_bytes=MAX_PICTURE_BYTES,
        kinds=("image/jpeg", "image/png"),
    )

    def submit_path(self, model: str) -> str:
        """Return the path that tasks of a kind are posted to."""
        return f"/v1/{model}"

    def task_path(self, model: str, request_id: str) -> str:
        """Return the path of one task."""
        return f"/v1/{model}/{request_id}"

    def model_of_task(self, path: str) -> tuple[str, str] | None:
        """Return kind and id of the task with this path."""
        model, _, request_id = path.removeprefix("/v1/").rpartition("/")
        return (model, request_id) if path.startswith("/v1/") and model in MODELS else None

    def model_problem(self, model: object) -> str | None:
        """Return what is wrong with the name of a kind of task, or None."""
        return None if model in MODELS else f"model: one of {', '.join(MODELS)} is needed, not {model!r}"

    def schema(self, model: str) -> Mapping[str, Any]:
        """Return the JSON Schema with Kling's limits for a kind of task."""
        return shipped_schema(f"{self.name}/{model}")

    def more_problems(self, model: str, arguments: Mapping[str, Any]) -> list[str]:
        """Check the pictures, and that a camera moves along one axis."""
        problems = [
            f"arguments.{name}: {problem}"
            for name in _PICTURES
            if (problem := _picture_problem(arguments.get(name), limited=True))
        ]
        masks = arguments.get("dynamic_masks")
        given = {"static_mask": arguments.get("static_mask")}
        for index, each in enumerate(masks if isinstance(masks, (list, tuple)) else ()):
            given[f"dynamic_masks[{index}].mask"] = each.get("mask") if isinstance(each, Mapping) else None
        problems += [
            f"arguments.{name}: {problem}"
            for name, value in given.items()
            if (problem := _picture_problem(value, limited=False))
        ]
        camera = arguments.get("camera_control")
        config = camera.get("config") if isinstance(camera, Mapping) else None
        if isinstance(config, Mapping) and sum(bool(config.get(axis)) for axis in _AXES) != 1:
            problems.append("arguments.camera_control.config: exactly one axis other than 0 is needed")
        return problems

    def media_in(self, task: Mapping[str, Any]) -> Iterator[MediaFile]:
        """Find the pictures or videos of a task; gateways that rewrite the task put them elsewhere."""
        return files_below(task.get("task_result") or task, "")


def _picture_problem(value: object, *, limited: bool) -> str | None:
    """Return what is wrong with a picture: an address, which Kling fetches itself, or bare base64."""
    if not isinstance(value, str) or not value or "://" in value[:100]:
        return None
    if value.startswith("data:"):
        return "base64 without the beginning 'data:…;base64,' is needed"
    try:
        content = base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError):
        return "neither an address nor base64"
    if not limited:
        return None
    if len(content) > MAX_PICTURE_BYTES:
        return f"at most {MAX_PICTURE_BYTES} bytes are taken"
    size = pixels(content)
    if size is None:
        return "a JPEG or PNG picture is needed"
    if min(size) < MIN_PICTURE_PIXELS:
        return f"at least {MIN_PICTURE_PIXELS} pixels on each side are needed"
    if max(size) > MAX_PICTURE_RATIO * min(size):
        return f"sides in a proportion of at most {MAX_PICTURE_RATIO} to 1 are needed"
    return None
