"""Landing as an account: a result, or a whole manifest, to storage, one row for each request."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from typing import TYPE_CHECKING

from airflow_provider_uniapi_fal.exceptions import FalError
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.landing.manifest import ManifestRow, RowError
from airflow_provider_uniapi_fal.landing.names import DEFAULT_TEMPLATE, Names
from airflow_provider_uniapi_fal.protocol.dialects import dialect_named
from airflow_provider_uniapi_fal.protocol.errors import Failure

if TYPE_CHECKING:
    from airflow.sdk import ObjectStoragePath

    from airflow_provider_uniapi_fal.landing.files import LandedFile
    from airflow_provider_uniapi_fal.landing.media import Lander, Landing
    from airflow_provider_uniapi_fal.protocol.job import JobResult

#: What a job may have become after all, although the manifest does not know it: its result is asked for again.
_MAY_HAVE_ENDED_WELL = ("failed", "timed_out", "succeeded", "flagged")


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


async def land_rows(
    lander: Lander, rows: Sequence[ManifestRow], results: Mapping[str, JobResult], place: Place
) -> list[LandedRow]:
    """
    Land the rows of a manifest elsewhere, as many at once as the lander lets.

    Files that lie in storage are copied, and proven by their checksums. A row without them is landed from its
    result, if there is one. All other rows stay what they are.

    :param results: by key, what :func:`results_again` found
    """
    # In the folder that rows come from, none may take the place of what is still to be copied.
    lander.remember(file for row in rows for file in row.files)

    async def one(row: ManifestRow) -> LandedRow:
        names = place.names(row.key, model=row.model, seed=row.seed, request_id=row.request_id)
        if row.key in results:
            result = results[row.key]
            found = replace(
                row,
                outcome="flagged" if result.flagged else "succeeded",
                error=None,
                flagged=result.flagged,
                seed=result.seed,
                billable_units=result.billable_units or row.billable_units,
                seconds_running=result.seconds_running or row.seconds_running,
            )
            return _ended(found, await lander.attempt(result, place.destination, names))
        if row.files:
            return _ended(row, await lander.copy(row.files, place.destination, names))
        return LandedRow(row)

    return list(await asyncio.gather(*(one(row) for row in rows)))


def results_again(rows: Sequence[ManifestRow], fal_conn_id: str | None = None) -> dict[str, JobResult]:
    """
    Ask the gateway for the results of rows that have an error or no files, which costs nothing.

    A wait may have given up on a job that ended well later, and a landing may have failed.

    :param fal_conn_id: connection to ask through; None for the one of each row
    :return: by key, those that are to be had
    :raises FalAuthError: the key is refused
    """
    found = {}
    for row in rows:
        wanted = row.error is not None or not row.files
        if not wanted or row.request_id is None or row.outcome not in _MAY_HAVE_ENDED_WELL:
            continue
        conn_id = fal_conn_id or row.fal_conn_id
        handle = dialect_named(row.dialect).handle_of(
            row.request_id, row.model, fal_conn_id=conn_id, now=row.submitted_at or time.time()
        )
        if isinstance(handle, Failure):
            continue
        try:
            found[row.key] = FalHook(conn_id).result(handle)
        except FalError as error:
            if error.kind.value in ("auth", "input"):
                raise
    return found


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
