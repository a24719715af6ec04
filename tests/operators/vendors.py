"""One job of each vendor's kinds, as a user would write it."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

from PIL import Image

from airflow_provider_uniapi_fal.operators.generating import GeneratingOperator
from airflow_provider_uniapi_fal.operators.kling import (
    KlingImageOperator,
    KlingImageToVideoOperator,
    KlingTextToVideoOperator,
    KlingVirtualTryOnOperator,
)
from airflow_provider_uniapi_fal.operators.luma import LumaGenerateOperator
from tests.fakes import PROMPT

#: Rendered in milliseconds.
SMALL: dict[str, Any] = {"media_side": 64, "video_seconds": 0.2}


def picture(width: int = 320, height: int = 400, file_format: str = "PNG") -> bytes:
    target = io.BytesIO()
    Image.new("RGB", (width, height), "teal").save(target, file_format)
    return target.getvalue()


def bare(content: bytes) -> str:
    return base64.b64encode(content).decode()


PICTURE = bare(picture())

KINDS: dict[str, tuple[type[GeneratingOperator], dict[str, Any], str]] = {
    "kling image": (KlingImageOperator, {"prompt": PROMPT, "n": 2}, "images/generations"),
    "kling text to video": (
        KlingTextToVideoOperator,
        {"prompt": PROMPT, "duration": "5", "mode": "std"},
        "videos/text2video",
    ),
    "kling image to video": (
        KlingImageToVideoOperator,
        {"prompt": PROMPT, "image": PICTURE, "model_name": "kling-v2-1"},
        "videos/image2video",
    ),
    "kling try-on": (
        KlingVirtualTryOnOperator,
        {"human_image": PICTURE, "cloth_image": PICTURE},
        "images/kolors-virtual-try-on",
    ),
    "luma": (LumaGenerateOperator, {"user_prompt": PROMPT, "aspect_ratio": "16:9"}, "generations"),
}

Make = Callable[..., GeneratingOperator]


def maker(kind: str) -> Make:
    """Return a function that makes an operator of a kind, with a short cadence."""
    operator, fields, _ = KINDS[kind]

    def make(**changes: Any) -> GeneratingOperator:
        return operator(task_id="generate", **{"poke_interval": 0.05, "timeout": 20, **fields, **changes})

    return make
