"""
Luma's video generations, as gateways offer them: generate, extend, get the task, get the download address.

Sources: the gateway's menu names these four calls; paths and fields are those of other gateways with the same menu,
and Luma's own documentation. What the gateway itself does is not documented.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

from airflow_provider_uniapi_fal.protocol.dialects.base import LookAgain, MediaInputs, ResultReading
from airflow_provider_uniapi_fal.protocol.dialects.reading import Detail, files_below, is_media_url
from airflow_provider_uniapi_fal.protocol.dialects.tasks import GATEWAY_STATES, TaskDialect
from airflow_provider_uniapi_fal.protocol.job import JobResult, JobState, MediaFile
from airflow_provider_uniapi_fal.protocol.messages import HttpReply, HttpRequest, read_json
from airflow_provider_uniapi_fal.protocol.origin import is_request_id
from airflow_provider_uniapi_fal.protocol.schemas import shipped_schema

GENERATE = "generations"

STATES = {
    "PENDING": JobState.PENDING,
    "QUEUED": JobState.PENDING,
    "PROCESSING": JobState.RUNNING,
    "DREAMING": JobState.RUNNING,
    "COMPLETED": JobState.SUCCEEDED,
    "FAILED": JobState.FAILED,
}

_EXTEND = re.compile(r"generations/(?P<id>[^/]+)/extend")


def extend(request_id: str) -> str:
    """Return the model that extends the video of a finished task."""
    return f"{GENERATE}/{request_id}/extend"


class LumaDialect(TaskDialect):
    """
    Luma behind the gateway's ``/luma`` prefix.

    A *model* is what is posted to: ``generations``, or ``generations/<id>/extend`` for a task that has succeeded.
    """

    name = "luma"
    family = "luma"
    keeps = "How long the gateway keeps Luma's tasks is not documented."
    states = MappingProxyType({**GATEWAY_STATES, **STATES})
    media_inputs = MediaInputs(keys=("image_url", "image_end_url"), endings=(), kinds=("image/",))

    def submit_path(self, model: str) -> str:
        """Return the path that tasks of a kind are posted to."""
        return f"/{model}"

    def task_path(self, model: str, request_id: str) -> str:
        """Return the path of one task: the same for both kinds."""
        return f"/{GENERATE}/{request_id}"

    def model_of_task(self, path: str) -> tuple[str, str] | None:
        """Return kind and id of the task with this path; which of the two kinds it is makes no difference."""
        head, _, request_id = path.rpartition("/")
        return (GENERATE, request_id) if head == f"/{GENERATE}" else None

    def model_problem(self, model: object) -> str | None:
        """Return what is wrong with the name of a kind of task, or None."""
        match = _EXTEND.fullmatch(model) if isinstance(model, str) else None
        if model == GENERATE or (match and is_request_id(match["id"])):
            return None
        return f"model: {GENERATE} or {extend('<id>')} is needed, not {model!r}"

    def schema(self, model: str) -> Mapping[str, Any]:
        """Return the JSON Schema with Luma's limits: both kinds take the same fields."""
        return shipped_schema(f"{self.name}/{GENERATE}")

    def media_in(self, task: Mapping[str, Any]) -> Iterator[MediaFile]:
        """
        Find the video of a task, by its un-watermarked address if that is there.

        Its thumbnail and its last frame are not taken: they are no products of their own.
        """
        assets = task.get("assets")
        found: Mapping[str, Any] = assets if isinstance(assets, Mapping) else task
        for name in ("video", "image"):
            value = found.get(name)
            if isinstance(value, Mapping):
                best = value.get("download_url")
                address = {"url": best} if is_media_url(best) else {}
                yield from files_below({**value, **address}, name)
            elif is_media_url(value):
                yield MediaFile(name, str(value))

    def landing_request(self, result: JobResult) -> HttpRequest | None:
        """
        Return the request for the download address: without watermark, and valid for minutes only.

        Asked for at each landing, because the one inside an older result has expired.
        """
        path = f"{result.handle.response_path}/download_video_url"
        return HttpRequest("GET", self.family, path)

    def read_landing(self, result: JobResult, reply: HttpReply, now: float) -> ResultReading:
        """Read the download address; without one, the address in the task has to do."""
        body = read_json(reply)
        if not reply.ok:
            passing = reply.status >= 500 or reply.status in (408, 425, 429)
            why = f"HTTP {reply.status}{Detail.of(body).words} instead of a download address"
            return LookAgain(why, bounded=not passing)
        address = _address_in(body)
        if address is None:
            return LookAgain("no download address in the reply", bounded=True)
        media = tuple(replace(file, url=address) if file.where == "video" else file for file in result.media)
        return replace(result, media=media)


def _address_in(body: Any) -> str | None:
    """Return the address in a reply, under whichever name and in whichever envelope."""
    if isinstance(body, str) and is_media_url(body):
        return body
    if not isinstance(body, dict):
        return None
    for name in ("download_url", "download_video_url", "video_url", "url"):
        if isinstance(body.get(name), str) and is_media_url(body[name]):
            return str(body[name])
    return next(
        (found for name in ("data", "video") if (found := _address_in(body.get(name))) is not None), None
    )
