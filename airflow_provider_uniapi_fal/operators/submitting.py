"""What the operators that submit a job have in common: its arguments, and the ledger around the post."""

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
from airflow_provider_uniapi_fal.links.fal import JOB_LINKS, push_links
from airflow_provider_uniapi_fal.protocol.dialects.base import Finished
from airflow_provider_uniapi_fal.protocol.dialects.fal import bare_model
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, bad_input, unknown_outcome

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

    from airflow_provider_uniapi_fal.ledger.task_state import TaskLedger
    from airflow_provider_uniapi_fal.protocol.dialects.fal import SubmitOptions
    from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobState


class SubmittingOperator(BaseOperator):
    """
    Base of the operators that submit one job.

    The parameters are described at :class:`~airflow_provider_uniapi_fal.operators.fal.FalSubmitOperator`.
    """

    template_fields: Sequence[str] = ("model", "arguments", "fal_conn_id", "priority", "runner_hint")
    template_fields_renderers = {"arguments": "json"}  # noqa: RUF012 - Airflow's own form
    operator_extra_links = JOB_LINKS

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

    def submitted(self, context: Context, hook: FalHook, ledger: TaskLedger) -> JobRecord:
        """
        Return the record of the task's job, submitting it if that is what the ledger says.

        Pushes ``request_id``, ``status_url``, ``response_url`` and the links to XCom.
        """
        hook.prepare(self.model, self.arguments, **self._options())
        base_url = hook.account.base_url
        self.log.info("Model %s at %s, connection %s.", self.model, base_url, self.fal_conn_id)
        ti = context["ti"]
        record = self._decided(hook, ledger, ledger.read(), ti.max_tries)
        handle = handle_in(record)
        ti.xcom_push(key="request_id", value=handle.request_id)
        for key, url in hook.urls(handle).items():
            ti.xcom_push(key=key, value=url)
        push_links(self, ti, request_id=handle.request_id)
        return record

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

    def _decided(
        self, hook: FalHook, ledger: TaskLedger, record: JobRecord | None, max_tries: int
    ) -> JobRecord:
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
            if cleared:
                # A clear counts once: a retry that follows it is a retry.
                record = in_phase(record, record.phase, max_tries, record.failure)
                ledger.write(record)
            return record
        if record is not None and record.failure is not None and decision.do is Do.FAIL_AGAIN:
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
                refused = JobRecord(Phase.ENDED, asked, max_tries, time.time(), failure=error.failure)
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


def handle_in(record: JobRecord) -> JobHandle:
    """Return the handle of a record that must have one."""
    if record.handle is None:
        raise ValueError(f"a record in phase {record.phase.value!r} has no handle")
    return record.handle


def in_phase(record: JobRecord, phase: Phase, max_tries: int, failure: Failure | None = None) -> JobRecord:
    """Return the record of the same job in another phase."""
    return JobRecord(phase, record.fingerprint, max_tries, time.time(), record.handle, failure)


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
