"""Landing as an account: a result, or a whole manifest, to storage, one row for each request."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import date
from typing import TYPE_CHECKING

from airflow.sdk.exceptions import AirflowFailException

from airflow_provider_uniapi_fal.exceptions import FalError, error_of
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.landing.manifest import ManifestRow, RowError
from airflow_provider_uniapi_fal.landing.media import Landing
from airflow_provider_uniapi_fal.landing.names import DEFAULT_TEMPLATE, Names
from airflow_provider_uniapi_fal.protocol import verbs
from airflow_provider_uniapi_fal.protocol.dialects import dialect_named
from airflow_provider_uniapi_fal.protocol.dialects.base import LookAgain
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.job import JobResult

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_uniapi_fal.landing.files import LandedFile
    from airflow_provider_uniapi_fal.landing.media import Lander
    from airflow_provider_uniapi_fal.protocol.dialects.base import ResultReading
    from airflow_provider_uniapi_fal.protocol.job import JobHandle
    from airflow_provider_uniapi_fal.transport.nonblocking import NonblockingTransport

#: What a job may have become after all, although the manifest does not know it: its result is asked for again.
_MAY_HAVE_ENDED_WELL = ("failed", "timed_out", "succeeded", "flagged")

#: Results that a gateway is asked for at once; when it has left so many in a row unanswered it is asked no more.
ASKED_AT_ONCE = 8


@dataclass(frozen=True)
class LandedRow:
    """
    What became of one request.

    :param row: for the manifest
    :param error: why the landing did not bring all of its files; a job that failed by itself has none here
    """

    row: ManifestRow
    error: FalError | None = None


@dataclass(frozen=True)
class Place:
    """
    Where results are landed, and how their files are called.

    :param destination: folder in storage
    :param template: see :class:`~airflow_provider_uniapi_fal.landing.names.Names`
    :param date: what ``{date}`` in it stands for
    """

    destination: ObjectStoragePath
    template: str = DEFAULT_TEMPLATE
    date: date | None = None

    def names(self, key: str, *, model: str, seed: int | None = None, request_id: str | None = None) -> Names:
        """Return the names of one result's files."""
        return Names(
            key=key,
            template=self.template,
            model=model,
            date=self.date,
            seed=seed,
            request_id=request_id or "",
        )


async def land_result(
    lander: Lander, result: JobResult, place: Place, *, key: str, already: Sequence[LandedFile] = ()
) -> LandedRow:
    """
    Land one result; see :meth:`~airflow_provider_uniapi_fal.landing.media.Lander.attempt`.

    :param key: the user's name for it
    :param already: what an earlier try landed of it
    """
    job = result.handle
    row = ManifestRow(
        key=key,
        index=0,
        model=job.model,
        dialect=job.dialect,
        fal_conn_id=job.fal_conn_id,
        outcome="flagged" if result.flagged else "succeeded",
        arguments_sha256=None,
        request_id=job.request_id,
        seed=result.seed,
        submitted_at=job.submitted_at,
        seconds_queued=result.seconds_queued,
        seconds_running=result.seconds_running,
        billable_units=result.billable_units,
        flagged=result.flagged,
    )
    names = place.names(key, model=job.model, seed=result.seed, request_id=job.request_id)
    return _ended(row, await lander.attempt(result, place.destination, names, already=already))


@dataclass(frozen=True)
class Asked:
    """
    What came of asking the gateway for results again, by the keys of their rows.

    :param results: those that are to be had
    :param errors: why there was no answer about a row, or none was asked for any more
    """

    results: Mapping[str, JobResult] = field(default_factory=dict)
    errors: Mapping[str, FalError] = field(default_factory=dict)


async def land_rows(
    lander: Lander, rows: Sequence[ManifestRow], asked: Asked, place: Place
) -> list[LandedRow]:
    """
    Land the rows of a manifest elsewhere, as many at once as the lander lets.

    Files that lie in storage are copied, and proven by their checksums. What cannot be copied, and what never was
    there, is landed from the row's result, if there is one. All other rows stay what they are, those of which the
    gateway gave no answer with its error.

    :param asked: what :func:`results_again` found
    """
    # In the folder that rows come from, none may take the place of what is still to be copied.
    lander.remember(file for row in rows for file in row.files)

    async def one(row: ManifestRow) -> LandedRow:
        names = place.names(row.key, model=row.model, seed=row.seed, request_id=row.request_id)
        result = asked.results.get(row.key)
        if result is not None:
            found = replace(
                row,
                outcome="flagged" if result.flagged else "succeeded",
                error=None,
                flagged=result.flagged,
                seed=result.seed,
                billable_units=result.billable_units or row.billable_units,
                seconds_running=result.seconds_running or row.seconds_running,
            )
            return _ended(found, await _landing(lander, row, result, place, names))
        landed = LandedRow(row)
        if row.files:
            landed = _ended(row, await lander.copy(row.files, place.destination, names))
        return landed if landed.error is not None else replace(landed, error=asked.errors.get(row.key))

    return list(await asyncio.gather(*(one(row) for row in rows)))


async def _landing(
    lander: Lander, row: ManifestRow, result: JobResult, place: Place, names: Names
) -> Landing:
    """Copy those files of a row that lie in storage, and fetch the others: the gateway's may be gone by now."""
    places = [file.where for file in result.media]
    copied = await lander.copy(row.files, place.destination, names, places=places)
    fetched = await lander.attempt(result, place.destination, names, already=copied.files)
    files = {file.where: file for file in (*fetched.files, *copied.files)}
    errors = [fetched.error]
    if any(file.where not in files for file in row.files):
        # What storage did not give, the gateway did not give, either; the next try may have it from one of the two.
        errors.append(copied.error)
    return Landing(tuple(files.values()), foremost([error for error in errors if error is not None]))


def foremost(errors: Sequence[FalError]) -> FalError | None:
    """Return which of several errors is to be raised: one that Airflow retries goes before those that it does not."""
    return min(errors, key=lambda error: isinstance(error, AirflowFailException), default=None)


async def results_again(rows: Sequence[ManifestRow], fal_conn_id: str | None = None) -> Asked:
    """
    Ask the gateway for the results of rows that have an error or no files, which costs nothing.

    A wait may have given up on a job that ended well later, and a landing may have failed. Several are asked for at
    once, and none any more when the gateway turns out to be away, or to refuse the key or the account.

    :param fal_conn_id: connection to ask through; None for the one of each row
    :raises FalAuthError: a connection has no key, or none that can be sent
    :raises FalInputError: another field of a connection is wrong
    """
    handles = {row.key: handle for row in rows if (handle := _to_ask_for(row, fal_conn_id)) is not None}
    async with AsyncExitStack() as stack:
        gateways: dict[str, _Gateway] = {}
        for conn_id in dict.fromkeys(handle.fal_conn_id for handle in handles.values()):
            hook = FalHook(conn_id)
            await hook.aaccount()
            gateways[conn_id] = _Gateway(await stack.enter_async_context(hook.pool()))
        answers = await asyncio.gather(*(gateways[h.fal_conn_id].ask(h) for h in handles.values()))
    ended = dict(zip(handles, answers, strict=True))
    return Asked(
        {key: answer for key, answer in ended.items() if isinstance(answer, JobResult)},
        {key: answer for key, answer in ended.items() if isinstance(answer, FalError)},
    )


def _to_ask_for(row: ManifestRow, fal_conn_id: str | None) -> JobHandle | None:
    wanted = row.error is not None or not row.files
    if not wanted or row.request_id is None or row.outcome not in _MAY_HAVE_ENDED_WELL:
        return None
    handle = dialect_named(row.dialect).handle_of(
        row.request_id,
        row.model,
        fal_conn_id=fal_conn_id or row.fal_conn_id,
        now=row.submitted_at or time.time(),
    )
    return None if isinstance(handle, Failure) else handle


class _Gateway:
    """A gateway that is asked for results, until it does not answer any more."""

    def __init__(self, transport: NonblockingTransport) -> None:
        self._transport = transport
        self._gate = asyncio.Semaphore(ASKED_AT_ONCE)
        self._unanswered = 0
        self._given_up: Failure | None = None

    async def ask(self, handle: JobHandle) -> JobResult | FalError | None:
        """Return the result; None if the gateway has none (yet), or the error that kept it from saying so."""
        async with self._gate:
            if self._given_up is not None:
                return error_of(replace(self._given_up, request_id=handle.request_id))
            dialect = dialect_named(handle.dialect)
            reading = await self._transport.run(
                verbs.result(dialect, handle, clock=time.time, jitter=random.random)
            )
        failure = _no_answer(handle, reading)
        if failure is None:
            self._unanswered = 0
            return reading if isinstance(reading, JobResult) else None
        self._unanswered += 1
        if failure.kind is not FailureKind.PROTOCOL or self._unanswered >= ASKED_AT_ONCE:
            self._given_up = self._given_up or failure
        return error_of(failure)


def _no_answer(handle: JobHandle, reading: ResultReading) -> Failure | None:
    """Return why a reading says nothing of the job; None if it does."""
    if isinstance(reading, LookAgain):
        if reading.bounded or reading.oversized:
            return None
        return replace(
            verbs.unclear(handle, reading),
            what=f"The gateway does not say whether it has the result: {reading.reason}.",
            retry_does="of the landing asks for it again; nothing is submitted.",
        )
    if isinstance(reading, Failure) and reading.kind in (FailureKind.AUTH, FailureKind.BALANCE):
        return replace(reading, retry_does="is not made; a clear asks for its result again.")
    return None


def _ended(row: ManifestRow, landing: Landing) -> LandedRow:
    if landing.error is None:
        return LandedRow(replace(row, files=landing.files))
    failed = replace(
        row,
        outcome=landing.error.failure.outcome,
        files=landing.files,
        error=RowError.of(landing.error.failure),
    )
    return LandedRow(failed, landing.error)
