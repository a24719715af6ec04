"""The operator that lands the media files of a result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, ObjectStoragePath

from airflow_provider_uniapi_fal.exceptions import error_of
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.landing.media import land
from airflow_provider_uniapi_fal.landing.storage import is_plain_name
from airflow_provider_uniapi_fal.links.fal import MANIFEST_LINKS
from airflow_provider_uniapi_fal.protocol.errors import bad_input
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult
from airflow_provider_uniapi_fal.reporting import failure_in_xcom

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

#: Bytes of one media file: two GiB, more than any model makes today.
MAX_BYTES = 2 * 1024**3


class FalToObjectStorageOperator(BaseOperator):
    """
    Copy every media file of a result to object storage.

    Media are streamed through a local temporary file, without credentials, and appear under their final names
    only when they are whole. They are fetched from public hosts only; others must be named in ``media_hosts``
    in the connection's extra. It submits nothing: a retry or a clear copies the files again.

    :param result: what ``FalQueueSensor`` returned (templated), or a handle, whose result is then fetched
    :param destination: folder in storage, such as ``s3://bucket/night`` (templated)
    :param name: file name without suffix (templated; default: the request id). One file becomes
        ``<name>.<suffix>``, several become ``<name>-<index>.<suffix>``
    :param storage_conn_id: Airflow connection of the storage (templated; default: none)
    :param fal_conn_id: connection whose proxy, CA certificates and ``media_hosts`` are used (templated; default:
        the one that submitted the job)
    :param max_bytes: a longer file is refused; default 2 GiB
    :return: one mapping for each file: ``where``, ``path``, ``bytes``, ``sha256``, ``content_type``, ``width``,
        ``height``, ``flagged``
    :raises FalInputError: wrong arguments; nothing was copied
    :raises FalResultExpired: a file is not there any more; the job may have been billed
    :raises FalProtocolError: a file cannot be had, or is no media file; a retry fetches it again
    """

    template_fields: Sequence[str] = ("result", "destination", "name", "storage_conn_id", "fal_conn_id")
    operator_extra_links = MANIFEST_LINKS
    ui_color = "#e0f5e6"

    def __init__(
        self,
        *,
        result: Mapping[str, Any] | XComArg,
        destination: str | XComArg,
        name: str | XComArg | None = None,
        storage_conn_id: str | None = None,
        fal_conn_id: str | None = None,
        max_bytes: int = MAX_BYTES,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if max_bytes <= 0:
            raise ValueError("max_bytes must be more than 0")
        # Templates and XComs are values by the time that execute() looks.
        self.result: Any = result
        self.destination: Any = destination
        self.name: Any = name
        self.storage_conn_id = storage_conn_id
        self.fal_conn_id = fal_conn_id
        self.max_bytes = max_bytes

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Copy the files, and return where they are."""
        with failure_in_xcom(context):
            result = self._result()
            name = result.handle.request_id if self.name is None else self.name
            if not isinstance(name, str) or not is_plain_name(name):
                raise error_of(bad_input(f"name: a plain file name is needed, not {name!r}."))
            if not isinstance(self.destination, str) or not self.destination.strip():
                raise error_of(
                    bad_input("destination: a folder in storage is needed, such as s3://bucket/night.")
                )
            landed = land(
                result,
                ObjectStoragePath(self.destination, conn_id=self.storage_conn_id),
                name=name,
                account=FalHook(result.handle.fal_conn_id).account,
                max_bytes=self.max_bytes,
            )
        if not landed:
            self.log.warning("Request %s has no media files in its result.", result.handle.request_id)
        for file in landed:
            self.log.info(
                "%s: %s bytes, %s, sha256 %s", file.path, file.bytes, file.content_type, file.sha256
            )
        return [file.to_json() for file in landed]

    def _result(self) -> JobResult:
        """Return the result with all that is needed to copy it; data URIs are not in XCom and are asked for."""
        given = self.result
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
