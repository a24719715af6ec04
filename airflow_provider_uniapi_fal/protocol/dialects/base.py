"""What one wire protocol of the gateway has to tell: requests to send, and replies to read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.errors import Failure
    from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobResult, JobStatus
    from airflow_provider_uniapi_fal.protocol.messages import HttpReply, HttpRequest
    from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount


@dataclass(frozen=True)
class Submitted:
    """The gateway accepted a job that can be watched by its handle."""

    handle: JobHandle
    status: JobStatus


@dataclass(frozen=True)
class Finished:
    """The gateway answered the submit itself with the result: a dialect without ids to come back to."""

    result: JobResult


@dataclass(frozen=True)
class LookAgain:
    """
    A read that said nothing definite about the job: it is taken for "still running".

    :param reason: what was seen, for the log
    :param retry_after: seconds that the server asked to wait
    :param bounded: seen too often, it is an error; a passing fault such as a 502 is not bounded
    :param not_found: the path may be the wrong one of those known
    :param oversized: the body is longer than this reader may read
    """

    reason: str
    retry_after: float | None = None
    bounded: bool = False
    not_found: bool = False
    oversized: bool = False


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


class Dialect(Protocol):
    """
    One wire protocol. Stateless; knows no clock, no socket and no Airflow.

    :cvar name: the word in a handle
    :cvar family: the family of paths and the credential
    """

    @property
    def name(self) -> str:
        """The word for this dialect in a handle."""
        ...

    @property
    def family(self) -> str:
        """The family of paths it lives in, which also decides the authorization scheme."""
        ...

    def submit_request(
        self, model: object, arguments: object, options: Mapping[str, Any]
    ) -> HttpRequest | Failure:
        """Return the post that submits a job, or the failure that names each wrong field."""
        ...

    def read_submit(
        self, reply: HttpReply, *, model: str, fal_conn_id: str, account: GatewayAccount, now: float
    ) -> SubmitReading:
        """Read the reply to a submit."""
        ...

    def handle_of(
        self, request_id: object, model: object, *, fal_conn_id: str, now: float
    ) -> JobHandle | Failure:
        """Return a handle built from an id and a model alone."""
        ...

    def handle_of_url(
        self, status_url: object, *, account: GatewayAccount, fal_conn_id: str, now: float
    ) -> JobHandle | Failure:
        """Return a handle built from the address of a status."""
        ...

    def alternatives(self, handle: JobHandle) -> tuple[JobHandle, ...]:
        """Return the handle and after it those with other paths where the same job may be found."""
        ...

    def status_request(self, handle: JobHandle, *, logs: bool) -> HttpRequest:
        """Return the request that asks how the job is going."""
        ...

    def stream_request(self, handle: JobHandle, *, logs: bool) -> HttpRequest | None:
        """Return the request for the job's status stream, or None where the dialect has none."""
        ...

    def read_status(self, handle: JobHandle, reply: HttpReply, now: float) -> StatusReading:
        """Read the reply to it."""
        ...

    def result_request(self, handle: JobHandle) -> HttpRequest:
        """Return the request that fetches the result."""
        ...

    def read_result(self, handle: JobHandle, reply: HttpReply, now: float) -> ResultReading:
        """Read the reply to it. Success is proven here and nowhere else."""
        ...

    def failure_of(self, handle: JobHandle, status: JobStatus) -> Failure:
        """Return the failure that a failed or cancelled status tells of."""
        ...

    def cancel_request(self, handle: JobHandle) -> HttpRequest | None:
        """Return the request that cancels the job, or None where the dialect has none."""
        ...

    def read_cancel(self, handle: JobHandle, reply: HttpReply) -> CancelOutcome:
        """Read the reply to it."""
        ...
