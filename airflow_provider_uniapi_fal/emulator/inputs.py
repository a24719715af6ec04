"""
What a model makes of its arguments: what is wrong with them, and which media files they ask for.

As with the real service the queue takes any arguments; what is wrong with them shows as a 422 on the result.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

IMAGE_SIZES = {
    "square_hd": (1024, 1024),
    "square": (512, 512),
    "portrait_4_3": (768, 1024),
    "portrait_16_9": (576, 1024),
    "landscape_4_3": (1024, 768),
    "landscape_16_9": (1024, 576),
}
ASPECT_RATIOS = ("21:9", "16:9", "4:3", "3:2", "1:1", "2:3", "3:4", "9:16", "9:21")
FORMATS = ("jpeg", "png", "webp")
DURATIONS = ("5", "10")
SMALLEST_SIDE, LARGEST_SIDE = 16, 4096
MOST_IMAGES = 4
ABOUT_PIXELS = 1024 * 1024
LONG_SIDE_OF_VIDEO = 768
SAME_PROMPT = "The same for every prompt"


@dataclass(frozen=True)
class Recipe:
    """All that one media file depends on: the same recipe always gives the same bytes."""

    kind: str
    prompt: str
    seed: int
    width: int
    height: int
    file_format: str
    black: bool = False
    source: str = ""
    """A picture that it is made from: a data URI, or an address, for which a picture of its own stands in."""
    second: str = ""
    """Another one: the last picture of a video, or what the person in the first one is to wear."""
    watermark: str = ""
    """A word drawn across it."""
    seconds: float = 0.0

    @property
    def content_type(self) -> str:
        """The media type of the file."""
        return f"{self.kind}/{self.file_format}"


@dataclass(frozen=True)
class Order:
    """The media files that a job's arguments ask for."""

    recipes: tuple[Recipe, ...]
    prompt: str
    seed: int
    inline: bool

    @property
    def is_video(self) -> bool:
        """Tell whether the order is for a video."""
        return self.recipes[0].kind == "video"

    def name(self, index: int) -> str:
        """Return the file name of one of the files."""
        recipe = self.recipes[index]
        return f"{recipe.kind}-{index + 1}.{recipe.file_format}"


def read_arguments(body: bytes) -> Any:
    """Return the JSON value of a submit's body; anything that is none raises ValueError."""
    try:
        return json.loads(body)
    except RecursionError as error:
        raise ValueError("The JSON is nested too deeply.") from error


def makes_video(model: str) -> bool:
    """Tell whether a model makes videos."""
    return "video" in model


def problems(model: str, arguments: Any) -> list[dict[str, Any]]:
    """Return what is wrong with the arguments, in the form of the real service's 422."""
    if not isinstance(arguments, Mapping):
        return [_problem(["body"], "dict_type", "Input should be a valid dictionary", arguments)]
    found = []
    required = ["prompt", *(["image_url"] if "image-to-" in model else [])]
    for name in required:
        if arguments.get(name) is None:
            found.append(_problem(["body", name], "missing", "Field required", dict(arguments)))
    for name, check in _CHECKS.items():
        value = arguments.get(name)
        if value is not None:
            found += check(["body", name], value)
    if makes_video(model) and arguments.get("duration") is not None:
        found += _one_of(DURATIONS)(["body", "duration"], arguments["duration"])
    return found


def order(
    model: str,
    arguments: Mapping[str, Any],
    *,
    seed: int,
    black: bool,
    video_seconds: float,
    inline: bool = False,
) -> Order:
    """Return the media files that faultless arguments ask for; ``seed`` counts where they name none."""
    inline = inline or bool(arguments.get("sync_mode"))
    prompt = arguments["prompt"]
    seed = seed if arguments.get("seed") is None else arguments["seed"]
    width, height = _size(arguments)
    if makes_video(model):
        shrink = LONG_SIDE_OF_VIDEO / max(width, height)
        source = arguments.get("image_url") or ""
        recipe = Recipe(
            kind="video",
            prompt=prompt,
            seed=seed,
            width=even(width * shrink),
            height=even(height * shrink),
            file_format="mp4",
            black=black,
            source=source if source.startswith("data:") else "",
            seconds=video_seconds,
        )
        return Order((recipe,), prompt, seed, inline)
    recipes = tuple(
        Recipe(
            kind="image",
            prompt=prompt,
            seed=seed + index,
            width=width,
            height=height,
            file_format=arguments.get("output_format") or "jpeg",
            black=black,
        )
        for index in range(arguments.get("num_images") or 1)
    )
    return Order(recipes, prompt, seed, inline)


def _size(arguments: Mapping[str, Any]) -> tuple[int, int]:
    size = arguments.get("image_size")
    if isinstance(size, str):
        return IMAGE_SIZES[size]
    if size is not None:
        return size["width"], size["height"]
    return ratio_size(arguments.get("aspect_ratio") or "1:1")


def ratio_size(ratio: str) -> tuple[int, int]:
    """Return a size of about a megapixel."""
    across, down = map(int, ratio.split(":"))
    width = math.sqrt(ABOUT_PIXELS * across / down)
    return round(width / 16) * 16, round(width * down / across / 16) * 16


def video_size(ratio: str, longest: int = LONG_SIDE_OF_VIDEO) -> tuple[int, int]:
    """Return the size of a video, by its longer side."""
    across, down = map(int, ratio.split(":"))
    shrink = longest / max(across, down)
    return even(across * shrink), even(down * shrink)


def shown(recipe: Recipe, *, side: int, same: bool) -> Recipe:
    """
    Return the recipe of what is rendered.

    :param side: no side is longer than this; 0 leaves them as they are
    :param same: whatever was asked for, the same is shown
    """
    if same:
        recipe = replace(recipe, prompt=SAME_PROMPT, seed=0, source="", second="")
    longest = max(recipe.width, recipe.height)
    if not side or longest <= side:
        return recipe
    width, height = (even(length * side / longest) for length in (recipe.width, recipe.height))
    return replace(recipe, width=width, height=height)


def even(length: float) -> int:
    """Return the nearest even number of pixels, as H.264 wants it."""
    return max(SMALLEST_SIDE, round(length / 2) * 2)


def _problem(location: list[Any], kind: str, message: str, value: Any, **context: Any) -> dict[str, Any]:
    problem = {"loc": location, "msg": message, "type": kind, "url": f"https://docs.fal.ai/errors#{kind}"}
    return {**problem, **({"ctx": context} if context else {}), "input": value}


_Check = Callable[[list[Any], Any], list[dict[str, Any]]]


def _text(location: list[Any], value: Any) -> list[dict[str, Any]]:
    return (
        []
        if isinstance(value, str)
        else [_problem(location, "string_type", "Input should be a valid string", value)]
    )


def _truth(location: list[Any], value: Any) -> list[dict[str, Any]]:
    return (
        []
        if isinstance(value, bool)
        else [_problem(location, "bool_type", "Input should be a valid boolean", value)]
    )


def _whole(smallest: int, largest: int) -> _Check:
    def check(location: list[Any], value: Any) -> list[dict[str, Any]]:
        if isinstance(value, bool) or not isinstance(value, int):
            return [_problem(location, "int_type", "Input should be a valid integer", value)]
        if value < smallest:
            message = f"Input should be greater than or equal to {smallest}"
            return [_problem(location, "greater_than_equal", message, value, ge=smallest)]
        if value > largest:
            message = f"Input should be less than or equal to {largest}"
            return [_problem(location, "less_than_equal", message, value, le=largest)]
        return []

    return check


def _one_of(choices: tuple[str, ...]) -> _Check:
    def check(location: list[Any], value: Any) -> list[dict[str, Any]]:
        if isinstance(value, str) and value in choices:
            return []
        return [
            _problem(
                location, "one_of", f"Input should be one of {', '.join(choices)}", value, expected=choices
            )
        ]

    return check


def _image_size(location: list[Any], value: Any) -> list[dict[str, Any]]:
    if not isinstance(value, Mapping):
        return _one_of(tuple(IMAGE_SIZES))(location, value)
    side = _whole(SMALLEST_SIDE, LARGEST_SIDE)
    return [found for name in ("width", "height") for found in side([*location, name], value.get(name))]


_CHECKS: dict[str, _Check] = {
    "prompt": _text,
    "image_url": _text,
    "image_size": _image_size,
    "aspect_ratio": _one_of(ASPECT_RATIOS),
    "output_format": _one_of(FORMATS),
    "num_images": _whole(1, MOST_IMAGES),
    "seed": _whole(0, 2**63 - 1),
    "sync_mode": _truth,
}
