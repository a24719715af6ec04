"""Files in storage as inputs of a model: they travel inside the arguments."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal.exceptions import error_of
from airflow_provider_uniapi_fal.landing.kinds import binary_media_type
from airflow_provider_uniapi_fal.protocol.arguments import schema_problems
from airflow_provider_uniapi_fal.protocol.errors import bad_input
from airflow_provider_uniapi_fal.protocol.schemas import schema_in, shipped, shipped_schema

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.dialects.base import MediaInputs

_SENT_AS_IT_IS = ("http://", "https://", "data:")


def with_files(arguments: Mapping[str, Any], inputs: MediaInputs) -> dict[str, Any]:
    """
    Return the arguments with each storage address of a media file replaced by the file itself.

    Only the arguments that take files are looked at, at any depth; addresses on the web and files that are inside
    already stay. Only media are taken: a table of prompts must not be able to send other files of the worker to
    the gateway.

    :param inputs: which arguments take files, and in which form; from the dialect
    :raises FalInputError: if a file cannot be had, is too large or is no media file; nothing was submitted
    """
    return {key: _converted(value, key, f"arguments.{key}", inputs) for key, value in arguments.items()}


def files_in(arguments: Any, inputs: MediaInputs, key: str = "") -> Iterator[str]:
    """Yield the storage addresses that :func:`with_files` would replace."""
    if isinstance(arguments, Mapping):
        for name, value in arguments.items():
            yield from files_in(value, inputs, name)
    elif isinstance(arguments, (list, tuple)):
        for value in arguments:
            yield from files_in(value, inputs, key)
    elif isinstance(arguments, str) and inputs.taken_by(key) and _is_in_storage(arguments):
        yield arguments


def schema_of(given: Any) -> Mapping[str, Any]:
    """
    Return the JSON Schema that a user gives for arguments.

    :param given: the schema, or the name of a shipped one, or the address of a JSON file with a schema or with a
        model's OpenAPI description
    :raises FalInputError: if it is none of these; nothing was submitted
    """
    if isinstance(given, str) and given in shipped():
        return shipped_schema(given)
    try:
        document = (
            json.loads(ObjectStoragePath(given).read_text("utf-8")) if isinstance(given, str) else given
        )
        return schema_in(document)
    except (OSError, ImportError) as error:
        names = ", ".join(shipped())
        raise _refused(
            "arguments_schema", f"cannot be read ({type(error).__name__}); shipped are {names}"
        ) from error
    except ValueError as error:
        raise _refused("arguments_schema", f"holds no schema: {error}") from error


def check_schema(given: Any, arguments: Mapping[str, Any]) -> None:
    """
    Refuse arguments that do not fit a schema.

    :param given: see :func:`schema_of`
    :raises FalInputError: naming every wrong field, and none of the values; nothing was submitted
    """
    problems = schema_problems(schema_of(given), arguments)
    if problems:
        raise error_of(bad_input("The arguments do not fit arguments_schema: " + "; ".join(problems) + "."))


def _converted(value: Any, key: str, where: str, inputs: MediaInputs) -> Any:
    if isinstance(value, Mapping):
        return {name: _converted(item, name, f"{where}.{name}", inputs) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_converted(item, key, f"{where}[{index}]", inputs) for index, item in enumerate(value)]
    if not isinstance(value, str) or not inputs.taken_by(key) or value.startswith(_SENT_AS_IT_IS):
        return value
    if _is_in_storage(value):
        return _file(value, where, inputs)
    if inputs.bare:
        return value
    raise _refused(where, "is neither an address on the web nor one in storage, such as file:///… or s3://…")


def _is_in_storage(value: str) -> bool:
    return "://" in value and not value.startswith(_SENT_AS_IT_IS)


def _file(address: str, where: str, inputs: MediaInputs) -> str:
    try:
        path = ObjectStoragePath(address)
        with path.open("rb") as reader:
            content = reader.read(inputs.max_bytes + 1)
    except (OSError, ValueError, ImportError) as error:
        raise _refused(where, f"names a file that cannot be read ({type(error).__name__})") from error
    if len(content) > inputs.max_bytes:
        raise _refused(where, f"names a file of more than the {inputs.max_bytes} bytes that are sent")
    kind = binary_media_type(content)
    if kind is None:
        raise _refused(where, "names a file that is no picture, video or audio")
    if not kind.startswith(inputs.kinds):
        raise _refused(where, f"names a file of the type {kind}; {' or '.join(inputs.kinds)} is needed")
    encoded = base64.b64encode(content).decode()
    return encoded if inputs.bare else f"data:{kind};base64,{encoded}"


def _refused(where: str, why: str) -> Exception:
    return error_of(bad_input(f"{where} {why}."))
