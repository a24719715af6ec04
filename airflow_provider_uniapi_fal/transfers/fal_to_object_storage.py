"""The operator that lands the media files of a result, or of a whole manifest."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pendulum
from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal import metrics
from airflow_provider_uniapi_fal.exceptions import FalError, error_of
from airflow_provider_uniapi_fal.hooks.fal import DEFAULT_CONN_ID, FalHook
from airflow_provider_uniapi_fal.landing import lineage
from airflow_provider_uniapi_fal.landing.arguments import check_destination, check_name, check_name_template
from airflow_provider_uniapi_fal.landing.manifest import (
    Manifest,
    read_manifest,
    summary_path,
    write_manifest,
)
from airflow_provider_uniapi_fal.landing.media import PARALLEL, Lander, Limits
from airflow_provider_uniapi_fal.landing.names import DEFAULT_TEMPLATE
from airflow_provider_uniapi_fal.landing.rows import (
    LandedRow,
    Place,
    foremost,
    land_result,
    land_rows,
    results_again,
)
from airflow_provider_uniapi_fal.links.fal import MANIFEST_LINKS, push_links
from airflow_provider_uniapi_fal.mapping import CheckedWhenMapped
from airflow_provider_uniapi_fal.protocol.arguments import at_least_one
from airflow_provider_uniapi_fal.protocol.errors import bad_input
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult
from airflow_provider_uniapi_fal.reporting import MANIFEST_KEY, failure_in_xcom, tell_assets

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

    from airflow_provider_uniapi_fal.landing.files import LandedFile

MAX_BYTES = Limits.max_bytes


@dataclass(frozen=True)
class _GivenManifest:
    """A manifest to be landed elsewhere, and where it lies."""

    manifest: Manifest
    path: ObjectStoragePath


class FalToObjectStorageOperator(CheckedWhenMapped):
    """
    Copy every media file of a result, or of all results of a manifest, to object storage.

    Media are streamed through a local temporary file, without credentials, and appear under their final names
    only when they are whole. They are fetched from public hosts only; others must be named in ``media_hosts``
    in the connection's extra. Files that already lie in storage (those of a manifest) are proven by their
    checksums. It submits nothing. A retry or a clear goes on where the last try ended: the same bytes are not
    written twice.

    A file of the same name and other bytes that an earlier landing left is replaced. Two files of one landing
    never share a name, nor does a file take that of a manifest: the second gets a part of its hash into its name.

    With ``outlets``, the event of each asset carries ``{"manifest_path", "counts"}`` as its extra.

    :param result: what ``FalQueueSensor`` returned (templated); or a handle, whose result is then fetched; or the
        path of a manifest or what ``FalBatchOperator`` returned: its files are copied, and its rows without all of
        theirs are landed if the gateway has their results by now
    :param destination: folder in storage, such as ``s3://bucket/night`` (templated)
    :param name: the key of the result, a file name without suffix (templated; default: the request id). With the
        default template one file becomes ``<name>.<suffix>``, several become ``<name>-<index>.<suffix>``. The
        rows of a manifest have keys of their own
    :param name_template: how files are called, such as ``{date}/{key}-{index}`` (templated; default ``{key}``); see
        :class:`~airflow_provider_uniapi_fal.landing.names.Names`. ``{date}`` is the day of the run, in UTC
    :param manifest_path: where to write a manifest, such as ``s3://bucket/night/manifest.jsonl`` (templated; default:
        none for a result; for a manifest, one of the same name in the destination)
    :param storage_conn_id: Airflow connection of the storage (templated; default: none)
    :param fal_conn_id: connection whose proxy, CA certificates and ``media_hosts`` are used (templated; default:
        the one that submitted the job, in a manifest the first)
    :param max_bytes: a longer file is refused; default 2 GiB
    :param max_files: a result of more files is refused; default 100
    :param max_pixels: a picture of more pixels is refused; default 178,956,970
    :param parallel: files under way at once; default 8
    :return: one mapping for each file: ``where``, ``path``, ``bytes``, ``sha256``, ``content_type``, ``width``,
        ``height``, ``flagged``, ``duration``; with a manifest ``{"manifest_path", "summary_path", "counts"}``
    :raises FalInputError: wrong arguments; nothing was copied
    :raises FalResultExpired: a file is not there any more; the job may have been billed
    :raises FalProtocolError: a file cannot be had, is no media file or is beyond a limit; or the gateway does not say
        whether it has a result for a row of the manifest. A retry asks for it again. The other files have landed, and
        the manifest, if there is one, says which
    :raises FalAuthError: the gateway refuses the key when it is asked for a result
    :raises FalBalanceError: or the account; the other files have landed, too
    """

    template_fields: Sequence[str] = (
        "result",
        "destination",
        "name",
        "name_template",
        "manifest_path",
        "storage_conn_id",
        "fal_conn_id",
    )
    operator_extra_links = MANIFEST_LINKS
    ui_color = "#e0f5e6"

    def __init__(
        self,
        *,
        result: Mapping[str, Any] | str | XComArg,
        destination: str | XComArg,
        name: str | XComArg | None = None,
        name_template: str = DEFAULT_TEMPLATE,
        manifest_path: str | XComArg | None = None,
        storage_conn_id: str | None = None,
        fal_conn_id: str | None = None,
        max_bytes: int = MAX_BYTES,
        max_files: int = Limits.max_files,
        max_pixels: int = Limits.max_pixels,
        parallel: int = PARALLEL,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._limits = Limits(max_bytes=max_bytes, max_files=max_files, max_pixels=max_pixels)
        # Templates and XComs are values by the time that execute() looks.
        self.result: Any = result
        self.destination: Any = destination
        self.name: Any = name
        self.name_template: Any = name_template
        self.manifest_path: Any = manifest_path
        self.storage_conn_id = storage_conn_id
        self.fal_conn_id = fal_conn_id
        self.max_bytes = max_bytes
        self.max_files = max_files
        self.max_pixels = max_pixels
        self.parallel = at_least_one("parallel", parallel)
        self._moved = lineage.Moved()

    def execute(self, context: Context) -> Any:
        """Copy the files; return where they are, or where their manifest is."""
        with failure_in_xcom(context, metrics.landing_failed):
            place = self._place(context)
            work = self._work()
            target = self._manifest_target(work, place)
            if target is not None:
                # A reader may look for it before the task ends.
                context["ti"].xcom_push(key=MANIFEST_KEY, value=str(target))
            push_links(self, context["ti"], manifest_path=None if target is None else str(target))
            landed = self._landed(work, place, target)
            rows = [each.row for each in landed]
            for row in rows:
                self._say(row.request_id or row.key, row.files)
            told = self._account(context, landed, target)
            self._moved = self._movements(work, rows, place, target)
            _raise_foremost([each.error for each in landed if each.error is not None], len(landed))
        tell_assets(context, self.outlets, {"manifest_path": told["manifest_path"], "counts": told["counts"]})
        return [file.to_json() for row in rows for file in row.files] if target is None else told

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Tell OpenLineage which jobs or files were read and which folder was written, if it is installed."""
        return lineage.facets(self._moved)

    def _place(self, context: Context) -> Place:
        check_destination(self.destination)
        check_name_template(self.name_template)
        run: Any = context.get("dag_run")
        day = pendulum.instance(run.run_after) if run is not None else pendulum.now("UTC")
        destination = ObjectStoragePath(self.destination, conn_id=self.storage_conn_id)
        return Place(destination, self.name_template, day.in_timezone("UTC").date())

    def _work(self) -> JobResult | _GivenManifest:
        """
        Return what is to be landed, and all that is needed for it.

        Data URIs are not in XCom and are asked for.
        """
        given = self.result
        if isinstance(given, Mapping) and MANIFEST_KEY in given:
            given = given[MANIFEST_KEY]
        if isinstance(given, str) and "://" in given:
            path = ObjectStoragePath(given, conn_id=self.storage_conn_id if "@" not in given else None)
            try:
                return _GivenManifest(read_manifest(path), path)
            except (OSError, ValueError) as error:
                why = str(error) if isinstance(error, ValueError) else type(error).__name__
                raise error_of(bad_input(f"result: the manifest {given} cannot be read: {why}.")) from error
        try:
            if isinstance(given, Mapping) and "request_id" in given:
                return self._fetched(JobHandle.from_json(given))
            result = JobResult.from_json(given)
        except (ValueError, TypeError, AttributeError) as error:
            raise error_of(bad_input(f"result: {error}.")) from error
        result = replace(result, handle=self._with_connection(result.handle))
        return self._fetched(result.handle) if any(file.url is None for file in result.media) else result

    def _fetched(self, handle: JobHandle) -> JobResult:
        handle = self._with_connection(handle)
        return FalHook(handle.fal_conn_id).result(handle)

    def _with_connection(self, handle: JobHandle) -> JobHandle:
        return handle if self.fal_conn_id is None else replace(handle, fal_conn_id=self.fal_conn_id)

    def _manifest_target(self, work: JobResult | _GivenManifest, place: Place) -> ObjectStoragePath | None:
        given = self.manifest_path
        if given is not None and (not isinstance(given, str) or not given.strip()):
            raise error_of(bad_input(f"manifest_path: a path in storage is needed, not {given!r}."))
        if isinstance(work, JobResult):
            return None if given is None else ObjectStoragePath(given, conn_id=self.storage_conn_id)
        target = (
            place.destination / work.path.name
            if given is None
            else ObjectStoragePath(given, conn_id=self.storage_conn_id)
        )
        if target.path == work.path.path and target.protocol == work.path.protocol:
            raise error_of(bad_input(f"manifest_path: {target} is the manifest that is landed."))
        return target

    def _landed(
        self, work: JobResult | _GivenManifest, place: Place, target: ObjectStoragePath | None
    ) -> list[LandedRow]:
        if isinstance(work, _GivenManifest):
            return self._landed_rows(work, place, target)
        name = work.handle.request_id if self.name is None else self.name
        check_name(name)
        already = () if target is None else _landed_before(target, work.handle.request_id)

        async def run() -> list[LandedRow]:
            account = FalHook(work.handle.fal_conn_id).account
            async with Lander(account, limits=self._limits, parallel=self.parallel) as lander:
                lander.reserve(_both_parts(target))
                return [await land_result(lander, work, place, key=name, already=already)]

        return asyncio.run(run())

    def _landed_rows(
        self, given: _GivenManifest, place: Place, target: ObjectStoragePath | None
    ) -> list[LandedRow]:
        rows = given.manifest.rows
        conn_id = self.fal_conn_id or next((row.fal_conn_id for row in rows), DEFAULT_CONN_ID)
        account = FalHook(conn_id).account

        async def run() -> list[LandedRow]:
            async with Lander(account, limits=self._limits, parallel=self.parallel) as lander:
                lander.reserve((*_both_parts(target), *_both_parts(given.path)))
                return await land_rows(lander, rows, await results_again(rows, self.fal_conn_id), place)

        return asyncio.run(run())

    def _account(
        self, context: Context, landed: Sequence[LandedRow], target: ObjectStoragePath | None
    ) -> dict[str, Any]:
        """Write the manifest, if there is to be one; return what is told of it."""
        ti: Any = context["ti"]
        manifest = Manifest(
            tuple(each.row for each in landed),
            dag_id=getattr(ti, "dag_id", ""),
            run_id=getattr(ti, "run_id", ""),
            task_id=getattr(ti, "task_id", ""),
            map_index=getattr(ti, "map_index", -1),
            written_at=time.time(),
        )
        if target is None:
            return {"manifest_path": None, "counts": manifest.counts}
        write_manifest(manifest, target)
        return {
            "manifest_path": str(target),
            "summary_path": str(summary_path(target)),
            "counts": manifest.counts,
        }

    def _movements(
        self,
        work: JobResult | _GivenManifest,
        rows: Sequence[Any],
        place: Place,
        target: ObjectStoragePath | None,
    ) -> lineage.Moved:
        files = [file for row in rows for file in row.files]
        return lineage.Moved(
            job=work.handle if isinstance(work, JobResult) else None,
            sources=(work.path,) if isinstance(work, _GivenManifest) else (),
            destination=place.destination,
            manifest=target,
            files=len(files),
            bytes=sum(file.bytes for file in files),
        )

    def _say(self, name: str, files: Sequence[LandedFile]) -> None:
        if not files:
            self.log.warning("Request %s has no media files in storage.", name)
        for file in files:
            self.log.info(
                "%s: %s bytes, %s, sha256 %s", file.path, file.bytes, file.content_type, file.sha256
            )


def _both_parts(manifest: ObjectStoragePath | None) -> tuple[str, ...]:
    """Return where a manifest and its summary lie, whose places no media may take."""
    return () if manifest is None else (str(manifest), str(summary_path(manifest)))


def _landed_before(target: ObjectStoragePath, request_id: str) -> tuple[LandedFile, ...]:
    """Return what the manifest of an earlier try says of this job; nothing if it is not to be had."""
    # It only saves fetching again: what it does not say is fetched, and nothing is paid for that.
    with suppress(OSError, ValueError):
        for row in read_manifest(target).rows:
            if row.request_id == request_id:
                return row.files
    return ()


def _raise_foremost(errors: Sequence[FalError], count: int) -> None:
    first = foremost(errors)
    if first is None:
        return
    if count == 1:
        raise first
    what = f"{len(errors)} of {count} results could not be landed; the first: {first.failure.what}"
    raise error_of(replace(first.failure, what=what)) from first
