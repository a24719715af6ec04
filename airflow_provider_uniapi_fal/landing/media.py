"""Landing: copying the media files of many results to object storage, a bounded number at once."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import itertools
import posixpath
import threading
import unicodedata
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import unquote_to_bytes, urlsplit

from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal.exceptions import FalError, error_of
from airflow_provider_uniapi_fal.landing.addresses import with_best_addresses
from airflow_provider_uniapi_fal.landing.files import LandedFile
from airflow_provider_uniapi_fal.landing.kinds import HEAD_BYTES, checked_kind, is_cut_off, suffix_of
from airflow_provider_uniapi_fal.landing.measuring import Measures, TooManyPixels, measure
from airflow_provider_uniapi_fal.landing.storage import (
    clear_halves,
    clear_spools,
    holds,
    put,
    sha256_of,
    size_of,
    spool,
)
from airflow_provider_uniapi_fal.protocol.arguments import at_least_one
from airflow_provider_uniapi_fal.protocol.checking import check_fields
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.transport.media import Fetched, MediaError, MediaFetcher

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.landing.names import Names
    from airflow_provider_uniapi_fal.protocol.job import JobResult, MediaFile
    from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount

#: Files under way at once, whichever results they belong to.
PARALLEL = 8

T = TypeVar("T")


@dataclass(frozen=True)
class Limits:
    """
    What is landed at most; a result beyond one of them is refused, and no other is harmed.

    :param max_bytes: bytes of one file; default 2 GiB. Where the result names the file's size, twice that and
        a MiB are the limit if that is less
    :param max_files: files of one result; default 100
    :param max_pixels: width times height of a picture or a frame; default 178,956,970, from where on Pillow
        takes a picture for a decompression bomb. Told from the bytes with the extra ``media``, else from what
        the model says
    :param max_seconds: time to fetch one file; default an hour
    """

    max_bytes: int = 2 * 1024**3
    max_files: int = 100
    max_pixels: int = 178_956_970
    max_seconds: float = 3600.0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in self.__dataclass_fields__:
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be more than 0")


@dataclass(frozen=True)
class Landing:
    """
    What became of the files of one result.

    :param files: those in storage, in the order of the result
    :param error: why others are not; its message names the first of them
    """

    files: tuple[LandedFile, ...] = ()
    error: FalError | None = None


@dataclass(frozen=True)
class _Local:
    """A file on the local disk, and all that is known of it."""

    path: Path
    size: int
    sha256: str
    kind: str | None
    measures: Measures


class Lander:
    """
    Lands results; an async context manager.

    One pool of connections and one bound serve all results: call :meth:`land` for many at once. Each file passes
    through a local temporary file, never whole through memory, and appears under its final name only when all
    of it is there.

    Two files never share a name, unless they are the same bytes: within one Lander, the later one gets a part of
    its hash into its name. What an earlier landing left under a name is kept if it is the same bytes, else
    replaced: the key is the user's, and its newest picture takes the place of the old one.

    :param account: for proxy, CA certificates and ``media_hosts``; its key is not used
    :param limits: what is refused
    :param parallel: files under way at once; default 8. So many at most lie on the local disk
    """

    def __init__(
        self, account: GatewayAccount, *, limits: Limits | None = None, parallel: int = PARALLEL
    ) -> None:
        self._account = account
        self._limits = limits or Limits()
        self._parallel = at_least_one("parallel", parallel)
        self._fetcher = MediaFetcher(
            account,
            max_bytes=self._limits.max_bytes,
            max_seconds=self._limits.max_seconds,
            parallel=parallel,
        )
        self._numbers = itertools.count()
        self._names_taken = _NamesTaken()
        self._cleared: set[str] = set()
        self._clearing = threading.Lock()

    async def __aenter__(self) -> Lander:
        """
        Open the pool.

        :raises FalProtocolError: proxy or CA certificates cannot be used
        """
        self._gate = asyncio.Semaphore(self._parallel)
        async with AsyncExitStack() as stack:
            await asyncio.to_thread(clear_spools)
            self._spool = stack.enter_context(spool())
            self._threads = ThreadPoolExecutor(self._parallel, thread_name_prefix="landing")
            # A thread that is still copying must be done before its file is taken away.
            stack.push_async_callback(asyncio.to_thread, self._threads.shutdown)
            try:
                await stack.enter_async_context(self._fetcher)
            except MediaError as error:
                raise error_of(_failure(f"No media can be fetched: {error}.")) from error
            self._open = stack.pop_all()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        """Close the pool, and leave nothing on the local disk."""
        await self._open.aclose()

    def remember(self, files: Iterable[LandedFile]) -> None:
        """Keep the names of files that stay: of other results of the same batch, or of a batch that it goes on with."""
        for file in files:
            self._names_taken.claim(file.path, file.sha256)

    def reserve(self, paths: Iterable[str]) -> None:
        """Keep the names of files that no media may take the place of: a manifest, the inputs."""
        for path in paths:
            self._names_taken.claim(path, "")

    async def land(
        self,
        result: JobResult,
        destination: ObjectStoragePath,
        names: Names,
        *,
        already: Sequence[LandedFile] = (),
    ) -> list[LandedFile]:
        """
        Copy every media file of a result to storage.

        :param result: the result; its data URIs, if any, must still be in it
        :param destination: folder in storage
        :param names: how its files are called
        :param already: what an earlier try landed of this result: a file that is still there with its size is
            not fetched again
        :return: the files, in the order of the result
        :raises FalInputError: a name or the template leads nowhere; nothing was fetched
        :raises FalResultExpired: a file is not there any more
        :raises FalProtocolError: a file cannot be had, is no media file or is beyond a limit; the job itself is
            paid and done. Its other files have landed all the same: :meth:`attempt` tells which
        """
        landing = await self.attempt(result, destination, names, already=already)
        if landing.error is not None:
            raise landing.error
        return list(landing.files)

    async def attempt(
        self,
        result: JobResult,
        destination: ObjectStoragePath,
        names: Names,
        *,
        already: Sequence[LandedFile] = (),
    ) -> Landing:
        """
        Copy those media files of a result to storage that can be had; see :meth:`land`.

        :return: what has landed, and the error that :meth:`land` would raise
        """
        try:
            _check_names(names, result.handle.request_id)
            self._check_count(result)
        except FalError as error:
            return Landing(error=error)
        result = await with_best_addresses(result, self._account)
        earlier = {file.where: file for file in already}
        return await self._each(
            partial(
                self._from_gateway,
                result=result,
                index=index,
                destination=destination,
                names=names,
                earlier=earlier.get(file.where),
            )
            for index, file in enumerate(result.media)
        )

    async def copy(
        self,
        files: Sequence[LandedFile],
        destination: ObjectStoragePath,
        names: Names,
        *,
        places: Sequence[str] = (),
    ) -> Landing:
        """
        Copy files that were landed before to another place in storage, and prove each by its checksum.

        :param files: files of one result, as a manifest names them
        :param destination: folder in storage
        :param names: how they are called there
        :param places: where all files of the result have their places in it, if there are others: they are counted,
            too, so that each file has the name that :meth:`land` gives it
        :return: what has been copied, and the error of the first that could not be
        """
        try:
            _check_names(names, names.request_id or None)
        except FalError as error:
            return Landing(error=error)
        places = list(dict.fromkeys((*places, *(file.where for file in files))))
        return await self._each(
            partial(
                self._in_thread,
                partial(self._from_storage, file, places.index(file.where), len(places), destination, names),
            )
            for file in files
        )

    def _check_count(self, result: JobResult) -> None:
        count = len(result.media)
        if count > self._limits.max_files:
            raise error_of(
                _failure(
                    f"The result has {count} files; at most {self._limits.max_files} are landed.",
                    retry_does="of the landing refuses it again, unless max_files is raised; nothing is submitted.",
                    request_id=result.handle.request_id,
                )
            )

    async def _each(self, copies: Iterable[Callable[[], Awaitable[LandedFile]]]) -> Landing:
        """Run the copies of one result, as far as the bound lets them; what else is raised than theirs is raised."""

        async def one(copy: Callable[[], Awaitable[LandedFile]]) -> LandedFile | FalError:
            async with self._gate:
                try:
                    return await copy()
                except FalError as error:
                    return error

        tasks = [asyncio.ensure_future(one(copy)) for copy in copies]
        try:
            ended = await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return Landing(
            tuple(each for each in ended if isinstance(each, LandedFile)),
            next((each for each in ended if isinstance(each, FalError)), None),
        )

    async def _in_thread(self, run: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, run)

    async def _from_gateway(
        self,
        *,
        result: JobResult,
        index: int,
        destination: ObjectStoragePath,
        names: Names,
        earlier: LandedFile | None,
    ) -> LandedFile:
        file = result.media[index]
        say = partial(_cannot_land, result.handle.request_id, file.where)
        try:
            if earlier is not None and await self._in_thread(partial(_still_there, earlier, destination)):
                self._names_taken.claim(earlier.path, earlier.sha256)
                return earlier
            with self._spooled() as local:
                fetched = await self._fetched(file, local)
                return await self._in_thread(
                    partial(self._keep, file, fetched, index, len(result.media), destination, names)
                )
        except MediaError as error:
            raise error_of(say(str(error), gone=error.gone, status=error.status)) from error
        except ValueError as error:
            raise error_of(say(str(error))) from error
        except Exception as error:
            # The clients of storage have errors of their own, which are no OSErrors.
            raise error_of(say(f"storage says {_said(error)}")) from error

    async def _fetched(self, file: MediaFile, local: Path) -> Fetched:
        if file.inline:
            return await self._in_thread(partial(_decode, file.url or "", local, self._limits.max_bytes))
        return await self._fetcher.fetch(file.url or "", local, size=file.file_size)

    def _keep(
        self,
        file: MediaFile,
        fetched: Fetched,
        index: int,
        count: int,
        destination: ObjectStoragePath,
        names: Names,
    ) -> LandedFile:
        local = self._looked_at(file, fetched)
        suffix = suffix_of(local.kind, file.file_name, urlsplit(file.url or "").path[-200:])
        name = names.of(index, count, where=file.where, sha256=local.sha256)
        target = self._names_taken.free(destination, name, suffix, local.sha256)
        self._clear_once(target.parent)
        if not holds(target, local.size, local.sha256):
            put(local.path, target)
        return LandedFile(
            where=file.where,
            path=str(target),
            bytes=local.size,
            sha256=local.sha256,
            content_type=local.kind,
            width=local.measures.width or file.width,
            height=local.measures.height or file.height,
            flagged=file.flagged,
            duration=local.measures.duration,
        )

    def _looked_at(self, file: MediaFile, fetched: Fetched) -> _Local:
        """Refuse what is no media file, not all of one, or too large a picture."""
        with fetched.path.open("rb") as reader:
            head = reader.read(HEAD_BYTES)
        try:
            kind = checked_kind(head, served=fetched.content_type, promised=file.content_type)
            measures = measure(fetched.path, kind)
        except TooManyPixels as error:
            raise MediaError("it is a picture of more pixels than any model makes") from error
        except ValueError as error:
            raise MediaError(str(error)) from error
        # Of a side that nobody knows: the other one alone must not be beyond the limit, either.
        width, height = measures.width or file.width or 1, measures.height or file.height or 1
        if width * height > self._limits.max_pixels:
            raise MediaError(
                f"it has {width} x {height} pixels; at most {self._limits.max_pixels} are allowed"
            )
        if is_cut_off(fetched.path, kind):
            raise MediaError(f"its {fetched.size} bytes are not the whole file: it ends in the middle")
        return _Local(fetched.path, fetched.size, fetched.sha256, kind, measures)

    def _from_storage(
        self, file: LandedFile, index: int, count: int, destination: ObjectStoragePath, names: Names
    ) -> LandedFile:
        say = partial(_cannot_land, names.request_id or None, file.where)
        try:
            source = ObjectStoragePath(file.path)
            name = names.of(index, count, where=file.where, sha256=file.sha256)
            target = self._names_taken.free(destination, name, suffix_of(None, source.name), file.sha256)
            self._clear_once(target.parent)
            with self._spooled() as local:
                if not holds(target, file.bytes, file.sha256):
                    if sha256_of(source, local) != (file.bytes, file.sha256):
                        raise MediaError("the file in storage is not the one that the manifest names")
                    put(local, target)
        except (MediaError, ValueError) as error:
            raise error_of(say(str(error))) from error
        except Exception as error:
            gone = isinstance(error, FileNotFoundError)
            raise error_of(say(f"storage says {_said(error)}", gone=gone)) from error
        return replace(file, path=str(target))

    def _clear_once(self, folder: ObjectStoragePath) -> None:
        """Clear away what a killed landing left in a folder; each is looked through once."""
        with self._clearing:
            if folder.path not in self._cleared:
                self._cleared.add(folder.path)
                clear_halves(folder)

    @contextmanager
    def _spooled(self) -> Iterator[Path]:
        """Lend a place on the local disk for one file."""
        local = self._spool / str(next(self._numbers))
        try:
            yield local
        finally:
            local.unlink(missing_ok=True)


@dataclass
class _NamesTaken:
    """Which file has which name, so that no two share one; for several threads."""

    _hashes: dict[str, str] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def claim(self, path: str, sha256: str) -> bool:
        """Take a name; False if a file of other bytes has it."""
        with self._lock:
            return self._hashes.setdefault(_spelling(path), sha256) == sha256

    def free(self, destination: ObjectStoragePath, name: str, suffix: str, sha256: str) -> ObjectStoragePath:
        """Take a name for a file: the one that was meant, else one with a part of its hash in it."""
        for candidate in (name, f"{name}-{sha256[:8]}", f"{name}-{sha256}"):
            path = destination / f"{candidate}{suffix}"
            if self.claim(str(path), sha256):
                return path
        raise MediaError(f"another file has the name {name}{suffix}")


def _spelling(path: str) -> str:
    """Return one spelling for all those of a place in storage: the connection that leads there says nothing of it."""
    scheme, _, rest = path.rpartition("://")
    host, slash, name = rest.partition("/")
    plain = posixpath.normpath(f"{host.rpartition('@')[2]}{slash}{name}")
    # Some file systems take two spellings for one name.
    return unicodedata.normalize("NFC", f"{scheme or 'file'}://{plain}").casefold()


def land(
    result: JobResult,
    destination: ObjectStoragePath,
    names: Names,
    *,
    account: GatewayAccount,
    limits: Limits | None = None,
    already: Sequence[LandedFile] = (),
) -> list[LandedFile]:
    """Copy every media file of one result to storage, without an event loop; see :meth:`Lander.land`."""

    async def run() -> list[LandedFile]:
        async with Lander(account, limits=limits) as lander:
            return await lander.land(result, destination, names, already=already)

    try:
        return asyncio.run(run())
    except FalError as error:
        raise error_of(error.failure.about(result.handle.request_id)) from error


def _still_there(file: LandedFile, destination: ObjectStoragePath) -> bool:
    """Whether a file of an earlier try lies where it was landed, with its size."""
    path = ObjectStoragePath(file.path)
    if path.conn_id is None and path.protocol == destination.protocol:
        path = ObjectStoragePath(file.path, conn_id=destination.conn_id)
    return size_of(path) == file.bytes


def _decode(uri: str, path: Path, max_bytes: int) -> Fetched:
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
    if not content:
        raise MediaError("its data URI is empty")
    if len(content) > max_bytes:
        raise MediaError(f"its data URI has {len(content)} bytes; at most {max_bytes} are allowed")
    path.write_bytes(content)
    kind = header[len("data:") :].partition(";")[0] or None
    return Fetched(path, len(content), hashlib.sha256(content).hexdigest(), kind)


def _said(error: Exception) -> str:
    """Return what a storage error says, without the addresses that some of them quote."""
    said = getattr(error, "strerror", None)
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def _check_names(names: Names, request_id: str | None) -> None:
    """
    Check the names of a result's files: by now its job is paid for.

    :raises FalInputError: a name or the template leads nowhere
    """
    try:
        names.check()
    except FalError as error:
        again = "of the landing would be refused in the same way; nothing is submitted."
        failure = _failure(error.failure.what, retry_does=again, request_id=request_id)
        advice = f"Correct the name. {failure.advice}"
        raise error_of(replace(failure, kind=error.failure.kind, advice=advice)) from error


def _cannot_land(
    request_id: str | None, where: str, why: str, *, gone: bool = False, status: int | None = None
) -> Failure:
    failure = _failure(f"The file {where} of the result cannot be landed: {why}.", request_id=request_id)
    kind = FailureKind.RESULT_EXPIRED if gone else failure.kind
    return replace(failure, kind=kind, http_status=status)


def _failure(
    what: str,
    *,
    retry_does: str = "of the landing fetches it again; nothing is submitted.",
    request_id: str | None = None,
) -> Failure:
    return Failure(
        FailureKind.PROTOCOL,
        what=what,
        retry_does=retry_does,
        advice="The job is done and is not paid again; the gateway keeps its result for a while.",
        billed="maybe",
        request_id=request_id,
    )
