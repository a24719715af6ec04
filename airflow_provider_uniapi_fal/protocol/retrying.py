"""Pure decisions: whether a request may be sent again, and after how long."""

from __future__ import annotations

import math
from datetime import timezone
from email.utils import parsedate_to_datetime

from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.protocol.messages import HttpReply, NotSent

#: Posts of one submit that provably were not accepted, and seconds waited for them, before giving up.
MAX_SUBMIT_ATTEMPTS = 5
MAX_SUBMIT_WAIT = 120.0

#: Reads of one status or result before a verb that was called once gives up. A wait has its own patience.
MAX_READ_ATTEMPTS = 4
LONGEST_READ_PAUSE = 30.0

#: What a submit is waited with at most, and a read: a finished job's result may be kept for six minutes only.
LONGEST_RETRY_AFTER = 3600.0
LONGEST_REST = 60.0


def retry_after(reply: HttpReply, now: float) -> float | None:
    """
    Return the seconds that a reply asks to wait, from either form of Retry-After; None if it asks nothing.

    :param now: seconds since the epoch, for the form that is a date
    """
    value = reply.headers.get("retry-after", "").strip()
    if not value:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            seconds = (date if date.tzinfo else date.replace(tzinfo=timezone.utc)).timestamp() - now
        except (ValueError, OverflowError):
            return None
    if not math.isfinite(seconds):
        return None
    return min(max(seconds, 0.0), LONGEST_RETRY_AFTER)


def look_again_after(reply: HttpReply, now: float) -> float | None:
    """
    Return the seconds for which a reply to a read asks, within reason; None if it asks nothing.

    A look costs the gateway little, and what is waited for is paid and may be gone in minutes: after a rest one is
    made, whatever was asked for, and if it is refused there is another rest.

    :param now: seconds since the epoch
    """
    asked = retry_after(reply, now)
    return None if asked is None else min(asked, LONGEST_REST)


def backoff(attempt: int, jitter: float) -> float:
    """
    Return the seconds before the next attempt: 1, 2, 4, 8 … at most 30, spread by up to a half.

    :param attempt: attempts made so far, from 1
    :param jitter: a random number from 0 to 1
    """
    return float(min(2 ** min(attempt - 1, 10), 30)) * (1 + jitter / 2)


def submit_again_after(
    outcome: NotSent | Failure, *, attempt: int, waited: float, jitter: float
) -> float | None:
    """
    Decide whether a submit may be sent again at once, and after how many seconds; None means no.

    A submit has no idempotency key: every accepted post is a paid job. It is sent again only when it
    provably was not accepted, because no byte of it was sent or because the gateway asked for patience.

    :param outcome: what came of the last post, if it did not lead to a job
    :param attempt: posts made so far, from 1
    :param waited: seconds waited between them so far
    :param jitter: a random number from 0 to 1
    """
    asked = None
    if isinstance(outcome, NotSent):
        not_accepted = not outcome.permanent
    else:
        not_accepted = outcome.kind is FailureKind.RATE_LIMITED
        asked = outcome.retry_after
    if not not_accepted or attempt >= MAX_SUBMIT_ATTEMPTS:
        return None
    delay = backoff(attempt, jitter) if asked is None else asked
    return delay if waited + delay <= MAX_SUBMIT_WAIT else None
