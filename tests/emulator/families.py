"""Clients of the other families, and pictures to send to them. They, too, do nothing of their own accord."""

from __future__ import annotations

import base64
import io
import time
from typing import TYPE_CHECKING, Any

from PIL import Image

from tests.emulator.client import KEY, Client

if TYPE_CHECKING:
    import requests

BEARER = f"Bearer {KEY}"
IMAGES = "images/generations"
TEXT_TO_VIDEO = "videos/text2video"
IMAGE_TO_VIDEO = "videos/image2video"
TRY_ON = "images/kolors-virtual-try-on"
# Small and short, so that whole wires are travelled in milliseconds.
SMALL_MEDIA = {"media_side": 96, "video_seconds": 0.2}


def picture(colour: tuple[int, int, int] = (200, 30, 30), size: tuple[int, int] = (320, 400)) -> str:
    """Return a picture of one colour as bare Base64."""
    target = io.BytesIO()
    Image.new("RGB", size, colour).save(target, "PNG")
    return base64.b64encode(target.getvalue()).decode()


# Arguments of each kind of Kling's jobs that are accepted as they stand.
KLING_JOBS: dict[str, dict[str, Any]] = {
    IMAGES: {"prompt": "a red fox", "n": 2},
    TEXT_TO_VIDEO: {"prompt": "a red fox", "duration": "5"},
    IMAGE_TO_VIDEO: {"prompt": "it runs", "image": picture()},
    TRY_ON: {"human_image": picture(), "cloth_image": picture((30, 30, 200))},
}


class Families:
    """Speaks the other families with one key."""

    def __init__(self, client: Client) -> None:
        self.client = client

    def call(self, method: str, path: str, **options: Any) -> requests.Response:
        return self.client.call(method, path, **{"key": BEARER, **options})

    def kling(self, endpoint: str = IMAGES, /, **arguments: Any) -> requests.Response:
        body = arguments or KLING_JOBS[endpoint]
        return self.call("POST", f"/kling/v1/{endpoint}", json=body)

    def kling_task(self, task_id: str, endpoint: str = IMAGES) -> requests.Response:
        return self.call("GET", f"/kling/v1/{endpoint}/{task_id}")

    def kling_made(self, endpoint: str = IMAGES, /, **arguments: Any) -> dict[str, Any]:
        """Submit, wait, and return the data of the finished task."""
        task_id = self.kling(endpoint, **arguments).json()["data"]["task_id"]
        ended = ("succeed", "succeeded", "completed", "failed")
        return self._wait(lambda: self.kling_task(task_id, endpoint).json()["data"], "task_status", ended)

    def luma(self, path: str = "generations", **arguments: Any) -> requests.Response:
        return self.call("POST", f"/luma/{path}", json=arguments or {"user_prompt": "a red fox"})

    def luma_task(self, task_id: str) -> requests.Response:
        return self.call("GET", f"/luma/generations/{task_id}")

    def luma_made(self, **arguments: Any) -> dict[str, Any]:
        """Submit, wait, and return the finished generation."""
        task_id = self.luma(**arguments).json()["id"]
        return self._wait(lambda: self.luma_task(task_id).json(), "state", ("completed", "failed"))

    def images(self, **arguments: Any) -> requests.Response:
        body = {"model": "flux-pro/kontext/text-to-image", "prompt": "a red fox", **arguments}
        return self.call("POST", "/v1/images/generations", json=body)

    def download(self, url: str) -> requests.Response:
        return self.client.call("GET", url, key=None)

    @staticmethod
    def _wait(look: Any, name: str, words: tuple[str, ...]) -> dict[str, Any]:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            body: dict[str, Any] = look()
            if body[name] in words:
                return body
        raise AssertionError(f"never became one of {words}")
