"""The operators for Luma: generate a video, and extend one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_uniapi_fal.exceptions import error_of
from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.operators.generating import GeneratingOperator
from airflow_provider_uniapi_fal.operators.submitting import given
from airflow_provider_uniapi_fal.protocol.dialects import luma
from airflow_provider_uniapi_fal.protocol.errors import bad_input
from airflow_provider_uniapi_fal.protocol.job import JobHandle, JobState

if TYPE_CHECKING:
    from airflow.sdk import XComArg

    from airflow_provider_uniapi_fal.ledger.record import JobRecord


class LumaGenerateOperator(GeneratingOperator):
    """
    Generate a video with Luma: one task, one paid job.

    Its fields are checked before anything is paid, and one error names every wrong one. A picture is given by its
    address on the web, or by its address in storage, from where it is sent as a data URI. Luma cannot cancel: a
    job that is cancelled here or has timed out runs on and is billed. When the video is landed, the address
    without a watermark is asked for first.

    It takes the parameters of :class:`~airflow_provider_uniapi_fal.operators.generating.GeneratingOperator`, too:
    with ``wait=False`` the handle is returned at once, for ``FalQueueSensor``. All of these are templated:

    :param user_prompt: what is to be seen
    :param expand_prompt: let Luma elaborate the prompt; default: Luma's
    :param loop: end where it began; default: Luma's
    :param image_url: picture that the video begins with
    :param image_end_url: picture that it ends with
    :param aspect_ratio: ``1:1``, ``4:3``, ``3:4``, ``16:9``, ``9:16``, ``21:9`` or ``9:21``
    :param model_name: Luma's model, such as ``ray-v2``; default: the gateway's
    :param duration: ``5s`` or ``9s``
    :param resolution: ``540p``, ``720p``, ``1080p`` or ``4k``
    :param notify_hook: address that is called when the task changes; default: none
    :param arguments: further fields, sent as they are
    :param check_limits: False sends fields that break the documented limits, should they have changed; default True
    :return: the result as JSON values, or with ``wait=False`` the handle
    """

    dialect = "luma"
    template_fields: Sequence[str] = GeneratingOperator.template_fields
    ui_color = "#fde2ef"

    def __init__(
        self,
        *,
        user_prompt: str | XComArg,
        expand_prompt: bool | XComArg | None = None,
        loop: bool | XComArg | None = None,
        image_url: str | XComArg | None = None,
        image_end_url: str | XComArg | None = None,
        aspect_ratio: str | XComArg | None = None,
        model_name: str | XComArg | None = None,
        duration: str | XComArg | None = None,
        resolution: str | XComArg | None = None,
        notify_hook: str | XComArg | None = None,
        arguments: Mapping[str, Any] | None = None,
        check_limits: bool = True,
        **kwargs: Any,
    ) -> None:
        fields = given(
            arguments,
            user_prompt=user_prompt,
            expand_prompt=expand_prompt,
            loop=loop,
            image_url=image_url,
            image_end_url=image_end_url,
            aspect_ratio=aspect_ratio,
            model_name=model_name,
            duration=duration,
            resolution=resolution,
            notify_hook=notify_hook,
        )
        super().__init__(model=luma.GENERATE, arguments=fields, **kwargs)
        self.check_limits = check_limits

    def options(self) -> dict[str, Any]:
        """Return the dialect's options."""
        return {"check_limits": self.check_limits}


class LumaExtendOperator(LumaGenerateOperator):
    """
    Extend a video that Luma has generated: one task, one paid job.

    Besides the parameters of :class:`LumaGenerateOperator`:

    :param handle: the finished job whose video is extended: its handle or its result, as the operators and
        ``FalQueueSensor`` return them (templated). It is looked at before anything is paid
    :raises FalInputError: the job is none of Luma's, or has not succeeded; nothing was sent
    """

    template_fields: Sequence[str] = (*LumaGenerateOperator.template_fields, "handle")

    def __init__(self, *, handle: Mapping[str, Any] | XComArg, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.handle: Any = handle

    _source: JobHandle

    def check(self, hook: FalHook) -> None:
        """Find the job that is extended, and check the rest."""
        inner = self.handle.get("handle", self.handle) if isinstance(self.handle, Mapping) else self.handle
        try:
            source = JobHandle.from_json(inner)
        except ValueError as error:
            raise error_of(bad_input(f"handle: {error}.")) from error
        if source.dialect != self.dialect:
            raise error_of(bad_input(f"handle: it is of a job of {source.dialect}, not of {self.dialect}."))
        self._source = source
        self.model = luma.extend(source.request_id)
        super().check(hook)

    def before_paying(self, intent: JobRecord) -> None:
        """Make sure that there is a video to extend."""
        state = FalHook(self._source.fal_conn_id).status(self._source).state
        if state is not JobState.SUCCEEDED:
            raise error_of(
                bad_input(
                    f"handle: request {self._source.request_id} is {state.value}; only one that has succeeded "
                    "can be extended."
                )
            )
