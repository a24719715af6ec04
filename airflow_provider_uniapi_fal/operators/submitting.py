"""What the operators that submit a job have in common: its arguments, and the ledger around the post."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from airflow.sdk import conf
from airflow.sdk.exceptions import AirflowNotFoundException, AirflowSkipException

from airflow_provider_uniapi_fal import metrics
from airflow_provider_uniapi_fal.exceptions import (
    FalError,
    FalResultExpired,
    FalSubmitOutcomeUnknown,
    error_of,
)
from airflow_provider_uniapi_fal.hooks.fal import DEFAULT_CONN_ID, FalHook
from airflow_provider_uniapi_fal.landing.inputs import check_schema, with_files
from airflow_provider_uniapi_fal.ledger.record import (
    GONE,
    ON_CHANGED_ARGUMENTS,
    ON_CLEAR,
    ON_UNKNOWN_SUBMIT,
    Clear,
    Do,
    JobRecord,
    Phase,
    cancelled_by_a_clear,
    decide,
    fingerprint,
    found_gone,
    was_cleared,
)
from airflow_provider_uniapi_fal.ledger.task_state import TaskLedger
from airflow_provider_uniapi_fal.links.fal import JOB_LINKS, push_links
from airflow_provider_uniapi_fal.mapping import CheckedWhenMapped
from airflow_provider_uniapi_fal.protocol.arguments import one_of
from airflow_provider_uniapi_fal.protocol.dialects import dialect_named
from airflow_provider_uniapi_fal.protocol.dialects.base import Finished
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, bad_input, unknown_outcome
from airflow_provider_uniapi_fal.protocol.job import JobState
from airflow_provider_uniapi_fal.protocol.verbs import Resting
from airflow_provider_uniapi_fal.reporting import REQUEST_ID_KEY, failure_in_xcom

if TYPE_CHECKING:
    from airflow.sdk import Context, XComArg

    from airflow_provider_uniapi_fal.ledger.record import Seen
    from airflow_provider_uniapi_fal.protocol.dialects.base import Submitted
    from airflow_provider_uniapi_fal.protocol.job import JobHandle
    from airflow_provider_uniapi_fal.protocol.messages import HttpRequest


#: Not refused: a retry is as safe as ever, and only who clears such a task while its job runs pays for two.
FORGETS_ON_SUCCESS = (
    "[state_store] clear_on_success is on: Airflow forgets what this task has submitted as soon as the task has "
    "succeeded, while the job still runs. A CLEAR OF THIS TASK WILL THEN SUBMIT AND PAY FOR ANOTHER JOB. Turn the setting "
    "off, or submit and wait in one task, such as FalGenerateOperator."
)

#: Seconds for which a gateway knows a job in any case: fal keeps even a long result for six minutes. Of a younger job
#: "not found" says nothing: a submit may not have reached every part of the gateway yet.
KEPT_SECONDS = 360.0


class SubmittingOperator(CheckedWhenMapped):
    """
    Base of the operators that submit one job: it submits, and hands the handle on.

    **The money.** A submit has no idempotency key: every accepted post is a paid job. The task writes down in
    Airflow's task state store that it is going to submit, and then what it submitted. A retry of a task that
    had submitted returns the same handle and posts nothing; one of a task that may have submitted fails. A
    clear of a task whose job has ended submits a new one.

    :cvar dialect: wire protocol that the job is submitted by
    :param model: what is submitted to, in the dialect's words (templated)
    :param arguments: the model's input (templated). Where the dialect takes a media file, addresses in storage
        (``file:///…``, ``s3://…``) are replaced by the file itself
    :param fal_conn_id: Airflow connection of type ``uniapi_fal`` (templated; default ``fal_default``)
    :param arguments_schema: JSON Schema (draft 2020-12) that the arguments must fit before anything is paid: a
        mapping, the address of a JSON file with a schema or with the OpenAPI description that fal publishes of a
        model, or the name of a shipped one, such as ``fal/flux-pro/kontext/text-to-image`` (templated; default:
        none)
    :param dry_run: check everything, say in the log what would be submitted, and skip the task; default False
    :param on_unknown_submit: what the next try does when this one may have submitted: ``fail`` (default) or
        ``resubmit``, which may pay twice
    :param on_changed_arguments: what a try does when a previous one submitted other arguments: ``reattach``
        (default, with a warning), ``fail`` or ``resubmit``, which pays for both
    :param on_clear: what a clear does when the job was delivered and has succeeded: ``regenerate`` (default) or
        ``reuse``
    :raises FalInputError: wrong model, arguments or options; nothing was accepted, a retry is not made
    :raises FalContentRefused: the vendor refused the content at once; nothing was accepted, a retry is not made
    :raises FalAuthError: no key or a wrong one; nothing was accepted, a retry is not made
    :raises FalBalanceError: no balance; nothing was accepted, a retry is not made
    :raises FalRateLimited: no job is taken at the moment; nothing was accepted, a retry submits
    :raises FalProtocolError: the gateway cannot be reached; nothing was sent, a retry submits
    :raises FalSubmitOutcomeUnknown: a job may be running and be billed; a retry is not made
    """

    dialect: ClassVar[str]
    template_fields: Sequence[str] = ("model", "arguments", "fal_conn_id", "arguments_schema")
    template_fields_renderers = {"arguments": "json"}  # noqa: RUF012 - Airflow's own form
    operator_extra_links = JOB_LINKS

    def __init__(
        self,
        *,
        model: str | XComArg,
        arguments: Mapping[str, Any] | XComArg,
        fal_conn_id: str = DEFAULT_CONN_ID,
        arguments_schema: Mapping[str, Any] | str | None = None,
        dry_run: bool = False,
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
            one_of(name, value, words)
        # Templates and XComs are values by the time that execute() looks.
        self.model: Any = model
        self.arguments: Any = arguments
        self.fal_conn_id = fal_conn_id
        self.arguments_schema: Any = arguments_schema
        # BaseOperator has a method of the name without the underscore.
        self._dry_run = dry_run
        self.on_unknown_submit = on_unknown_submit
        self.on_changed_arguments = on_changed_arguments
        self.on_clear = on_clear
        self._resting = Resting()

    def execute(self, context: Context) -> dict[str, Any]:
        """
        Submit the job, or re-attach to the one that a previous try submitted.

        :return: the handle, see :class:`~airflow_provider_uniapi_fal.protocol.job.JobHandle`
        """
        with failure_in_xcom(context):
            ledger = TaskLedger(context["task_state_store"])
            record = self.submitted(context, FalHook(self.fal_conn_id), ledger)
            self.delivered(context, ledger, record)
            return handle_in(record).to_json()

    def submitted(self, context: Context, hook: FalHook, ledger: TaskLedger) -> JobRecord:
        """
        Return the record of the task's job, submitting it if that is what the ledger says.

        Pushes ``request_id``, ``status_url``, ``response_url`` and the links to XCom.
        """
        self.check(hook)
        base_url = hook.account.base_url
        self.log.info("Model %s at %s, connection %s.", self.model, base_url, self.fal_conn_id)
        ti = context["ti"]
        record = self.decided(hook, ledger, ledger.read(), ti)
        handle = handle_in(record)
        ti.xcom_push(key=REQUEST_ID_KEY, value=handle.request_id)
        for key, url in hook.of(handle).urls(handle).items():
            ti.xcom_push(key=key, value=url)
        push_links(self, ti, request_id=handle.request_id)
        return record

    def delivered(self, context: Context, ledger: TaskLedger, record: JobRecord) -> None:
        """
        Write down that the job has reached whoever asked for it.

        What is paid for is not kept back if the ledger does not take that: a clear then delivers the same once more.
        """
        try:
            ledger.write(in_phase(record, Phase.DELIVERED, context["ti"].max_tries))
        except Exception as error:  # noqa: BLE001 - whatever the store raises, the job is paid for and there
            request_id = handle_in(record).request_id
            self.log.warning("The ledger did not take it that request %s is delivered: %s", request_id, error)

    def check(self, hook: FalHook) -> None:
        """
        Check all that can be checked before anything is paid; on a dry run, end here.

        :raises FalInputError: naming every wrong field
        :raises AirflowSkipException: on a dry run
        """
        hook.prepare(self.model, self.arguments, dialect=self.dialect, **self.options())
        if self.arguments_schema is not None:
            check_schema(self.arguments_schema, self.arguments)
        dialect = dialect_named(self.dialect)
        for remark in dialect.remarks(self.model, self.arguments):
            self.log.warning("%s", remark)
        if self._dry_run:
            request = self._request(hook)
            told = ", ".join(f"{name} ({_kind(value)})" for name, value in (request.json or {}).items())
            url = hook.account.url(request.family, request.path)
            raise AirflowSkipException(
                f"Dry run: would post to {url}, connection {self.fal_conn_id}: {told}."
            )

    def options(self) -> dict[str, Any]:
        """Return the dialect's request options."""
        return {}

    @property
    def hands_its_job_on(self) -> bool:
        """Whether the task succeeds while its job still runs."""
        return True

    @property
    def cancels_what_is_cleared(self) -> bool:
        """Whether the task cancels its job when it is cleared; a task that hands its job on does not."""
        return False

    def on_kill(self) -> None:
        """
        End a submit that rests, and nothing else, while its intent can still be taken back.

        Airflow calls this in the thread that rests, and kills the task some seconds later if it is still there.

        :raises FalProtocolError: in the place where it rests
        """
        if self._resting.now:
            self._resting.now = False
            raise error_of(_KILLED)

    def _request(self, hook: FalHook) -> HttpRequest:
        """Return the post, with the files that the arguments name inside."""
        arguments = with_files(self.arguments, dialect_named(self.dialect).media_inputs)
        return hook.prepare(self.model, arguments, dialect=self.dialect, **self.options())

    def decided(self, hook: FalHook, ledger: TaskLedger, record: JobRecord | None, ti: Any) -> JobRecord:
        """Return the record of the job that this try has, submitting it if that is what the ledger says."""
        max_tries: int = ti.max_tries
        model = dialect_named(self.dialect).model_id(self.model)
        asked = fingerprint(model, self.arguments, self.fal_conn_id, dialect=self.dialect)
        cleared = record is not None and was_cleared(record, max_tries)
        state = self.state_of(hook, record) if cleared else None
        decision = decide(
            record,
            asked=asked,
            cleared=cleared,
            state=state,
            try_number=ti.try_number,
            on_unknown_submit=self.on_unknown_submit,
            on_changed_arguments=self.on_changed_arguments,
            on_clear=self.on_clear,
        )
        if decision.do is Do.SUBMIT:
            self.log.info("%s Submitting.", decision.why)
            # A cancellation by the user's own clear is told by the number of the try, which the next one has no more.
            spent = record is not None and cancelled_by_a_clear(record, ti.try_number)
            return self._submit(hook, ledger, asked, max_tries, before=None if spent else record)
        if record is not None and decision.do is Do.REATTACH:
            level = self.log.info if record.fingerprint == asked else self.log.warning
            level("%s", decision.why)
            if cleared:
                # A clear counts once: a retry that follows it is a retry. What ended a wait before it is forgotten, for
                # the job is waited for again.
                phase = Phase.SUBMITTED if record.phase is Phase.ENDED else record.phase
                record = in_phase(record, phase, max_tries)
                met = Clear(ti.try_number, time.time()) if self.cancels_what_is_cleared else None
                record = replace(record, clear=met)
                ledger.write(record)
            return record
        if record is not None and record.failure is not None and decision.do is Do.FAIL_AGAIN:
            raise error_of(record.failure)
        if record is not None and decision.do is Do.FAIL_CHANGED:
            raise error_of(_changed(decision.why, handle_in(record), ended=state is JobState.SUCCEEDED))
        raise error_of(unknown_outcome(decision.why))

    def state_of(self, hook: FalHook, record: JobRecord | None) -> Seen:
        """
        Ask the gateway how the recorded job stands: the gateway that it was submitted to.

        No answer counts as live, which pays nothing. That a job is not known is believed of one that a wait has not
        found either, or that is old enough to have been forgotten. Of a job whose result was not found the result is
        asked for as well, because its state alone would lead to the same wait for ever.
        """
        if record is None or record.handle is None:
            return None
        request_id = record.handle.request_id
        gone_before = found_gone(record)
        asked = hook.of(record.handle)
        try:
            state = asked.status(record.handle).state
            if gone_before and state is JobState.SUCCEEDED:
                asked.result(record.handle)
        except FalResultExpired as error:
            if gone_before or time.time() - record.handle.submitted_at >= KEPT_SECONDS:
                return GONE
            self.log.warning("Request %s is too young to be forgotten: %s", request_id, error)
            return None
        except (FalError, AirflowNotFoundException) as error:
            self.log.warning("Where request %s stands is not known: %s", request_id, error)
            return None
        return state

    def _submit(
        self, hook: FalHook, ledger: TaskLedger, asked: str, max_tries: int, *, before: JobRecord | None
    ) -> JobRecord:
        request = self._request(hook)
        intent = JobRecord(Phase.INTENT, asked, max_tries, time.time())
        if self.hands_its_job_on and conf.getboolean("state_store", "clear_on_success", fallback=False):
            self.log.warning("%s", FORGETS_ON_SUCCESS)
        self.before_paying(intent)
        ledger.intend(intent, before)
        try:
            accepted = hook.post(self.model, request, dialect=self.dialect, resting=self._resting)
        except FalSubmitOutcomeUnknown as error:
            if self.on_unknown_submit == "resubmit":
                raise error_of(_to_be_resubmitted(error.failure)) from error
            raise
        except FalError as error:
            if error.failure.kind is FailureKind.JOB_FAILED:
                refused = JobRecord(Phase.ENDED, asked, max_tries, time.time(), failure=error.failure)
                ledger.write(refused)
            else:
                ledger.put_back(before)
            raise
        except BaseException:
            if self._resting.now:
                self._resting.now = False
                ledger.put_back(before)
            raise
        return self.take(accepted, ledger, intent)

    def before_paying(self, intent: JobRecord) -> None:
        """Make sure, when all is decided and nothing is sent, that what will be paid for can be kept."""

    def take(self, accepted: Submitted | Finished, ledger: TaskLedger, intent: JobRecord) -> JobRecord:
        """Write down what the gateway accepted, and return the record."""
        if isinstance(accepted, Finished):
            raise TypeError(f"{self.dialect} answers with the result itself: this operator cannot take it")
        handle = accepted.handle
        record = JobRecord(Phase.SUBMITTED, intent.fingerprint, intent.max_tries, time.time(), handle)
        try:
            ledger.write(record)
        except Exception:
            self.log.error("Request %s was submitted, but the ledger did not take it.", handle.request_id)
            raise
        finally:
            metrics.submitted(handle)
        position = accepted.status.queue_position
        where = "" if position is None else f" at position {position}"
        self.log.info(
            "Submitted request %s; it is %s%s.", handle.request_id, accepted.status.state.value, where
        )
        return record


def handle_in(record: JobRecord) -> JobHandle:
    """Return the handle of a record that must have one."""
    if record.handle is None:
        raise ValueError(f"a record in phase {record.phase.value!r} has no handle")
    return record.handle


def in_phase(record: JobRecord, phase: Phase, max_tries: int, failure: Failure | None = None) -> JobRecord:
    """Return the record of the same job in another phase."""
    return replace(record, phase=phase, max_tries=max_tries, written_at=time.time(), failure=failure)


def _kind(value: Any) -> str:
    """Say of what kind a value is without telling it: prompts and inputs stay out of logs."""
    if isinstance(value, str):
        return f"{len(value)} characters"
    if isinstance(value, (Mapping, list, tuple)):
        return f"{len(value)} items"
    return type(value).__name__


def _changed(why: str, handle: JobHandle, *, ended: bool) -> Failure:
    """Return the failure of a try that asks for something else, with the fate of the job that is there."""
    refused = bad_input(
        f"This try would submit something else: {why}.",
        "Nothing was submitted now; the earlier job is not affected. on_changed_arguments decides this.",
    )
    return replace(refused, billed="maybe", may_run=not ended, request_id=handle.request_id)


def _to_be_resubmitted(failure: Failure) -> Failure:
    return Failure(
        FailureKind.PROTOCOL,
        what=failure.what,
        retry_does="submits again, as on_unknown_submit='resubmit' says; both may be billed.",
        billed="maybe",
        may_run=True,
        http_status=failure.http_status,
    )


_KILLED = Failure(
    FailureKind.PROTOCOL,
    what="The task was ended from outside while it waited to post once more; nothing was accepted so far.",
    retry_does="submits.",
)


def given(arguments: Mapping[str, Any] | None, **fields: Any) -> dict[str, Any]:
    """
    Return the vendor's fields that a user gave by name, together with further ones.

    :raises ValueError: if a field is given in both ways
    """
    named = {name: value for name, value in fields.items() if value is not None}
    twice = sorted(named.keys() & (arguments or {}).keys())
    if twice:
        raise ValueError(f"given both by name and in arguments: {', '.join(twice)}")
    return {**named, **(arguments or {})}
