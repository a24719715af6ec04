"""What one wire protocol of the gateway has to tell: requests to send, and replies to read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.errors import Failure
    from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult, JobStatus
    from airflow_provider_uniapi_fal.protocol.messages import HttpReply, HttpRequest
    from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount


@dataclass(frozen=True)
class Submitted:
    """
    The gateway accepted a job that can be watched by its handle.

    :param handle: the job
    :param status: how it stood when it was accepted
    """

    handle: JobHandle
    status: JobStatus


@dataclass(frozen=True)
class Finished:
    """
    The gateway answered the submit itself with the result: a dialect without ids to come back to.

    :param result: the result
    """

    result: JobResult


@dataclass(frozen=True)
class LookAgain:
    """
    A read that said nothing definite about the job: it is taken for "still running".

    :param reason: what was seen, for the log
    :param retry_after: seconds that the server asked to wait
    :param bounded: seen too often, it is an error; a passing fault such as a 502 is not bounded
    :param not_found: the path may be the wrong one of those known; if it is bounded, too, the gateway itself says that
        it does not know the job
    :param oversized: the body is longer than this reader may read
    :param key_refused: it may be that the key was refused
    :param unfinished: the answer itself says that the job has not ended
    """

    reason: str
    retry_after: float | None = None
    bounded: bool = False
    not_found: bool = False
    oversized: bool = False
    key_refused: bool = False
    unfinished: bool = False


#: A result that was asked for too early, by the gateway's own word.
NOT_READY = LookAgain("the result is not ready yet", bounded=True, unfinished=True)


class CancelOutcome(str, Enum):
    """
    What the gateway said to a cancellation.

    ``REMOVED``: taken from the queue, never run. ``REQUESTED``: the runner was told; it may still finish
    and be billed. ``ALREADY_COMPLETED``: finished first, so the result is paid for. ``NOT_FOUND``: unknown
    id. ``UNSUPPORTED``: the gateway passes no cancellations on. ``UNCLEAR``: no telling.
    """

    REMOVED = "removed"
    REQUESTED = "requested"
    ALREADY_COMPLETED = "already_completed"
    NOT_FOUND = "not_found"
    UNSUPPORTED = "unsupported"
    UNCLEAR = "unclear"


SubmitReading: TypeAlias = "Submitted | Finished | Failure"
StatusReading: TypeAlias = "JobStatus | LookAgain | Failure"
ResultReading: TypeAlias = "JobResult | LookAgain | Failure"


@dataclass(frozen=True)
class MediaInputs:
    """
    Where a dialect takes media files as inputs, and in which form they travel inside the arguments.

    :param keys: names of arguments, at any depth; besides them those that end in one of ``endings``
    :param endings: ends of such names
    :param bare: base64 alone; else a data URI
    :param max_bytes: a longer file is refused
    :param kinds: beginnings of the media types that are taken
    """

    keys: tuple[str, ...] = ()
    endings: tuple[str, ...] = ("_url", "_urls")
    bare: bool = False
    max_bytes: int = 10 * 1024 * 1024
    kinds: tuple[str, ...] = ("image/", "video/", "audio/")

    def taken_by(self, key: str) -> bool:
        """Whether the argument of this name takes a file."""
        return key in self.keys or key.endswith(self.endings)


class Dialect(ABC):
    """
    One wire protocol. Stateless; knows no clock, no socket and no Airflow.

    :cvar name: the word in a handle
    :cvar family: the family of paths it lives in, which also decides the authorization scheme
    :cvar answers_at_once: a submit is answered with the result itself; there is nothing to wait for, and nothing
        to come back to if the answer is lost
    :cvar keeps: how long results are kept, one sentence for the error that one is not there any more
    :cvar media_inputs: which arguments take files, and in which form
    """

    name: ClassVar[str]
    family: ClassVar[str]
    answers_at_once: ClassVar[bool] = False
    keeps: ClassVar[str]
    media_inputs: ClassVar[MediaInputs] = MediaInputs()

    def model_id(self, model: str) -> str:
        """Return a model id as handles and ledgers write it: one form for each model."""
        return model

    def remarks(self, model: str, arguments: Mapping[str, Any]) -> list[str]:
        """Return what a user should know of valid arguments before they cost money, one sentence each."""
        return []

    @abstractmethod
    def submit_request(
        self, model: object, arguments: object, options: Mapping[str, Any]
    ) -> HttpRequest | Failure:
        """Return the post that submits a job, or the failure that names each wrong field."""

    @abstractmethod
    def read_submit(
        self, reply: HttpReply, *, model: str, fal_conn_id: str, account: GatewayAccount, now: float
    ) -> SubmitReading:
        """Read the reply to a submit."""

    @abstractmethod
    def handle_of(
        self, request_id: object, model: object, *, fal_conn_id: str, now: float
    ) -> JobHandle | Failure:
        """Return a handle built from an id and a model alone."""

    @abstractmethod
    def handle_of_url(
        self, status_url: object, *, account: GatewayAccount, fal_conn_id: str, now: float
    ) -> JobHandle | Failure:
        """Return a handle built from the address of a status."""

    def alternatives(self, handle: JobHandle) -> tuple[JobHandle, ...]:
        """Return the handle and after it those with other paths where the same job may be found."""
        return (handle,)

    @abstractmethod
    def status_request(self, handle: JobHandle, *, logs: bool) -> HttpRequest | Failure:
        """Return the request that asks how the job is going, or the failure that there is no asking."""

    def stream_request(self, handle: JobHandle, *, logs: bool) -> HttpRequest | None:
        """Return the request for the job's status stream, or None where the dialect has none."""
        return None

    @abstractmethod
    def read_status(self, handle: JobHandle, reply: HttpReply, now: float) -> StatusReading:
        """Read the reply to it."""

    @abstractmethod
    def result_request(self, handle: JobHandle) -> HttpRequest | Failure:
        """Return the request that fetches the result, or the failure that there is no fetching."""

    @abstractmethod
    def read_result(self, handle: JobHandle, reply: HttpReply, now: float) -> ResultReading:
        """Read the reply to it. Success is proven here and nowhere else."""

    @abstractmethod
    def failure_of(self, handle: JobHandle, status: JobStatus) -> Failure:
        """Return the failure that a failed or cancelled status tells of."""

    def cancel_request(self, handle: JobHandle) -> HttpRequest | None:
        """Return the request that cancels the job, or None where the dialect has none."""
        return None

    def read_cancel(self, handle: JobHandle, reply: HttpReply) -> CancelOutcome:
        """Read the reply to it."""
        return CancelOutcome.UNCLEAR

    def landing_request(self, result: JobResult) -> HttpRequest | None:
        """Return the request for better addresses of the media, to be sent just before they are fetched, or None."""
        return None

    def read_landing(self, result: JobResult, reply: HttpReply, now: float) -> ResultReading:
        """Read the reply to it: the result with the addresses to fetch, or why it has to do as it is."""
        return result
