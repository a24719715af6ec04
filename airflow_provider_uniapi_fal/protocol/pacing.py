"""Pure decision: how closely the requests to one account may follow each other."""

from __future__ import annotations

import math

from airflow_provider_uniapi_fal.protocol import retrying

#: Requests a second that are taken for too many after a refusal: those that were answered just before, but at least the
#: first of these when no rate is kept, else no less than SHARE of it, and never less than the second.
FIRST_RATE = 10.0
SLOWEST_RATE = 0.5

#: The rate begins with this share of that, is back at it after so many seconds, and has no bound after so many.
SHARE = 0.7
BACK_SECONDS = 10.0
FREE_SECONDS = 180.0

#: How many are answered in a second is told by about so many seconds.
LATELY = 5.0

#: Seconds between requests at least, until the first answer after a refusal.
PROBE_GAP = 0.25

#: … and at most, between those that may not be made later.
URGENT_GAP = 0.1


class Pace:
    """
    What all who ask one account have to keep after a 429: a pause first, then a rate.

    The rate rises with the time since the last refusal: slowly near the rate that was refused, so that a limit which
    lasts is met seldom, and ever faster beyond it, so that one which has passed is soon forgotten. It does not rise
    with each answer: many answers in a second say no more of the limit than a few. Times are seconds on any one clock.
    """

    def __init__(self) -> None:
        self._not_before = -math.inf
        self._last_start = -math.inf
        self._refused_at = -math.inf
        self._in_a_row = 0
        #: The rate that was refused, and when its recovery begins.
        self._rate = math.inf
        self._recovers_from = -math.inf
        #: Answers that count, fading out, with the time of the last one, and since when they are counted.
        self._answers = 0.0
        self._answer_at = -math.inf
        self._counting_since = math.inf

    def may_start_at(self, now: float, *, urgent: bool = False) -> float:
        """
        Return when the next request may start: now, or later.

        :param urgent: it may not be made later: it waits for no pause, and not for long
        """
        if math.isinf(self._rate):
            return now
        gap = self._gap(now)
        if urgent:
            return max(now, self._last_start + min(gap, URGENT_GAP))
        return max(now, self._last_start + gap, self._not_before)

    def started(self, now: float) -> None:
        """Take note that a request has started."""
        self._last_start = now

    def answered(self, now: float, *, started_at: float) -> None:
        """
        Take note of a request that was not refused.

        :param started_at: when it had started
        """
        if started_at < self._refused_at:
            return
        if self._in_a_row:
            self._in_a_row = 0
            # One that waited for no pause has shown that there need be none.
            self._not_before = min(self._not_before, now)
            self._recovers_from = self._counting_since = min(self._recovers_from, now)
        self._answers = self._answers * math.exp(min(self._answer_at - now, 0.0) / LATELY) + 1.0
        self._answer_at = now
        self._counting_since = min(self._counting_since, now)

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
            # Without an answer since the last one there was no rate that could have been too high.
            if not self._in_a_row:
                self._rate = self._refused_rate(now)
                self._answers, self._counting_since = 0.0, math.inf
            self._refused_at = now
            self._in_a_row += 1
        pause = retrying.backoff(self._in_a_row, jitter) if retry_after is None else retry_after
        self._not_before = max(self._not_before, now + pause)
        self._recovers_from = self._not_before

    def _gap(self, now: float) -> float:
        least = PROBE_GAP if self._in_a_row else 0.0
        return max(1.0 / self._allowed(now), least)

    def _allowed(self, now: float) -> float:
        """Return the requests a second that are allowed."""
        since = now - self._recovers_from
        if since >= FREE_SECONDS:
            return math.inf
        way = max(since, 0.0) / BACK_SECONDS - 1.0
        return max(self._rate * (1.0 + (1.0 - SHARE) * way**3), SLOWEST_RATE)

    def _refused_rate(self, now: float) -> float:
        """
        Return the requests a second that were too many: as many were answered, most likely.

        Soon after another refusal few were asked at all, and what is answered then says little: so of a rate that was
        refused before only a share is taken. Of that one, not of what it has risen to, which nobody may have tried.
        """
        allowed = self._allowed(now)
        seconds = max(now - self._counting_since, 1.0)
        left = self._answers * math.exp(min(self._answer_at - now, 0.0) / LATELY)
        answered = left / (LATELY * -math.expm1(-seconds / LATELY))
        least = FIRST_RATE if math.isinf(allowed) else max(SHARE * min(self._rate, allowed), SLOWEST_RATE)
        return min(allowed, max(answered, least))
