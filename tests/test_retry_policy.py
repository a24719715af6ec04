"""The delay before a retry."""

from __future__ import annotations

from datetime import timedelta

import pytest
from airflow.sdk import RetryAction

from airflow_provider_uniapi_fal.exceptions import error_of
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind
from airflow_provider_uniapi_fal.retry_policy import FalRetryPolicy


def limited(retry_after: float | None) -> Exception:
    return error_of(
        Failure(FailureKind.RATE_LIMITED, what="Busy.", retry_does="submits.", retry_after=retry_after)
    )


@pytest.mark.parametrize(("asked", "waited"), [(0.0, 0), (17.0, 17), (3600.0, 600)])
def test_a_retry_comes_when_the_gateway_asked_for_it_but_not_later_than_allowed(
    asked: float, waited: float
) -> None:
    decision = FalRetryPolicy(longest=timedelta(minutes=10)).evaluate(limited(asked), 1, 3)
    assert (decision.action, decision.retry_delay) == (RetryAction.RETRY, timedelta(seconds=waited))


@pytest.mark.parametrize("error", [limited(None), ValueError("another"), TimeoutError()])
def test_without_a_retry_after_the_tasks_own_settings_decide(error: Exception) -> None:
    decision = FalRetryPolicy().evaluate(error, 1, 3)
    assert (decision.action, decision.retry_delay) == (RetryAction.DEFAULT, None)


def test_it_survives_serialization() -> None:
    policy = FalRetryPolicy(longest=timedelta(seconds=90))
    assert FalRetryPolicy.deserialize(policy.serialize()).longest == policy.longest


def test_a_delay_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="longest"):
        FalRetryPolicy(longest=timedelta(0))
