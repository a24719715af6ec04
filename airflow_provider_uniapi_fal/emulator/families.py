"""All that the gateway serves: its dialects, and what belongs to none of them."""

from __future__ import annotations

from airflow_provider_uniapi_fal.emulator import fal, kling, luma, openai_images
from airflow_provider_uniapi_fal.emulator.media import UnreadablePictureError
from airflow_provider_uniapi_fal.emulator.refusals import NOT_FOUND
from airflow_provider_uniapi_fal.emulator.reply import Reply
from airflow_provider_uniapi_fal.emulator.server import Call, Family, Gateway, Route

DIALECTS = {each.name: each for each in (fal.FAMILY, kling.FAMILY, luma.FAMILY, openai_images.FAMILY)}


async def media(gateway: Gateway, call: Call) -> Reply:
    """Give a media file to anyone."""
    job, now = call.job, gateway.now()
    if job is None or job.finished_at is None:
        return NOT_FOUND
    file = gateway.families[job.family].files(job).get(call.part("name"))
    if file is None:
        return NOT_FOUND
    last = job.finished_at + file.seconds
    if file.by_link:
        until = call.request.query.get("until", "")  # in milliseconds
        last = min(last, int(until) / 1000 if until.isdecimal() else 0.0)
    if now > last:
        return NOT_FOUND if job.behaviour.expired_code == 404 else Reply(job.behaviour.expired_code, b"")
    try:
        made = await gateway.develop(file.recipe)
    except UnreadablePictureError:
        return NOT_FOUND
    return Reply(200, made.data, content_type=file.recipe.content_type)


async def models(gateway: Gateway, call: Call) -> Reply:
    """List a few models, as a free proof that the key is right."""
    ids = ("flux-pro/kontext/text-to-image", "kling-video/v2.1/standard/image-to-video", "kling-v2-1")
    return Reply.json({"object": "list", "data": [{"id": each, "object": "model"} for each in ids]})


async def usage(gateway: Gateway, call: Call) -> Reply:
    """Report an account without limit."""
    return Reply.json({"success": True, "data": {"balance": -1, "used": 0, "cache_used": 0}})


COMMON = Family(
    "gateway",
    (
        Route("GET", "/files/{request_id}/{name}", "media", media, None),
        Route("GET", "/v1/models", "probe", models, "Bearer"),
        Route("GET", "/v1/billing/usage", "probe", usage, "Bearer"),
    ),
    finds_all=True,
)
FAMILIES = (COMMON, *DIALECTS.values())
