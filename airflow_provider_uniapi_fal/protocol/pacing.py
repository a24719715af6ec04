"""Pure decision: how closely the requests to one account may follow each other."""

from __future__ import annotations

import math

from airflow_provider_uniapi_fal.protocol import retrying

#: Seconds between two requests after a first refusal, and at most.
FIRST_GAP = 0.1
LONGEST_GAP = 2.0

#: Each answer shortens the gap to this share of it; below the last one there is none.
RECOVERY = 0.8
NO_GAP = 0.01


class Pace:
    """
    What all who ask one account have to keep after a 429: a pause first, then a gap between requests.

    The gap doubles with each refusal and shrinks with each answer, so that those who were held up together do
    not all ask together when the pause is over. Times are seconds on any one clock.
    """

    def __init__(self) -> None:
        self._not_before = -math.inf
        self._last_start = -math.inf
        self._refused_at = -math.inf
        self._gap = 0.0
        self._in_a_row = 0

    def may_start_at(self, now: float, *, urgent: bool = False) -> float:
        """
        Return when the next request may start: now, or later.

        :param urgent: it is the last one that may be made, and waits for no pause
        """
        start = max(now, self._last_start + self._gap)
        return start if urgent else max(start, self._not_before)

    def started(self, now: float) -> None:
        """Take note that a request has started."""
        self._last_start = now

    def answered(self) -> None:
        """Take note of a request that was not refused."""
        self._in_a_row = 0
        self._gap = self._gap * RECOVERY if self._gap > NO_GAP else 0.0

    def refused(self, now: float, *, started_at: float, retry_after: float | None, jitter: float) -> None:
        """
        Take note of a 429.

        :param now: when it came
        :param started_at: when its request had started
        :param retry_after: seconds that the server asked to wait, or None
        :param jitter: a random number from 0 to 1
        """
        # Requests that were under way together are refused together: that is one refusal.
        if started_at >= self._refused_at:
            self._refused_at = now
            self._in_a_row += 1
            self._gap = min(max(2 * self._gap, FIRST_GAP), LONGEST_GAP)
        pause = retrying.backoff(self._in_a_row, jitter) if retry_after is None else retry_after
        self._not_before = max(self._not_before, now + pause)
