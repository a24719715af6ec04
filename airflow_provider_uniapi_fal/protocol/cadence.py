"""Pure decision: when to look at a job next."""

from __future__ import annotations

SHORTEST = 1.0
LONGEST = 15.0
SHARE_OF_AGE = 0.1


def next_look(age: float, *, poke_interval: float | None, retry_after: float | None, jitter: float) -> float:
    """
    Return the seconds until the next look.

    A fixed ``poke_interval`` is kept. Without one, a job is looked at after a tenth of its age, between one
    and fifteen seconds: short jobs are known soon, long ones cost few looks, and the result of a job, which
    the queue may keep for six minutes only, is still fetched in time. A server that asks for patience by
    Retry-After always gets it.

    :param age: seconds since the submit
    :param poke_interval: seconds between looks, or None for adaptive
    :param retry_after: seconds that the server asked to wait
    :param jitter: a random number from 0 to 1; spreads adaptive looks so that jobs submitted together do
        not ask together
    """
    wait = poke_interval
    if wait is None:
        wait = min(max(age * SHARE_OF_AGE, SHORTEST), LONGEST) * (0.9 + 0.2 * jitter)
    return max(wait, retry_after or 0.0)
