"""The operators for the fal queue: submit a job, or submit it and wait for its result."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_uniapi_fal.operators.generating import GeneratingOperator
from airflow_provider_uniapi_fal.operators.submitting import SubmittingOperator
from airflow_provider_uniapi_fal.protocol.dialects import dialect_named
from airflow_provider_uniapi_fal.protocol.errors import Failure

if TYPE_CHECKING:
    from airflow.sdk import XComArg

    from airflow_provider_uniapi_fal.protocol.dialects.fal import SubmitOptions


class _QueueOptions(SubmittingOperator):
    """
    What both operators take.

    :param model: model id, with or without the leading ``fal-ai/`` (templated)
    :param arguments: the model's input (templated). Below keys that end in ``_url`` or ``_urls``, addresses of
        files in storage (``file:///…``, ``s3://…``) become data URIs of at most 10 MiB each
    :param start_timeout: seconds in which the job must have started, else fal fails it; default: no limit
    :param priority: ``normal`` or ``low`` (templated; default: fal's, which is normal)
    :param runner_hint: text by which fal sends jobs to the same runner (templated; default: none)
    :param no_retry: True turns fal's own retries off; default: fal's
    :param store_io: False keeps fal from storing input and output, and the result then lasts for an hour or
        less; default: fal's
    :param object_lifetime: seconds that fal keeps the media; default: fal's
    :param max_queue_length: refuse the job if the queue is longer; default: no limit. Whether the gateway passes
        any of these seven on to fal is not documented
    """

    dialect = "fal"
    template_fields: Sequence[str] = (*SubmittingOperator.template_fields, "priority", "runner_hint")

    def __init__(
        self,
        *,
        model: str | XComArg,
        arguments: Mapping[str, Any] | XComArg,
        start_timeout: float | None = None,
        priority: str | None = None,
        runner_hint: str | None = None,
        no_retry: bool | None = None,
        store_io: bool | None = None,
        object_lifetime: int | None = None,
        max_queue_length: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(model=model, arguments=arguments, **kwargs)
        self.start_timeout = start_timeout
        self.priority = priority
        self.runner_hint = runner_hint
        self.no_retry = no_retry
        self.store_io = store_io
        self.object_lifetime = object_lifetime
        self.max_queue_length = max_queue_length
        _check_when_parsed(self.options(), templated=self.template_fields)

    def options(self) -> dict[str, Any]:
        """Return fal's request options."""
        options: SubmitOptions = {
            "start_timeout": self.start_timeout,
            "priority": self.priority,
            "runner_hint": self.runner_hint,
            "no_retry": self.no_retry,
            "store_io": self.store_io,
            "object_lifetime": self.object_lifetime,
            "max_queue_length": self.max_queue_length,
        }
        return {**options}


class FalSubmitOperator(_QueueOptions):
    """
    Submit one job to the fal queue, and hand its handle on.

    Returns the handle as JSON values, for ``FalQueueSensor(handle=submit.output)``, and pushes
    ``request_id``, ``status_url`` and ``response_url`` to XCom. On failure it pushes ``failure``, too.

    The money is explained at :class:`~airflow_provider_uniapi_fal.operators.submitting.SubmittingOperator`.
    """

    ui_color = "#ece5ff"


class FalGenerateOperator(_QueueOptions, GeneratingOperator):
    """
    Submit one job to the fal queue, wait for it and return its result: one task, one paid job.

    It does what ``FalSubmitOperator`` and ``FalQueueSensor`` do together, with one ledger over both. It takes the
    parameters of :class:`FalSubmitOperator` and those of
    :class:`~airflow_provider_uniapi_fal.operators.generating.GeneratingOperator`, where the waiting is explained.

    :return: the result as JSON values, see :class:`~airflow_provider_uniapi_fal.protocol.job.JobResult`; data
        URIs are left out of it
    """

    ui_color = "#ffe9d6"


def _check_when_parsed(options: Mapping[str, Any], *, templated: Sequence[str]) -> None:
    """
    Refuse options that make no sense; those that are templated are checked when the task runs.

    :raises ValueError: naming each wrong one
    """
    fixed = {name: value for name, value in options.items() if name not in templated}
    # Any model and any arguments do: these may be templates still.
    refused = dialect_named("fal").submit_request("model", {}, fixed)
    if isinstance(refused, Failure):
        raise ValueError(refused.what)
