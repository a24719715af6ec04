"""A client of the emulator that does nothing of its own accord: no retries, no redirects, no proxies."""

from __future__ import annotations

import time
from typing import Any

import requests

KEY = "sk-test-1234"
PICTURE = "flux/dev"
VIDEO = "kling-video/v2.1/standard/image-to-video"
SMALL = {"width": 64, "height": 48}


class Client:
    """Speaks to one emulator, with one key."""

    def __init__(self, url: str, *, prefix: str = "", ca_file: str | None = None) -> None:
        self.url = url
        self.base = url + prefix
        self.session = requests.Session()
        self.session.trust_env = False
        self.session.verify = ca_file or True

    def call(
        self, method: str, url: str, *, key: str | None = f"Key {KEY}", **options: Any
    ) -> requests.Response:
        address = url if url.startswith("http") else self.base + url
        headers = {**({"Authorization": key} if key else {}), **options.pop("headers", {})}
        return self.session.request(
            method, address, headers=headers, timeout=20, allow_redirects=False, **options
        )

    def post(
        self,
        prompt: str = "a fox",
        *,
        model: str = PICTURE,
        headers: dict[str, str] | None = None,
        **arguments: Any,
    ) -> requests.Response:
        body = {"prompt": prompt, "image_size": SMALL, **arguments}
        return self.call("POST", f"/fal-ai/{model}", json=body, headers=headers or {})

    def submit(self, prompt: str = "a fox", *, model: str = PICTURE, **arguments: Any) -> str:
        reply = self.post(prompt, model=model, **arguments)
        assert reply.status_code == 200, reply.text
        return str(reply.json()["request_id"])

    def status(self, request_id: str, *, app: str = "flux", logs: str | None = None) -> requests.Response:
        params = {} if logs is None else {"logs": logs}
        return self.call("GET", f"/fal-ai/{app}/requests/{request_id}/status", params=params)

    def result(self, request_id: str, *, app: str = "flux") -> requests.Response:
        return self.call("GET", f"/fal-ai/{app}/requests/{request_id}")

    def cancel(self, request_id: str, *, app: str = "flux") -> requests.Response:
        return self.call("PUT", f"/fal-ai/{app}/requests/{request_id}/cancel")

    def wait_for(self, request_id: str, *words: str, app: str = "flux") -> dict[str, Any]:
        """Poll until the status is one of the words."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            body: dict[str, Any] = self.status(request_id, app=app).json()
            if body["status"] in words:
                return body
        raise AssertionError(f"{request_id} never became {words}")

    def make(self, prompt: str = "a fox", *, model: str = PICTURE, **arguments: Any) -> requests.Response:
        """Submit, wait, and return the reply with the result."""
        request_id = self.submit(prompt, model=model, **arguments)
        app = model.split("/")[0]
        self.wait_for(request_id, "COMPLETED", "FAILURE", app=app)
        return self.result(request_id, app=app)

    def close(self) -> None:
        self.session.close()
