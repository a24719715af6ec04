"""The addresses from which media are best fetched, asked for just before that."""

from __future__ import annotations

import logging
import random
import time
from typing import TYPE_CHECKING

from airflow_provider_uniapi_fal.protocol import verbs
from airflow_provider_uniapi_fal.protocol.dialects import dialect_named
from airflow_provider_uniapi_fal.protocol.job import JobResult
from airflow_provider_uniapi_fal.transport.nonblocking import pooled

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.origin import GatewayAccount

log = logging.getLogger(__name__)


async def with_best_addresses(result: JobResult, account: GatewayAccount) -> JobResult:
    """
    Return the result with the addresses that its dialect offers for landing; most offer none and it stays as it is.

    Costs nothing. If they cannot be had, the addresses in the result have to do, which a line in the log says: they
    may lead to a file with a watermark, or be too old.
    """
    dialect = dialect_named(result.handle.dialect)
    if dialect.landing_request(result) is None:
        return result
    async with pooled(account) as transport:
        found = await transport.run(verbs.landable(dialect, result, clock=time.time, jitter=random.random))
    if isinstance(found, JobResult):
        return found
    why = getattr(found, "reason", None) or str(found)
    log.warning(
        "Request %s: the download address could not be had (%s). The address in its result is used, which may have "
        "a watermark.",
        result.handle.request_id,
        why,
    )
    return result
