"""The operator for OpenAI images: one long request, whose pictures are landed in the same task."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from airflow.sdk import ObjectStoragePath
from airflow.sdk.exceptions import AirflowNotFoundException

from airflow_provider_uniapi_fal import metrics
from airflow_provider_uniapi_fal.exceptions import FalError, error_of
from airflow_provider_uniapi_fal.hooks.fal import DEFAULT_CONN_ID, FalHook
from airflow_provider_uniapi_fal.landing import lineage
from airflow_provider_uniapi_fal.landing.arguments import check_destination, check_name
from airflow_provider_uniapi_fal.landing.files import LandedFile
from airflow_provider_uniapi_fal.landing.inputs import unread
from airflow_provider_uniapi_fal.landing.media import Limits, land
from airflow_provider_uniapi_fal.landing.names import Names
from airflow_provider_uniapi_fal.landing.storage import put_bytes
from airflow_provider_uniapi_fal.ledger.record import GONE, JobRecord, Phase, found_gone
from airflow_provider_uniapi_fal.ledger.task_state import TaskLedger
from airflow_provider_uniapi_fal.links.fal import push_links
from airflow_provider_uniapi_fal.operators.submitting import SubmittingOperator, given, handle_in, in_phase
from airflow_provider_uniapi_fal.protocol.arguments import seconds
from airflow_provider_uniapi_fal.protocol.dialects.base import Finished, Submitted
from airflow_provider_uniapi_fal.protocol.dialects.openai_images import TIMEOUT
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult, JobState
from airflow_provider_uniapi_fal.reporting import REQUEST_ID_KEY, failure_in_xcom

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

    from airflow_provider_uniapi_fal.ledger.record import Seen

#: Bytes of one picture: two GiB, more than any model makes today.
MAX_BYTES = 2 * 1024**3

#: Where answers are kept until they are landed, and what became of them afterwards; in the destination.
FOLDER = ".uniapi_fal"


class OpenAIImagesOperator(SubmittingOperator):
    """
    Generate pictures by the OpenAI-images form, and copy them to object storage.

    The gateway holds the request until the pictures are made and answers with them. There is no id to come back to,
    so there is no sensor, no deferral and no cancelling, and the pictures are landed in this very task.

    **The money.** If the answer is lost, nobody can tell whether the pictures were made and billed: the task fails,
    says so, and no retry posts again unless ``on_unknown_submit='resubmit'``. The answer is written whole to the
    folder ``.uniapi_fal`` in ``destination`` before anything else is done with it; a retry after that lands it
    without a post. That the folder can be written to is made sure of before the post.

    Besides the parameters of :class:`~airflow_provider_uniapi_fal.operators.submitting.SubmittingOperator`:

    :param model: model id, such as ``flux-pro/kontext/text-to-image`` (templated)
    :param prompt: what is to be seen (templated)
    :param n: number of pictures, each of which is billed (templated; default: the model's)
    :param size: such as ``1024x1024`` (templated; default: the model's)
    :param response_format: ``url`` or ``b64_json`` (templated; default: the model's)
    :param arguments: further fields of the model, sent as they are (templated). ``num_images`` beside ``n`` is
        accepted with a warning: which of them counts is not documented
    :param destination: folder in storage, such as ``s3://bucket/night`` (templated)
    :param name: file name without suffix (templated; default: the request id). One picture becomes
        ``<name>.<suffix>``, several become ``<name>-<index>.<suffix>``
    :param storage_conn_id: Airflow connection of the storage (templated; default: none)
    :param max_bytes: a longer file is refused; default 2 GiB
    :param timeout: seconds for the answer, default 900
    :param check_limits: False sends fields that break the documented limits, should they have changed; default True
    :return: one mapping for each file, as ``FalToObjectStorageOperator`` returns it; the XCom ``result`` has the
        answer without the bytes of the pictures
    :raises FalJobFailed: the gateway answered with an error; it may have been billed
    :raises FalResultExpired: the answer or a picture is not there any more; it may have been billed
    """

    dialect = "openai_images"
    template_fields: Sequence[str] = (
        *SubmittingOperator.template_fields,
        "destination",
        "name",
        "storage_conn_id",
    )
    ui_color = "#fff3c9"

    def __init__(
        self,
        *,
        model: str | XComArg,
        destination: str | XComArg,
        prompt: str | XComArg | None = None,
        n: int | XComArg | None = None,
        size: str | XComArg | None = None,
        response_format: str | XComArg | None = None,
        arguments: Mapping[str, Any] | None = None,
        fal_conn_id: str = DEFAULT_CONN_ID,
        name: str | XComArg | None = None,
        storage_conn_id: str | None = None,
        max_bytes: int = MAX_BYTES,
        timeout: timedelta | float = TIMEOUT,
        check_limits: bool = True,
        **kwargs: Any,
    ) -> None:
        fields = given(arguments, prompt=prompt, n=n, size=size, response_format=response_format)
        super().__init__(model=model, arguments=fields, fal_conn_id=fal_conn_id, **kwargs)
        if isinstance(max_bytes, bool) or not isinstance(max_bytes, int) or max_bytes <= 0:
            raise ValueError(f"max_bytes must be a whole number of bytes, more than 0, not {max_bytes!r}")
        # Templates and XComs are values by the time that execute() looks.
        self.destination: Any = destination
        self.name: Any = name
        self.storage_conn_id = storage_conn_id
        self.max_bytes = max_bytes
        self.timeout = seconds("timeout", timeout)
        self.check_limits = check_limits
        self._moved = lineage.Moved()

    def options(self) -> dict[str, Any]:
        """Return the dialect's options."""
        return {"timeout": self.timeout, "check_limits": self.check_limits}

    def execute(self, context: Context) -> Any:
        """Ask for the pictures and land them, or go on where a previous try was; return where they are."""
        with failure_in_xcom(context):
            hook = FalHook(self.fal_conn_id)
            ledger = TaskLedger(context["task_state_store"])
            self.check(hook)
            base_url = hook.account.base_url
            self.log.info("Model %s at %s, connection %s.", self.model, base_url, self.fal_conn_id)
            record = self.decided(hook, ledger, self._recovered(ledger), context["ti"])
            handle = handle_in(record)
            context["ti"].xcom_push(key=REQUEST_ID_KEY, value=handle.request_id)
            push_links(self, context["ti"], request_id=handle.request_id)
            result, files = self._kept(record)
            context["ti"].xcom_push(key="result", value=result.to_json())
            if files is None:
                files = self._landed(_for_landing(hook, handle), result)
                self._keep(record, {"result": result.to_json(), "files": files})
                metrics.delivered(result)
            self.delivered(context, ledger, record)
        self._moved = lineage.Moved(
            job=handle,
            destination=self._destination,
            files=len(files),
            bytes=sum(file["bytes"] for file in files),
        )
        return files

    def get_openlineage_facets_on_complete(self, task_instance: Any) -> Any:
        """Tell OpenLineage which job was read and which folder was written, if it is installed."""
        return lineage.facets(self._moved)

    def check(self, hook: FalHook) -> None:
        """Check all that can be checked before anything is paid."""
        check_destination(self.destination)
        if self.name is not None:
            check_name(self.name)
        super().check(hook)

    def before_paying(self, intent: JobRecord) -> None:
        """Make sure that the answer can be kept."""
        self._keep(intent, {})

    def take(self, accepted: Submitted | Finished, ledger: TaskLedger, intent: JobRecord) -> JobRecord:
        """Keep the answer, and write down that it is there."""
        if not isinstance(accepted, Finished):
            raise TypeError(f"{self.dialect} answers with the result itself, never with a handle")
        result = accepted.result
        # The moment of the intent leads to the answer, from whichever of the two a later try finds.
        handle = replace(result.handle, submitted_at=intent.written_at)
        metrics.submitted(handle)
        record = JobRecord(Phase.SUBMITTED, intent.fingerprint, intent.max_tries, time.time(), handle)
        try:
            self._keep(record, {"result": replace(result, handle=handle).to_json(whole=True)})
        except Exception as error:
            lost = _not_kept(handle.request_id, error)
            ledger.write(in_phase(record, Phase.ENDED, intent.max_tries, lost))
            raise error_of(lost) from error
        ledger.write(record)
        self.log.info("Request %s has been answered: %s media files.", handle.request_id, len(result.media))
        return record

    @property
    def hands_its_job_on(self) -> bool:
        """Whether the task succeeds while its job still runs: there is no job after the answer."""
        return False

    def state_of(self, hook: FalHook, record: JobRecord | None) -> Seen:
        """Return that a job that was answered has succeeded, unless its answer was not kept: there is nobody to ask."""
        if record is None or record.handle is None:
            return None
        return GONE if found_gone(record) else JobState.SUCCEEDED

    def _recovered(self, ledger: TaskLedger) -> JobRecord | None:
        """Return the ledger's record; one of an intent whose answer was kept, as that of the answered job."""
        record = ledger.read()
        if record is None or record.phase is not Phase.INTENT:
            return record
        kept = self._read(record)
        if not kept.get("result"):
            return record
        handle = JobResult.from_json(kept["result"]).handle
        answered = replace(record, phase=Phase.SUBMITTED, handle=handle)
        ledger.write(answered)
        return answered

    def _kept(self, record: JobRecord) -> tuple[JobResult, list[dict[str, Any]] | None]:
        """Return the answer of a job, and the files if they are landed."""
        request_id = handle_in(record).request_id
        try:
            kept = self._read(record)
            files = kept.get("files")
            landed = None if files is None else [LandedFile.from_json(file).to_json() for file in files]
            return JobResult.from_json(kept["result"]), landed
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise error_of(
                Failure(
                    FailureKind.PROTOCOL,
                    what=f"The answer that was kept in {self._place(record)} cannot be read: {type(error).__name__}.",
                    retry_does="looks for it again; nothing is submitted.",
                    advice="Give the destination that the first try had.",
                    billed="maybe",
                    request_id=request_id,
                )
            ) from error

    def _landed(self, hook: FalHook, result: JobResult) -> list[dict[str, Any]]:
        request_id = result.handle.request_id
        names = Names(
            key=request_id if self.name is None else self.name,
            model=result.handle.model,
            seed=result.seed,
            request_id=request_id,
        )
        limits = Limits(max_bytes=self.max_bytes)
        landed = land(result, self._destination, names, account=hook.account, limits=limits)
        for file in landed:
            self.log.info(
                "%s: %s bytes, %s, sha256 %s", file.path, file.bytes, file.content_type, file.sha256
            )
        return [file.to_json() for file in landed]

    @property
    def _destination(self) -> ObjectStoragePath:
        return ObjectStoragePath(self.destination, conn_id=self.storage_conn_id)

    def _place(self, record: JobRecord) -> ObjectStoragePath:
        """Return where the answer of a job is kept: by what was asked for, and when."""
        asked_at = record.written_at if record.handle is None else record.handle.submitted_at
        return self._destination / FOLDER / f"{record.fingerprint[:16]}-{asked_at * 1000:.0f}.json"

    def _keep(self, record: JobRecord, value: dict[str, Any]) -> None:
        try:
            put_bytes(json.dumps(value).encode(), self._place(record))
        except FalError:
            raise
        except Exception as error:
            if value:
                raise
            raise self._not_writable(error) from error

    def _not_writable(self, error: Exception) -> FalError:
        """Return the error for a destination that takes nothing: a wrong one, or a fault that may pass."""
        found = unread(
            "destination:", f"{self.destination} cannot be written to ({type(error).__name__})", error
        )
        if found.failure.kind is FailureKind.INPUT:
            return error_of(
                replace(
                    found.failure, advice="Nothing was submitted. Correct destination or storage_conn_id."
                )
            )
        return error_of(
            replace(
                found.failure,
                retry_does="submits, if it can be written to then.",
                advice="Nothing was submitted. Look at the storage and its connection.",
            )
        )

    def _read(self, record: JobRecord) -> dict[str, Any]:
        """Return what is kept of a job; empty if the answer never came."""
        place = self._place(record)
        if record.handle is None and not place.exists():
            return {}
        loaded = json.loads(place.read_text("utf-8"))
        if not isinstance(loaded, dict):
            raise ValueError("it is no mapping")
        return loaded


def _for_landing(hook: FalHook, handle: JobHandle) -> FalHook:
    """Return the hook whose proxy and certificates fetch the pictures: the answer is kept, and no gateway is asked."""
    own = hook.of(handle)
    try:
        _ = own.account
    except AirflowNotFoundException:
        return hook
    return own


def _not_kept(request_id: str, error: Exception) -> Failure:
    return Failure(
        FailureKind.RESULT_EXPIRED,
        what=f"The pictures were made, but the answer could not be kept: {type(error).__name__}.",
        retry_does="fails at once, with this error; a clear submits again.",
        advice="See to the storage at destination.",
        billed="yes",
        request_id=request_id,
    )
