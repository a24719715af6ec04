"""
What Kling accepts, and which media files its jobs make.

Unlike fal, Kling looks at the arguments when they are posted: what it does not accept costs nothing and makes no job.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow_provider_uniapi_fal.emulator.inputs import (
    DURATIONS,
    Recipe,
    ratio_size,
    video_size,
)
from airflow_provider_uniapi_fal.emulator.pictures import measure

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.jobs import Job

IMAGES = "images/generations"
TEXT_TO_VIDEO = "videos/text2video"
IMAGE_TO_VIDEO = "videos/image2video"
TRY_ON = "images/kolors-virtual-try-on"
ENDPOINTS = (IMAGES, TEXT_TO_VIDEO, IMAGE_TO_VIDEO, TRY_ON)
DEFAULT_MODELS = {IMAGES: "kling-v1", TRY_ON: "kolors-virtual-try-on-v1"}
TRY_ON_MODELS = ("kolors-virtual-try-on-v1", "kolors-virtual-try-on-v1-5")

LONGEST_TEXT = 2500
LARGEST_IMAGE = 10 * 1024 * 1024
SMALLEST_IMAGE_SIDE = 300
STEEPEST_RATIO = 2.5
IMAGE_FORMATS = ("JPEG", "PNG")
IMAGE_RATIOS = ("16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9")
VIDEO_RATIOS = ("16:9", "9:16", "1:1")
MOST_IMAGES = 9
CAMERA_MOVES = ("simple", "down_back", "forward_up", "right_turn_forward", "left_turn_forward")
CAMERA_AXES = ("horizontal", "vertical", "pan", "tilt", "roll", "zoom")
FARTHEST_MOVE = 10
MOST_MASKS = 6
TRAJECTORY = (2, 77)

_Check = Callable[[str, Any], Iterator[str]]


def model_of(endpoint: str, arguments: Mapping[str, Any]) -> str:
    """Return the model that the arguments name, or the one that answers if they name none."""
    return str(arguments.get("model_name") or DEFAULT_MODELS.get(endpoint, "kling-v1"))


def slots(endpoint: str, arguments: Mapping[str, Any]) -> int:
    """Return how many parallel tasks a job counts for."""
    return int(arguments.get("n") or 1) if endpoint == IMAGES else 1


def problem(endpoint: str, arguments: Mapping[str, Any]) -> str | None:
    """Return the first thing that is wrong with the arguments."""
    return next(_problems(endpoint, arguments), None)


def _problems(endpoint: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    for name in _REQUIRED[endpoint]:
        if arguments.get(name) in (None, ""):
            yield f"{name} is required"
    for name, check in {**_OF_EVERY_JOB, **_CHECKS[endpoint]}.items():
        if arguments.get(name) is not None:
            yield from check(name, arguments[name])
    if endpoint == IMAGES and arguments.get("image") and arguments.get("negative_prompt"):
        yield "negative_prompt is not supported together with image"
    if endpoint in (TEXT_TO_VIDEO, IMAGE_TO_VIDEO):
        model = model_of(endpoint, arguments)
        if arguments.get("cfg_scale") is not None and model.startswith("kling-v2"):
            yield f"cfg_scale is not supported by {model}"
    if endpoint == IMAGE_TO_VIDEO:
        if not arguments.get("image") and not arguments.get("image_tail"):
            yield "at least one of image and image_tail is required"
        masks = arguments.get("dynamic_masks") or arguments.get("static_mask")
        if sum(map(bool, (arguments.get("image_tail"), masks, arguments.get("camera_control")))) > 1:
            yield "image_tail, dynamic_masks/static_mask and camera_control exclude each other"


def _text(longest: int = LONGEST_TEXT) -> _Check:
    def check(name: str, value: Any) -> Iterator[str]:
        if not isinstance(value, str):
            yield f"{name} must be a string"
        elif len(value) > longest:
            yield f"{name} must not exceed {longest} characters"

    return check


def _one_of(*choices: str) -> _Check:
    def check(name: str, value: Any) -> Iterator[str]:
        if not isinstance(value, str) or value not in choices:
            yield f"{name} must be one of {', '.join(choices)}, as a string"

    return check


def _number(smallest: float, largest: float, *, whole: bool = False) -> _Check:
    def check(name: str, value: Any) -> Iterator[str]:
        kinds = (int,) if whole else (int, float)
        if isinstance(value, bool) or not isinstance(value, kinds) or not smallest <= value <= largest:
            yield f"{name} must be a number from {smallest:g} to {largest:g}"

    return check


def _image(name: str, value: Any) -> Iterator[str]:
    data = None
    if not isinstance(value, str):
        yield f"{name} must be a URL or Base64"
    elif value.startswith("data:"):
        yield f"{name} must be Base64 without a prefix such as data:image/png;base64,"
    elif not is_url(value):
        try:
            data = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            yield f"{name} is neither a URL nor Base64"
    if data is None:
        return
    if len(data) > LARGEST_IMAGE:
        yield f"{name} must not exceed 10 MB"
        return
    measured = measure(data)
    if measured is None or measured[0] not in IMAGE_FORMATS:
        yield f"{name} must be a JPEG or PNG picture"
        return
    _, width, height = measured
    if min(width, height) < SMALLEST_IMAGE_SIDE:
        yield f"{name} must be at least {SMALLEST_IMAGE_SIDE} pixels wide and high"
    if max(width, height) > STEEPEST_RATIO * min(width, height):
        yield f"{name} must have an aspect ratio from 1:2.5 to 2.5:1"


def _camera(name: str, value: Any) -> Iterator[str]:
    if not isinstance(value, Mapping) or value.get("type") not in CAMERA_MOVES:
        yield f"{name}.type must be one of {', '.join(CAMERA_MOVES)}"
        return
    config = value.get("config")
    if value["type"] != "simple":
        if config:
            yield f"{name}.config must be empty unless type is simple"
        return
    if not isinstance(config, Mapping):
        yield f"{name}.config is required when type is simple"
        return
    for axis in CAMERA_AXES:
        yield from _number(-FARTHEST_MOVE, FARTHEST_MOVE)(f"{name}.config.{axis}", config.get(axis, 0))
    if sum(bool(config.get(axis)) for axis in CAMERA_AXES) != 1:
        yield f"exactly one field of {name}.config must not be 0"


def _masks(name: str, value: Any) -> Iterator[str]:
    if not isinstance(value, list) or not 1 <= len(value) <= MOST_MASKS:
        yield f"{name} must be a list of up to {MOST_MASKS} masks"
        return
    fewest, most = TRAJECTORY
    for each in value:
        if not isinstance(each, Mapping) or not isinstance(each.get("mask"), str):
            yield f"{name}[].mask must be a URL or Base64"
            return
        points = each.get("trajectories")
        if not isinstance(points, list) or not fewest <= len(points) <= most:
            yield f"{name}[].trajectories must have {fewest} to {most} points"
        elif not all(isinstance(point, Mapping) and {"x", "y"} <= set(point) for point in points):
            yield f"{name}[].trajectories must be points with x and y"


_REQUIRED = {
    IMAGES: ("prompt",),
    TEXT_TO_VIDEO: ("prompt",),
    IMAGE_TO_VIDEO: (),
    TRY_ON: ("human_image", "cloth_image"),
}
_OF_EVERY_JOB: dict[str, _Check] = {
    "model_name": _text(),
    "callback_url": _text(),
    "external_task_id": _text(),
}
_VIDEO: dict[str, _Check] = {
    "prompt": _text(),
    "negative_prompt": _text(),
    "cfg_scale": _number(0, 1),
    "mode": _one_of("std", "pro"),
    "camera_control": _camera,
    "duration": _one_of(*DURATIONS),
}
_CHECKS: dict[str, dict[str, _Check]] = {
    IMAGES: {
        "prompt": _text(),
        "negative_prompt": _text(),
        "image": _image,
        "image_reference": _one_of("subject", "face"),
        "image_fidelity": _number(0, 1),
        "human_fidelity": _number(0, 1),
        "resolution": _one_of("1k", "2k"),
        "n": _number(1, MOST_IMAGES, whole=True),
        "aspect_ratio": _one_of(*IMAGE_RATIOS),
    },
    TEXT_TO_VIDEO: {**_VIDEO, "aspect_ratio": _one_of(*VIDEO_RATIOS)},
    IMAGE_TO_VIDEO: {
        **_VIDEO,
        "image": _image,
        "image_tail": _image,
        "dynamic_masks": _masks,
        "static_mask": _text(LARGEST_IMAGE * 2),
    },
    TRY_ON: {"model_name": _one_of(*TRY_ON_MODELS), "human_image": _image, "cloth_image": _image},
}


def is_url(text: str) -> bool:
    """Tell an address from Base64."""
    return text.startswith(("http://", "https://"))


def _source(text: Any) -> str:
    if not text:
        return ""
    return str(text) if is_url(text) else f"data:image/png;base64,{text}"


def recipes(job: Job) -> list[Recipe]:
    """Return what a job makes of its arguments."""
    arguments, behaviour = job.arguments, job.behaviour
    if job.endpoint == TRY_ON:
        person, cloth = _source(arguments["human_image"]), _source(arguments["cloth_image"])
        return [replace(_picture(job, "3:4"), source=person, second=cloth)]
    source = _source(arguments.get("image"))
    if job.endpoint == IMAGES:
        picture = replace(_picture(job, arguments.get("aspect_ratio") or "16:9"), source=source)
        if arguments.get("resolution") == "2k":
            picture = replace(picture, width=picture.width * 2, height=picture.height * 2)
        return [replace(picture, seed=job.seed + index) for index in range(arguments.get("n") or 1)]
    width, height = video_size(arguments.get("aspect_ratio") or "16:9")
    last = _source(arguments.get("image_tail"))
    video = Recipe(
        "video",
        prompt=arguments.get("prompt") or "",
        seed=job.seed,
        width=width,
        height=height,
        file_format="mp4",
        black=behaviour.flagged,
        source=source or last,
        second=last if source else "",
        seconds=behaviour.video_seconds,
    )
    return [video]


def _picture(job: Job, ratio: str) -> Recipe:
    width, height = ratio_size(ratio)
    return Recipe(
        "image",
        prompt=job.arguments.get("prompt") or "",
        seed=job.seed,
        width=width,
        height=height,
        file_format="png",
        black=job.behaviour.flagged,
    )
