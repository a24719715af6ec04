"""The hook: one reading of a connection, and the gateway's verbs for workers and for event loops."""

from __future__ import annotations

import asyncio
import json
import math
import random
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, TypeVar

from airflow.sdk import BaseHook
from airflow.sdk.log import amask_secret, mask_secret

from airflow_provider_uniapi_fal.exceptions import FalError, error_of
from airflow_provider_uniapi_fal.protocol import verbs, watching
from airflow_provider_uniapi_fal.protocol.cadence import Experience
from airflow_provider_uniapi_fal.protocol.dialects import dialect_named
from airflow_provider_uniapi_fal.protocol.dialects.base import (
    CancelOutcome,
    Finished,
    LookAgain,
    ResultReading,
    StatusReading,
    SubmitReading,
    Submitted,
)
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, bad_input
from airflow_provider_uniapi_fal.protocol.job import JobResult
from airflow_provider_uniapi_fal.protocol.messages import HttpReply
from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount, read_account
from airflow_provider_uniapi_fal.transport.blocking import BlockingTransport

if TYPE_CHECKING:
    from airflow.sdk import Connection

    from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobStatus
    from airflow_provider_uniapi_fal.protocol.messages import Flow, HttpRequest
    from airflow_provider_uniapi_fal.transport.nonblocking import NonblockingTransport

DEFAULT_CONN_ID = "fal_default"

#: The transport for event loops.
NONBLOCKING = "airflow_provider_uniapi_fal.transport.nonblocking"

#: How long the jobs of each model take, as far as this process has seen them end.
EXPERIENCE = Experience()

#: Seconds before the end of a watch in which looks are at least this close: handing a job on costs more time.
CLOSING_SECONDS = 1.5
CLOSING_INTERVAL = 0.6

T = TypeVar("T")


class FalHook(BaseHook):
    """
    Talk to the UniAPI gateway with the account of one Airflow connection.

    The connection (type ``uniapi_fal``): *password* is the API key, *host* the gateway (default
    ``https://api.uniapi.io``; a path such as ``/fal-ai`` at its end is accepted), *extra* takes
    ``auth_scheme`` (default ``Key`` for fal), ``family_paths``, ``connect_timeout`` (seconds, 10),
    ``read_timeout`` (seconds, 60), ``headers``, ``ca_bundle``, ``proxy`` and ``media_hosts``.

    Each verb has an async twin (``asubmit`` …) that runs the same conversation on the event loop.

    :param fal_conn_id: id of the connection
    """

    conn_name_attr = "fal_conn_id"
    default_conn_name = DEFAULT_CONN_ID
    conn_type = "uniapi_fal"
    hook_name = "UniAPI fal"

    def __init__(self, fal_conn_id: str = DEFAULT_CONN_ID) -> None:
        super().__init__()
        self.fal_conn_id = fal_conn_id
        self._account: GatewayAccount | None = None
        self._others: dict[str, FalHook] = {}

    @property
    def account(self) -> GatewayAccount:
        """
        The account that the connection describes, read once.

        :raises FalAuthError: if the connection is of another type, or its key is missing or malformed
        :raises FalInputError: if another field is wrong
        """
        if self._account is None:
            account = _account_of(self.get_connection(self.fal_conn_id))
            for secret in _secrets(account):
                mask_secret(secret)
            self._account = account
        return self._account

    async def aaccount(self, *, again: bool = False) -> GatewayAccount:
        """
        Return the account, reading the connection without blocking the event loop.

        :param again: read the connection again, because its key may have been changed
        """
        if self._account is None or again:
            account = _account_of(await self.aget_connection(self.fal_conn_id))
            for secret in _secrets(account):
                await amask_secret(secret)
            self._account = account
        return self._account

    @asynccontextmanager
    async def pool(self, max_body: int | None = None) -> AsyncIterator[NonblockingTransport]:
        """
        Lend the transport that all waits of this account share on the running event loop.

        :param max_body: bytes of a reply that are read at most; None for the usual bound
        """
        if NONBLOCKING not in sys.modules:
            # Importing aiohttp takes longer than most else that a task does: only who needs it does that, and not on
            # an event loop.
            await asyncio.to_thread(import_module, NONBLOCKING)
        from airflow_provider_uniapi_fal.transport.nonblocking import pooled

        lent = pooled(self.account) if max_body is None else pooled(self.account, max_body)
        async with lent as transport:
            yield transport

    def of(self, handle: JobHandle) -> FalHook:
        """Return the hook for a job's own connection: no other gateway, and no other account, knows of it."""
        conn_id = handle.fal_conn_id
        return self if conn_id == self.fal_conn_id else self._others.setdefault(conn_id, FalHook(conn_id))

    def prepare(
        self, model: object, arguments: object, *, dialect: str = "fal", **options: Any
    ) -> HttpRequest:
        """
        Check a submit without sending anything.

        :return: the request that :meth:`submit` would post
        :raises FalInputError: naming every wrong field; nothing was sent, nothing is billed
        """
        return _returned(dialect_named(dialect).submit_request(model, arguments, options))

    def submit(
        self,
        model: str,
        arguments: Mapping[str, Any],
        *,
        dialect: str = "fal",
        **options: Any,
    ) -> Submitted | Finished:
        """
        Submit one job. This costs money, and it is never done twice.

        The post is repeated at once only if it provably was not accepted: no byte of it was sent, or the
        gateway asked for patience. Whether the gateway passes fal's options on is not documented.

        :param model: fal's model id, with or without the leading ``fal-ai/``; of another dialect, what it submits
            to: see ``docs/dialects.md``
        :param arguments: the model's input
        :param dialect: wire protocol: ``fal``, ``kling``, ``luma`` or ``openai_images``
        :param options: the dialect's request options; fal's are at
            :class:`~airflow_provider_uniapi_fal.protocol.dialects.fal.SubmitOptions`
        :return: the handle, or the result if the dialect answers with it at once
        :raises FalInputError: wrong input; nothing was accepted
        :raises FalAuthError: no or a wrong key; nothing was accepted
        :raises FalBalanceError: no balance; nothing was accepted
        :raises FalRateLimited: no job is taken at the moment; nothing was accepted
        :raises FalProtocolError: the gateway cannot be reached; nothing was sent
        :raises FalSubmitOutcomeUnknown: the reply was lost: a job may run and be billed; do not submit again
        """
        request = self.prepare(model, arguments, dialect=dialect, **options)
        return self.post(model, request, dialect=dialect)

    async def asubmit(
        self,
        model: str,
        arguments: Mapping[str, Any],
        *,
        dialect: str = "fal",
        **options: Any,
    ) -> Submitted | Finished:
        """Submit one job from an event loop; see :meth:`submit`."""
        request = self.prepare(model, arguments, dialect=dialect, **options)
        await self.aaccount()
        async with self.pool() as transport:
            reading = await transport.run(self._submitting(model, request, dialect))
        return _accepted(reading)

    def post(
        self,
        model: str,
        request: HttpRequest,
        *,
        dialect: str = "fal",
        resting: verbs.Resting | None = None,
    ) -> Submitted | Finished:
        """
        Post what :meth:`prepare` returned; raises as :meth:`submit` does.

        Apart from :meth:`prepare` so that a ledger can be written between the two.

        :param resting: is kept up to date, for who breaks it off
        """
        flow = self._submitting(model, request, dialect)
        return _accepted(BlockingTransport(self.account).run(flow if resting is None else resting.of(flow)))

    async def apost(
        self,
        model: str,
        request: HttpRequest,
        *,
        dialect: str = "fal",
        paced: Callable[[Flow[SubmitReading]], Flow[SubmitReading]] | None = None,
    ) -> Submitted | Finished:
        """
        Post what :meth:`prepare` returned from an event loop; raises as :meth:`submit` does.

        :param paced: wraps the conversation, so that many submits keep one pace
        """
        await self.aaccount()
        flow = self._submitting(model, request, dialect)
        async with self.pool() as transport:
            return _accepted(await transport.run(flow if paced is None else paced(flow)))

    def status(self, handle: JobHandle, *, logs: bool = False) -> JobStatus:
        """
        Ask how a job is going; costs nothing.

        :param handle: the job
        :param logs: ask for the model's log lines, too
        :raises FalAuthError: the key is refused; the job is not affected
        :raises FalBalanceError: the account is refused; the job is not affected
        :raises FalResultExpired: the gateway does not know the job
        :raises FalProtocolError: no definite answer was to be had; the job may be running
        """
        return _read(handle, BlockingTransport(self.account).run(self._asking(handle, logs)))

    async def astatus(self, handle: JobHandle, *, logs: bool = False) -> JobStatus:
        """Ask how a job is going from an event loop; see :meth:`status`."""
        await self.aaccount()
        async with self.pool() as transport:
            return _read(handle, await transport.run(self._asking(handle, logs)))

    def result(self, handle: JobHandle) -> JobResult:
        """
        Fetch the result of a finished job; costs nothing.

        :param handle: the job
        :return: the result, proven a success
        :raises FalError: the class says how the job ended; ``FalProtocolError`` if it has not ended yet,
            ``FalResultExpired`` if it was kept no longer
        """
        return _read(handle, BlockingTransport(self.account).run(self._fetching(handle)))

    async def aresult(self, handle: JobHandle) -> JobResult:
        """Fetch the result of a finished job from an event loop; see :meth:`result`."""
        await self.aaccount()
        async with self.pool() as transport:
            return _read(handle, await transport.run(self._fetching(handle)))

    def cancel(self, handle: JobHandle) -> CancelOutcome:
        """
        Ask the gateway to cancel a job.

        Only ``REMOVED`` means that it will not run. After ``REQUESTED`` it may still finish and be billed;
        after ``ALREADY_COMPLETED`` its result is paid for: fetch it.

        :param handle: the job
        """
        return BlockingTransport(self.account).run(verbs.cancel(dialect_named(handle.dialect), handle))

    async def acancel(self, handle: JobHandle) -> CancelOutcome:
        """Ask the gateway to cancel a job from an event loop; see :meth:`cancel`."""
        await self.aaccount()
        async with self.pool() as transport:
            return await transport.run(verbs.cancel(dialect_named(handle.dialect), handle))

    def handle_of(
        self,
        *,
        status_url: str | None = None,
        request_id: str | None = None,
        model: str | None = None,
        dialect: str = "fal",
    ) -> JobHandle:
        """
        Build a handle from a status address, or from an id and a model.

        :param dialect: wire protocol that the job was submitted by
        :raises FalInputError: if neither leads to a job
        """
        spoken = dialect_named(dialect)
        if status_url:
            return _returned(
                spoken.handle_of_url(
                    status_url, account=self.account, fal_conn_id=self.fal_conn_id, now=time.time()
                )
            )
        return _returned(spoken.handle_of(request_id, model, fal_conn_id=self.fal_conn_id, now=time.time()))

    def urls(self, handle: JobHandle) -> dict[str, str]:
        """Return the absolute addresses of a job's status and result at the gateway of this connection."""
        family = dialect_named(handle.dialect).family
        return {
            "status_url": self.account.url(family, handle.status_path),
            "response_url": self.account.url(family, handle.response_path),
        }

    def one_round(self, watch: watching.Watch) -> watching.RoundEnd:
        """
        Make one round of a wait from a worker: look, and fetch the result if it is there.

        If the key is refused, the connection is read again once, because its key may have been changed.
        """
        end = BlockingTransport(self.account).run(watching_round(watch))
        if not watching.key_was_refused(end):
            return end
        refused, self._account = self.account, None
        try:
            changed = self.account != refused
        except FalError as error:
            return error.failure.while_waiting(watch.handle.request_id)
        return BlockingTransport(self.account).run(watching_round(watch)) if changed else end

    def watch_for(
        self, watch: watching.Watch, seconds: float | None, say: Callable[[str], None]
    ) -> watching.RoundEnd:
        """
        Watch a job from a worker.

        :param watch: the wait
        :param seconds: stop watching after so many; None for as long as it takes
        :param say: takes each line of news
        :return: the result or the failure, or how long to wait before the next look
        """
        until = math.inf if seconds is None else time.monotonic() + seconds
        end: watching.RoundEnd = watching.WaitMore(seconds_to_first_look(watch))
        while isinstance(end, watching.WaitMore):
            left = until - time.monotonic()
            least = end.least if watch.state else end.seconds
            # A job that was looked at just before the end of the watch is not looked at once more.
            over = left < CLOSING_INTERVAL / 2 if watch.state else left <= 0
            if end.seconds > 0 and (over or least > left):
                break
            # Whoever waits longer does so elsewhere, and the way there costs more than a few close looks do.
            closing = CLOSING_INTERVAL if left <= CLOSING_SECONDS else left - CLOSING_SECONDS
            time.sleep(max(min(end.seconds, max(least, closing), left), 0.0))
            end = self.one_round(watch)
            for line in watch.take_news():
                say(line)
        return end

    def delivered(self, watch: watching.Watch, end: watching.RoundEnd) -> JobResult:
        """
        Return the result that a wait ended in, fetching it if it was too long for who waited.

        :raises FalError: the failure that it ended in
        """
        if isinstance(end, Failure):
            raise error_of(end.about(watch.handle.request_id))
        if isinstance(end, watching.FetchElsewhere):
            return watch.with_times(self.result(end.handle))
        if isinstance(end, JobResult):
            return end
        raise TypeError(f"the wait has not ended: {end}")

    def test_connection(self) -> tuple[bool, str]:
        """Try key and address for the connection form's test button; costs nothing."""
        try:
            return BlockingTransport(self.account).run(verbs.probe())
        except Exception as error:  # noqa: BLE001 - whatever it is, the form shows its text
            return False, str(error)

    def _submitting(self, model: str, request: HttpRequest, dialect: str) -> Flow[SubmitReading]:
        return verbs.submit(
            dialect_named(dialect),
            request,
            model=dialect_named(dialect).model_id(model),
            fal_conn_id=self.fal_conn_id,
            account=self.account,
            clock=time.time,
            jitter=random.random,
        )

    def _asking(self, handle: JobHandle, logs: bool) -> Flow[StatusReading]:
        dialect = dialect_named(handle.dialect)
        return verbs.status(dialect, handle, logs=logs, clock=time.time, jitter=random.random)

    def _fetching(self, handle: JobHandle) -> Flow[ResultReading]:
        return verbs.result(dialect_named(handle.dialect), handle, clock=time.time, jitter=random.random)


def watching_round(watch: watching.Watch, told: bytes | None = None) -> Flow[watching.RoundEnd]:
    """
    Return the conversation for one round of a wait, with this process's clock.

    :param told: a status that came by the stream; None: ask for it
    """
    return watching.one_round(
        watch,
        dialect_named(watch.handle.dialect),
        clock=time.time,
        jitter=random.random,
        experience=EXPERIENCE,
        told=None if told is None else HttpReply(200, {}, told),
    )


def stream_request(watch: watching.Watch) -> HttpRequest | None:
    """Return the request for a job's status stream, or None if it has none or is to be polled."""
    return watching.stream_request(watch, dialect_named(watch.handle.dialect))


def seconds_to_first_look(watch: watching.Watch) -> float:
    """Return how long a wait may rest before its first round, with this process's clock."""
    return watching.seconds_to_first_look(
        watch, now=time.time(), jitter=random.random(), experience=EXPERIENCE
    )


def usual_seconds(model: str) -> float | None:
    """Return the seconds from submit to end within which nearly all jobs of a model end; None: not known here."""
    usual = EXPERIENCE.usual(model, now=time.time())
    return None if usual is None else usual.total.high


def learn(model: str, *, seconds_queued: float | None, seconds_running: float | None) -> None:
    """Let this process know how long a job took of which another one has seen the end."""
    if seconds_queued is not None and seconds_running is not None:
        EXPERIENCE.learn(model, total=seconds_queued + seconds_running, running=seconds_running)


def known_of(models: Iterable[str]) -> dict[str, list[list[float]]]:
    """
    Return what this process knows of some models, to teach another one by :func:`learn`.

    :return: by model, a few jobs: the seconds queued and the seconds running of each. Unknown models are left out
    """
    now = time.time()
    found = {model: EXPERIENCE.gist(model, now=now) for model in models}
    return {
        model: [[round(queued, 2), round(running, 2)] for queued, running in jobs]
        for model, jobs in found.items()
        if jobs
    }


def _account_of(connection: Connection) -> GatewayAccount:
    if connection.conn_type != FalHook.conn_type:
        # Its password is a secret of something else: a slip in an id must not hand it to a gateway.
        given = f"of type {connection.conn_type!r}" if connection.conn_type else "of no type"
        raise error_of(
            Failure(
                FailureKind.AUTH,
                what=f"The connection {connection.conn_id!r} is {given}, not of type {FalHook.conn_type!r}.",
                retry_does="would fail in the same way.",
                advice="Nothing was sent to the gateway. Name a connection of that type, or give this one the type.",
            )
        )
    try:
        extra = json.loads(connection.extra or "{}")
    except ValueError:
        extra = None
    if not isinstance(extra, dict):
        raise error_of(
            bad_input("The connection's extra is no JSON object.", "Correct the connection's extra.")
        )
    return _returned(
        read_account(
            host=connection.host,
            port=connection.port,
            schema=connection.schema,
            key=connection.password,
            extra=extra,
        )
    )


def _secrets(account: GatewayAccount) -> list[str]:
    """Return what Airflow is to mask in logs, besides the password that it masks by itself."""
    return [secret for secret in (account.key, account.proxy, *account.headers.values()) if secret]


def _returned(value: T | Failure) -> T:
    """Return a value, or raise the error of the failure that is in its place."""
    if isinstance(value, Failure):
        raise error_of(value)
    return value


def _accepted(reading: SubmitReading) -> Submitted | Finished:
    if isinstance(reading, Failure):
        raise error_of(reading)
    return reading


def _read(handle: JobHandle, reading: T | LookAgain | Failure) -> T:
    if isinstance(reading, LookAgain):
        raise error_of(verbs.unfinished(handle) if reading.unfinished else verbs.unclear(handle, reading))
    return _returned(reading)
