"""Files in storage as inputs of a model: they travel inside the arguments, as data URIs."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal.exceptions import error_of
from airflow_provider_uniapi_fal.landing.kinds import binary_media_type
from airflow_provider_uniapi_fal.protocol.errors import bad_input

#: Bytes of one input file: what vendors take as a picture.
MAX_INPUT_BYTES = 10 * 1024 * 1024

_SENT_AS_IT_IS = ("http://", "https://", "data:")


def with_data_uris(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return the arguments with each storage address of a media file replaced by the file itself.

    Keys that end in ``_url`` or ``_urls`` are looked at, at any depth; addresses on the web and data URIs stay.
    Only pictures, videos and audio are taken: a table of prompts must not be able to send other files of the
    worker to the gateway.

    :raises FalInputError: if a file cannot be had, is too large or is no media file; nothing was submitted
    """
    return {key: _converted(value, key, f"arguments.{key}") for key, value in arguments.items()}


def _converted(value: Any, key: str, where: str) -> Any:
    if isinstance(value, Mapping):
        return {name: _converted(item, name, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_converted(item, key, f"{where}[{index}]") for index, item in enumerate(value)]
    if not isinstance(value, str) or not key.endswith(("_url", "_urls")) or value.startswith(_SENT_AS_IT_IS):
        return value
    return _data_uri(value, where)


def _data_uri(address: str, where: str) -> str:
    if "://" not in address:
        raise _refused(
            where, "is neither an address on the web nor one in storage, such as file:///… or s3://…"
        )
    try:
        path = ObjectStoragePath(address)
        with path.open("rb") as reader:
            content = reader.read(MAX_INPUT_BYTES + 1)
    except (OSError, ValueError, ImportError) as error:
        raise _refused(where, f"names a file that cannot be read ({type(error).__name__})") from error
    if len(content) > MAX_INPUT_BYTES:
        raise _refused(where, f"names a file of more than the {MAX_INPUT_BYTES} bytes that are sent")
    kind = binary_media_type(content)
    if kind is None:
        raise _refused(where, "names a file that is no picture, video or audio")
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def _refused(where: str, why: str) -> Exception:
    return error_of(bad_input(f"{where} {why}."))
