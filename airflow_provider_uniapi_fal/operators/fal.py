"""The operator that submits a job to the fal queue."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator

from airflow_provider_uniapi_fal.exceptions import FalError, FalSubmitOutcomeUnknown, error_of
from airflow_provider_uniapi_fal.hooks.fal import DEFAULT_CONN_ID, FalHook
from airflow_provider_uniapi_fal.landing.inputs import with_data_uris
from airflow_provider_uniapi_fal.ledger.record import (
    ON_CHANGED_ARGUMENTS,
    ON_CLEAR,
    ON_UNKNOWN_SUBMIT,
    Do,
    JobRecord,
    Phase,
    decide,
    fingerprint,
    was_cleared,
)
from airflow_provider_uniapi_fal.ledger.task_state import TaskLedger
from airflow_provider_uniapi_fal.protocol.dialects.base import Finished
from airflow_provider_uniapi_fal.protocol.dialects.fal import bare_model
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, bad_input, unknown_outcome
from airflow_provider_uniapi_fal.reporting import failure_in_xcom

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

    from airflow_provider_uniapi_fal.protocol.dialects.fal import SubmitOptions
    from airflow_provider_uniapi_fal.protocol.job import JobState


class FalSubmitOperator(BaseOperator):
    """
    Submit one job to the fal queue, and hand its handle on.

    Returns the handle as JSON values, for ``FalQueueSensor(handle=submit.output)``, and pushes
    ``request_id``, ``status_url`` and ``response_url`` to XCom. On failure it pushes ``failure``, too.

    **The money.** A submit has no idempotency key: every accepted post is a paid job. The task writes down in
    Airflow's task state store that it is going to submit, and then what it submitted. A retry of a task that
    had submitted returns the same handle and posts nothing; one of a task that may have submitted fails. A
    clear of a task whose job has ended submits a new one.

    :param model: model id, with or without the leading ``fal-ai/`` (templated)
    :param arguments: the model's input (templated). Below keys that end in ``_url`` or ``_urls``, addresses of
        files in storage (``file:///…``, ``s3://…``) become data URIs of at most 10 MiB each
    :param fal_conn_id: Airflow connection of type ``uniapi_fal`` (templated; default ``fal_default``)
    :param start_timeout: seconds in which the job must have started, else fal fails it; default: no limit
    :param priority: ``normal`` or ``low`` (templated; default: fal's, which is normal)
    :param runner_hint: text by which fal sends jobs to the same runner (templated; default: none)
    :param no_retry: True turns fal's own retries off; default: fal's
    :param store_io: False keeps fal from storing input and output, and the result then lasts for an hour or
        less; default: fal's
    :param object_lifetime: seconds that fal keeps the media; default: fal's
    :param max_queue_length: refuse the job if the queue is longer; default: no limit. Whether the gateway passes
        any of these seven on to fal is not documented
    :param on_unknown_submit: what the next try does when this one may have submitted: ``fail`` (default) or
        ``resubmit``, which may pay twice
    :param on_changed_arguments: what a try does when a previous one submitted other arguments: ``reattach``
        (default, with a warning), ``fail`` or ``resubmit``, which pays for both
    :param on_clear: what a clear does when the job was delivered and has succeeded: ``regenerate`` (default) or
        ``reuse``
    :raises FalInputError: wrong model, arguments or options; nothing was accepted, a retry is not made
    :raises FalAuthError: no key or a wrong one; nothing was accepted, a retry is not made
    :raises FalBalanceError: no balance; nothing was accepted, a retry is not made
    :raises FalRateLimited: no job is taken at the moment; nothing was accepted, a retry submits
    :raises FalProtocolError: the gateway cannot be reached; nothing was sent, a retry submits
    :raises FalSubmitOutcomeUnknown: a job may be running and be billed; a retry is not made
    """

    template_fields: Sequence[str] = ("model", "arguments", "fal_conn_id", "priority", "runner_hint")
    template_fields_renderers = {"arguments": "json"}  # noqa: RUF012 - Airflow's own form
    ui_color = "#ece5ff"

    def __init__(
        self,
        *,
        model: str | XComArg,
        arguments: Mapping[str, Any] | XComArg,
        fal_conn_id: str = DEFAULT_CONN_ID,
        start_timeout: float | None = None,
        priority: str | None = None,
        runner_hint: str | None = None,
        no_retry: bool | None = None,
        store_io: bool | None = None,
        object_lifetime: int | None = None,
        max_queue_length: int | None = None,
        on_unknown_submit: str = "fail",
        on_changed_arguments: str = "reattach",
        on_clear: str = "regenerate",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        for name, value, words in (
            ("on_unknown_submit", on_unknown_submit, ON_UNKNOWN_SUBMIT),
            ("on_changed_arguments", on_changed_arguments, ON_CHANGED_ARGUMENTS),
            ("on_clear", on_clear, ON_CLEAR),
        ):
            if value not in words:
                raise ValueError(f"{name} must be one of {', '.join(words)}, not {value!r}")
        # Templates and XComs are values by the time that execute() looks.
        self.model: Any = model
        self.arguments: Any = arguments
        self.fal_conn_id = fal_conn_id
        self.start_timeout = start_timeout
        self.priority = priority
        self.runner_hint = runner_hint
        self.no_retry = no_retry
        self.store_io = store_io
        self.object_lifetime = object_lifetime
        self.max_queue_length = max_queue_length
        self.on_unknown_submit = on_unknown_submit
        self.on_changed_arguments = on_changed_arguments
        self.on_clear = on_clear

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Submit the job, or re-attach to the one that a previous try submitted.

        :return: the handle, see :class:`~airflow_provider_uniapi_fal.protocol.job.JobHandle`
        """
        with failure_in_xcom(context):
            hook = FalHook(self.fal_conn_id)
            hook.prepare(self.model, self.arguments, **self._options())
            account = hook.account
            self.log.info("Model %s at %s, connection %s.", self.model, account.base_url, self.fal_conn_id)
            ledger = TaskLedger(context["task_state_store"])
            record = self._submitted(hook, ledger, ledger.read(), context["ti"].max_tries)
            handle = record.handle
            assert handle is not None  # noqa: S101 - a submitted record has one
            ti = context["ti"]
            ti.xcom_push(key="request_id", value=handle.request_id)
            for key, url in hook.urls(handle).items():
                ti.xcom_push(key=key, value=url)
            ledger.write(_in_phase(record, Phase.DELIVERED, ti.max_tries))
            return handle.to_json()

    def _options(self) -> SubmitOptions:
        return {
            "start_timeout": self.start_timeout,
            "priority": self.priority,
            "runner_hint": self.runner_hint,
            "no_retry": self.no_retry,
            "store_io": self.store_io,
            "object_lifetime": self.object_lifetime,
            "max_queue_length": self.max_queue_length,
        }

    def _submitted(
        self, hook: FalHook, ledger: TaskLedger, record: JobRecord | None, max_tries: int
    ) -> JobRecord:
        """Return the record of the job, submitting it if that is what the ledger says."""
        asked = fingerprint(bare_model(self.model), self.arguments, self.fal_conn_id)
        cleared = record is not None and was_cleared(record, max_tries)
        decision = decide(
            record,
            asked=asked,
            cleared=cleared,
            state=self._state_of(hook, record) if cleared else None,
            on_unknown_submit=self.on_unknown_submit,
            on_changed_arguments=self.on_changed_arguments,
            on_clear=self.on_clear,
        )
        if decision.do is Do.SUBMIT:
            self.log.info("%s Submitting.", decision.why)
            return self._submit(hook, ledger, asked, max_tries)
        if record is not None and decision.do is Do.REATTACH:
            level = self.log.info if record.fingerprint == asked else self.log.warning
            level("%s", decision.why)
            return record
        if record is not None and record.failure is not None:
            raise error_of(record.failure)
        if decision.do is Do.FAIL_CHANGED:
            raise error_of(_changed(decision.why))
        raise error_of(unknown_outcome(decision.why))

    def _state_of(self, hook: FalHook, record: JobRecord | None) -> JobState | None:
        """Ask the gateway how the recorded job stands; no answer counts as live, which pays nothing."""
        if record is None or record.handle is None:
            return None
        try:
            return hook.status(record.handle).state
        except FalError as error:
            self.log.warning("Where request %s stands is not known: %s", record.handle.request_id, error)
            return None

    def _submit(self, hook: FalHook, ledger: TaskLedger, asked: str, max_tries: int) -> JobRecord:
        arguments = with_data_uris(self.arguments)
        request = hook.prepare(self.model, arguments, **self._options())
        intent = JobRecord(Phase.INTENT, asked, max_tries, time.time())
        ledger.write(intent)
        try:
            submitted = hook.post(self.model, request)
        except FalSubmitOutcomeUnknown as error:
            if self.on_unknown_submit == "resubmit":
                raise error_of(_to_be_resubmitted(error.failure)) from error
            raise
        except FalError as error:
            if error.failure.kind is FailureKind.JOB_FAILED:
                refused = JobRecord(Phase.REFUSED, asked, max_tries, time.time(), failure=error.failure)
                ledger.write(refused)
            else:
                ledger.forget()
            raise
        if isinstance(submitted, Finished):
            raise TypeError("the fal queue answers a submit with a handle, never with the result")
        handle = submitted.handle
        record = JobRecord(Phase.SUBMITTED, asked, max_tries, time.time(), handle)
        try:
            ledger.write(record)
        except Exception:
            self.log.error("Request %s was submitted, but the ledger did not take it.", handle.request_id)
            raise
        position = submitted.status.queue_position
        where = "" if position is None else f" at position {position}"
        self.log.info(
            "Submitted request %s; it is %s%s.", handle.request_id, submitted.status.state.value, where
        )
        return record


def _in_phase(record: JobRecord, phase: Phase, max_tries: int) -> JobRecord:
    return JobRecord(phase, record.fingerprint, max_tries, time.time(), record.handle)


def _changed(why: str) -> Failure:
    return bad_input(
        f"This try would submit something else: {why}.",
        "Nothing was submitted now; the earlier job is not affected. on_changed_arguments decides this.",
    )


def _to_be_resubmitted(failure: Failure) -> Failure:
    return Failure(
        FailureKind.PROTOCOL,
        what=failure.what,
        retry_does="submits again, as on_unknown_submit='resubmit' says; both may be billed.",
        billed="maybe",
        may_run=True,
        http_status=failure.http_status,
    )
