"""Send an answer: at once and whole, or the way its journey says; or end the connection instead."""

from __future__ import annotations

import asyncio
import math
import socket
import struct
from typing import TYPE_CHECKING

from aiohttp import web

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from airflow_provider_uniapi_fal.emulator.reply import Journey, Reply

BLOCK = b"\0" * 65536
# A socket that is closed with no time to linger is reset.
NO_LINGER = struct.pack("ii", 1, 0)


class NoAnswer(web.Response):
    """Stands for an answer that was never sent."""


async def send(request: web.Request, reply: Reply) -> web.StreamResponse:
    """Send an answer."""
    if reply.pieces is not None and request.method != "HEAD":
        return await _stream(request, reply, reply.pieces())
    if reply.journey is None or request.method == "HEAD":
        headers = {**reply.headers, "Content-Type": reply.content_type}
        return web.Response(status=reply.status, body=reply.body, headers=headers)
    return await _travel(request, reply, reply.journey)


async def _stream(request: web.Request, reply: Reply, pieces: AsyncIterator[bytes]) -> web.StreamResponse:
    """Send a body piece by piece as it comes about; headers go with the first piece."""
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    response.content_type = reply.content_type
    async for piece in pieces:
        if not response.prepared:
            await response.prepare(request)
        await response.write(piece)
    if not response.prepared:
        await response.prepare(request)
    await response.write_eof()
    return response


def hang_up(request: web.Request, *, reset: bool) -> web.StreamResponse:
    """End the connection: what was written is still sent, unless it is reset."""
    transport = request.transport
    if transport is None:
        return NoAnswer()
    if reset:
        transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
        transport.abort()
    else:
        transport.close()
    return NoAnswer()


async def _travel(request: web.Request, reply: Reply, journey: Journey) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    response.content_type = reply.content_type
    if journey.announced:
        response.content_length = len(reply.body) + journey.padding
    await response.prepare(request)
    for _ in range(journey.beats):
        await response.write(b"\n")
        await asyncio.sleep(journey.pause)
    arriving = reply.body[: int(len(reply.body) * journey.share)]
    step = math.ceil(len(arriving) / journey.pieces) or 1
    for start in range(0, len(arriving), step):
        if start:
            await asyncio.sleep(journey.pause)
        await response.write(arriving[start : start + step])
    for start in range(0, journey.padding, len(BLOCK)):
        await response.write(BLOCK[: journey.padding - start])
    if journey.share < 1:
        hang_up(request, reset=journey.reset)
    else:
        await response.write_eof()
    return response
