"""The operators for Kling: images, videos from text and from images, virtual try-on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow_provider_uniapi_fal.operators.generating import GeneratingOperator
from airflow_provider_uniapi_fal.operators.submitting import given
from airflow_provider_uniapi_fal.protocol.dialects import kling

if TYPE_CHECKING:
    from airflow.sdk import XComArg


class KlingOperator(GeneratingOperator):
    """
    Submit one task to Kling, wait for it and return its result: one task, one paid job.

    Base of the operators below, which take Kling's own fields by name. They are checked against the limits that
    Kling documents before anything is paid, and one error names every wrong field. A picture is given by its
    address on the web, by its address in storage, from where it is sent as base64, or as base64 without
    ``data:``; it is a JPEG or PNG of at most 10 MB and at least 300 pixels on each side, its sides in a proportion
    of at most 2.5 to 1. Kling cannot cancel: a job that is cancelled here or has timed out runs on and is billed.

    It takes the parameters of :class:`~airflow_provider_uniapi_fal.operators.generating.GeneratingOperator`, too:
    with ``wait=False`` the handle is returned at once, for ``FalQueueSensor``.

    :param arguments: further fields, sent as they are: Kling may have more than this version knows (templated)
    :param model_name: Kling's model, such as ``kling-v2-1``; default: Kling's
    :param callback_url: address that Kling calls when the task changes; default: none
    :param external_task_id: an id of your own, unique in the account. Whether the gateway passes it on is not
        documented
    :param check_limits: False sends fields that break the documented limits, should Kling have changed them;
        default True
    :return: the result as JSON values, or with ``wait=False`` the handle
    """

    dialect = "kling"
    template_fields: Sequence[str] = GeneratingOperator.template_fields
    ui_color = "#e3f7d7"

    def __init__(
        self,
        *,
        kind: str,
        arguments: Mapping[str, Any] | None = None,
        model_name: str | XComArg | None = None,
        callback_url: str | XComArg | None = None,
        external_task_id: str | XComArg | None = None,
        fields: Mapping[str, Any],
        check_limits: bool = True,
        **kwargs: Any,
    ) -> None:
        all_fields = given(
            arguments,
            model_name=model_name,
            callback_url=callback_url,
            external_task_id=external_task_id,
            **fields,
        )
        super().__init__(model=kind, arguments=all_fields, **kwargs)
        self.check_limits = check_limits

    def options(self) -> dict[str, Any]:
        """Return the dialect's options."""
        return {"check_limits": self.check_limits}


class KlingImageOperator(KlingOperator):
    """
    Generate images with Kling, from text or from text and an image.

    Besides the parameters of :class:`KlingOperator`, all of these templated:

    :param prompt: at most 2500 characters
    :param negative_prompt: what is not wanted, at most 2500 characters; not together with ``image``
    :param image: picture to start from
    :param image_reference: what to keep of it: ``subject`` or ``face``
    :param image_fidelity: how closely to follow it, from 0 to 1; Kling's default is 0.5
    :param human_fidelity: how closely to follow the face, from 0 to 1; Kling's default is 0.45
    :param resolution: ``1k`` or ``2k``
    :param n: number of images, from 1 to 9, each of which is billed
    :param aspect_ratio: ``16:9``, ``9:16``, ``1:1``, ``4:3``, ``3:4``, ``3:2``, ``2:3`` or ``21:9``
    """

    def __init__(
        self,
        *,
        prompt: str | XComArg,
        negative_prompt: str | XComArg | None = None,
        image: str | XComArg | None = None,
        image_reference: str | XComArg | None = None,
        image_fidelity: float | XComArg | None = None,
        human_fidelity: float | XComArg | None = None,
        resolution: str | XComArg | None = None,
        n: int | XComArg | None = None,
        aspect_ratio: str | XComArg | None = None,
        **kwargs: Any,
    ) -> None:
        fields = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "image": image,
            "image_reference": image_reference,
            "image_fidelity": image_fidelity,
            "human_fidelity": human_fidelity,
            "resolution": resolution,
            "n": n,
            "aspect_ratio": aspect_ratio,
        }
        super().__init__(kind=kling.IMAGE_GENERATION, fields=fields, **kwargs)


class KlingTextToVideoOperator(KlingOperator):
    """
    Generate a video from text with Kling.

    Besides the parameters of :class:`KlingOperator`, all of these templated:

    :param prompt: at most 2500 characters
    :param negative_prompt: what is not wanted, at most 2500 characters
    :param cfg_scale: how closely to follow the prompt, from 0 to 1; not for the models ``kling-v2…``
    :param mode: ``std`` or ``pro``, which multiplies the price
    :param camera_control: ``{"type": "simple", "config": {…}}`` with exactly one axis other than 0, each from -10 to
        10, or one of the types ``down_back``, ``forward_up``, ``right_turn_forward``, ``left_turn_forward``
    :param aspect_ratio: ``16:9``, ``9:16`` or ``1:1``
    :param duration: ``"5"`` or ``"10"`` seconds, as a text; 10 doubles the price
    """

    def __init__(
        self,
        *,
        prompt: str | XComArg,
        negative_prompt: str | XComArg | None = None,
        cfg_scale: float | XComArg | None = None,
        mode: str | XComArg | None = None,
        camera_control: Mapping[str, Any] | XComArg | None = None,
        aspect_ratio: str | XComArg | None = None,
        duration: str | XComArg | None = None,
        **kwargs: Any,
    ) -> None:
        fields = {
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "cfg_scale": cfg_scale,
            "mode": mode,
            "camera_control": camera_control,
            "aspect_ratio": aspect_ratio,
            "duration": duration,
        }
        super().__init__(kind=kling.TEXT_TO_VIDEO, fields=fields, **kwargs)


class KlingImageToVideoOperator(KlingOperator):
    """
    Generate a video from an image with Kling.

    Besides the parameters of :class:`KlingOperator`, all of these templated. ``image`` or ``image_tail`` is needed;
    ``image_tail``, the masks and ``camera_control`` exclude each other.

    :param image: picture that the video begins with
    :param image_tail: picture that it ends with
    :param prompt: at most 2500 characters
    :param negative_prompt: what is not wanted, at most 2500 characters
    :param cfg_scale: how closely to follow the prompt, from 0 to 1; not for the models ``kling-v2…``
    :param mode: ``std`` or ``pro``, which multiplies the price
    :param static_mask: picture of what does not move
    :param dynamic_masks: at most six ``{"mask": picture, "trajectories": [{"x", "y"}, …]}`` of 2 to 77 points
    :param camera_control: as in :class:`KlingTextToVideoOperator`
    :param duration: ``"5"`` or ``"10"`` seconds, as a text; 10 doubles the price
    """

    def __init__(
        self,
        *,
        image: str | XComArg | None = None,
        image_tail: str | XComArg | None = None,
        prompt: str | XComArg | None = None,
        negative_prompt: str | XComArg | None = None,
        cfg_scale: float | XComArg | None = None,
        mode: str | XComArg | None = None,
        static_mask: str | XComArg | None = None,
        dynamic_masks: Sequence[Mapping[str, Any]] | XComArg | None = None,
        camera_control: Mapping[str, Any] | XComArg | None = None,
        duration: str | XComArg | None = None,
        **kwargs: Any,
    ) -> None:
        fields = {
            "image": image,
            "image_tail": image_tail,
            "prompt": prompt,
            "negative_prompt": negative_prompt,
            "cfg_scale": cfg_scale,
            "mode": mode,
            "static_mask": static_mask,
            "dynamic_masks": dynamic_masks,
            "camera_control": camera_control,
            "duration": duration,
        }
        super().__init__(kind=kling.IMAGE_TO_VIDEO, fields=fields, **kwargs)


class KlingVirtualTryOnOperator(KlingOperator):
    """
    Dress a person in a piece of clothing with Kling.

    Besides the parameters of :class:`KlingOperator`, both of these templated:

    :param human_image: picture of the person
    :param cloth_image: picture of the piece; the model ``kolors-virtual-try-on-v1-5`` takes one of an upper and a
        lower piece, too
    """

    def __init__(self, *, human_image: str | XComArg, cloth_image: str | XComArg, **kwargs: Any) -> None:
        fields = {"human_image": human_image, "cloth_image": cloth_image}
        super().__init__(kind=kling.VIRTUAL_TRY_ON, fields=fields, **kwargs)
