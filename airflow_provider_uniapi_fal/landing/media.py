"""Landing: copying the media files of a result to object storage."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import mimetypes
import tempfile
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import unquote_to_bytes, urlsplit

from airflow_provider_uniapi_fal.exceptions import FalError, error_of
from airflow_provider_uniapi_fal.landing.addresses import with_best_addresses
from airflow_provider_uniapi_fal.landing.files import LandedFile
from airflow_provider_uniapi_fal.landing.inputs import media_type
from airflow_provider_uniapi_fal.landing.storage import put
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.transport.media import Fetched, MediaError, MediaFetcher

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_uniapi_fal.protocol.job import JobResult, MediaFile
    from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount

#: Files of one result under way at once.
PARALLEL = 4

_SUFFIXES = {"image/jpeg": ".jpg", "image/webp": ".webp", "audio/mpeg": ".mp3", "video/quicktime": ".mov"}

#: What an error page calls itself.
_PAGES = ("text/html", "application/json", "text/plain", "application/xml", "text/xml")


def land(
    result: JobResult,
    destination: ObjectStoragePath,
    *,
    name: str,
    account: GatewayAccount,
    max_bytes: int,
) -> list[LandedFile]:
    """
    Copy every media file of a result to storage.

    Each file passes through a local temporary file, never whole through memory, and appears under its final
    name only when all of it is there: ``<name>.<suffix>``, or ``<name>-<index>.<suffix>`` for several.

    :param result: the result; its data URIs, if any, must still be in it
    :param destination: folder in storage
    :param name: plain file name without suffix
    :param account: for proxy, CA certificates and ``media_hosts``; no media host gets its key
    :param max_bytes: a longer file is refused
    :raises FalResultExpired: if a file is not there any more
    :raises FalProtocolError: if a file cannot be had or is no media file; the job itself is paid and done
    """
    with tempfile.TemporaryDirectory(prefix="uniapi-fal-") as folder:
        fetched = asyncio.run(_fetch_all(result, Path(folder), account, max_bytes))
        landed = []
        for index, (file, local) in enumerate(zip(result.media, fetched, strict=True)):
            stem = name if len(fetched) == 1 else f"{name}-{index}"
            kind = _checked_type(result, file, local)
            target = destination / f"{stem}{_suffix(file, kind)}"
            put(local.path, target)
            landed.append(
                LandedFile(
                    where=file.where,
                    path=str(target),
                    bytes=local.size,
                    sha256=local.sha256,
                    content_type=kind,
                    width=file.width,
                    height=file.height,
                    flagged=file.flagged,
                )
            )
    return landed


async def _fetch_all(
    result: JobResult, folder: Path, account: GatewayAccount, max_bytes: int
) -> list[Fetched]:
    gate = asyncio.Semaphore(PARALLEL)

    async def one(index: int, file: MediaFile) -> Fetched:
        path = folder / str(index)
        async with gate:
            try:
                if file.inline:
                    return await asyncio.to_thread(_decode, file.url or "", path)
                return await fetcher.fetch(file.url or "", path, size=file.file_size)
            except MediaError as error:
                raise _failed(result, file.where, str(error), gone=error.gone) from error

    result = await with_best_addresses(result, account)
    try:
        async with MediaFetcher(account, max_bytes=max_bytes) as fetcher:
            tasks = [asyncio.ensure_future(one(i, file)) for i, file in enumerate(result.media)]
            try:
                return list(await asyncio.gather(*tasks))
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
    except MediaError as error:
        raise _failed(result, "media", str(error), gone=False) from error


def _decode(uri: str, path: Path) -> Fetched:
    header, comma, payload = uri.partition(",")
    if not comma or not header.startswith("data:"):
        raise MediaError("it is a data URI that was left out; land it by the handle")
    try:
        content = (
            base64.b64decode(payload, validate=True)
            if header.endswith(";base64")
            else unquote_to_bytes(payload)
        )
    except (binascii.Error, ValueError) as error:
        raise MediaError("its data URI cannot be decoded") from error
    path.write_bytes(content)
    kind = header[len("data:") :].partition(";")[0] or None
    return Fetched(path, len(content), hashlib.sha256(content).hexdigest(), kind)


def _checked_type(result: JobResult, file: MediaFile, local: Fetched) -> str | None:
    with local.path.open("rb") as reader:
        sniffed = media_type(reader.read(8192))
    if sniffed is None and local.content_type in _PAGES:
        raise _failed(
            result, file.where, f"its server sent {local.content_type} instead of media", gone=False
        )
    return sniffed or local.content_type or file.content_type


def _suffix(file: MediaFile, kind: str | None) -> str:
    told = kind not in (None, "application/octet-stream")
    guessed = _SUFFIXES.get(kind or "") or (mimetypes.guess_extension(kind or "") if told else None)
    if guessed:
        return guessed
    named = PurePosixPath(file.file_name or urlsplit(file.url or "").path).suffix.lower()
    return named if named[1:].isalnum() and len(named) <= 6 else ".bin"


def _failed(result: JobResult, where: str, why: str, *, gone: bool) -> FalError:
    return error_of(
        Failure(
            FailureKind.RESULT_EXPIRED if gone else FailureKind.PROTOCOL,
            what=f"The file {where} of the result cannot be landed: {why}.",
            retry_does="of the landing fetches it again; nothing is submitted.",
            advice="The job is done; its result, with the address of the file, is in XCom.",
            billed="maybe",
            request_id=result.handle.request_id,
        )
    )
