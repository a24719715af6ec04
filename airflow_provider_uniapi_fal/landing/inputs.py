"""Files in storage as inputs of a model: they travel inside the arguments."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal.exceptions import FalError, error_of
from airflow_provider_uniapi_fal.landing.kinds import binary_media_type
from airflow_provider_uniapi_fal.protocol.arguments import schema_problems
from airflow_provider_uniapi_fal.protocol.errors import Failure, FailureKind, bad_input
from airflow_provider_uniapi_fal.protocol.schemas import schema_in, shipped, shipped_schema

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.dialects.base import MediaInputs

_SENT_AS_IT_IS = ("http://", "https://", "data:")

_NO_ADDRESS = "is neither an address on the web nor one in storage, such as file:///… or s3://…"

#: What reading a file raises when its path or the file is wrong, so that the next reading would end alike. All else
#: that a storage raises, its clients' own errors among it, may be over in a moment.
_WRONG = (FileNotFoundError, IsADirectoryError, NotADirectoryError, ValueError, KeyError, ImportError)


def with_files(arguments: Mapping[str, Any], inputs: MediaInputs) -> dict[str, Any]:
    """
    Return the arguments with each storage address of a media file replaced by the file itself.

    Only the arguments that take files are looked at, at any depth; addresses on the web and files that are inside
    already stay. Only media are taken: a table of prompts must not be able to send other files of the worker to
    the gateway.

    :param inputs: which arguments take files, and in which form; from the dialect
    :raises FalInputError: if there is no such file, it is too large or no media file; nothing was submitted
    :raises FalProtocolError: if storage does not give it now; nothing was submitted
    """
    return {key: _converted(value, key, f"arguments.{key}", inputs) for key, value in arguments.items()}


def input_problems(arguments: Mapping[str, Any], inputs: MediaInputs) -> list[str]:
    """
    Return what is wrong with arguments that take files, by their form alone: one text for each wrong one.

    Nothing is read: this is for many rows, before anything is paid.

    :param inputs: which arguments take files, and in which form; from the dialect
    """
    return [
        f"{where} {_NO_ADDRESS}"
        for where, value in _given(arguments, inputs)
        if _is_no_address(value, inputs)
    ]


def files_in(arguments: Mapping[str, Any], inputs: MediaInputs) -> Iterator[str]:
    """Yield the storage addresses that :func:`with_files` would replace."""
    return (value for _, value in _given(arguments, inputs) if _is_in_storage(value))


def _given(
    value: Any, inputs: MediaInputs, key: str = "", where: str = "arguments"
) -> Iterator[tuple[str, str]]:
    """Yield each text that is given where a file is taken, after its place."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            yield from _given(item, inputs, name, f"{where}.{name}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _given(item, inputs, key, f"{where}[{index}]")
    elif isinstance(value, str) and inputs.taken_by(key):
        yield where, value


def schema_of(given: Any) -> Mapping[str, Any]:
    """
    Return the JSON Schema that a user gives for arguments.

    :param given: the schema, or the name of a shipped one, or the address of a JSON file with a schema or with a
        model's OpenAPI description
    :raises FalInputError: if it is none of these; nothing was submitted
    :raises FalProtocolError: if storage does not give it now; nothing was submitted
    """
    if isinstance(given, str) and given in shipped():
        return shipped_schema(given)
    try:
        content = ObjectStoragePath(given).read_bytes() if isinstance(given, str) else None
    except Exception as error:
        why = f"cannot be read ({type(error).__name__}); shipped are {', '.join(shipped())}"
        raise unread("arguments_schema", why, error) from error
    try:
        return schema_in(given if content is None else json.loads(content))
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
    if not isinstance(value, str) or not inputs.taken_by(key):
        return value
    if _is_no_address(value, inputs):
        raise _refused(where, _NO_ADDRESS)
    return _file(value, where, inputs) if _is_in_storage(value) else value


def _is_no_address(value: str, inputs: MediaInputs) -> bool:
    """Whether a text leads to no file; where bare files are taken, any text may be one."""
    return not inputs.bare and "://" not in value and not value.startswith(_SENT_AS_IT_IS)


def _is_in_storage(value: str) -> bool:
    return "://" in value and not value.startswith(_SENT_AS_IT_IS)


def _file(address: str, where: str, inputs: MediaInputs) -> str:
    try:
        path = ObjectStoragePath(address)
        with path.open("rb") as reader:
            content = reader.read(inputs.max_bytes + 1)
    except Exception as error:
        raise unread(where, f"names a file that cannot be read ({type(error).__name__})", error) from error
    if len(content) > inputs.max_bytes:
        raise _refused(where, f"names a file of more than the {inputs.max_bytes} bytes that are sent")
    kind = binary_media_type(content)
    if kind is None:
        raise _refused(where, "names a file that is no picture, video or audio")
    if not kind.startswith(inputs.kinds):
        raise _refused(where, f"names a file of the type {kind}; {' or '.join(inputs.kinds)} is needed")
    encoded = base64.b64encode(content).decode()
    return encoded if inputs.bare else f"data:{kind};base64,{encoded}"


def unread(where: str, why: str, error: Exception) -> FalError:
    """
    Return the error for a file that storage does not give: wrong input, or a fault that may pass.

    :param error: what was raised when it was read
    """
    if isinstance(error, _WRONG):
        return _refused(where, why)
    return error_of(
        Failure(
            FailureKind.PROTOCOL,
            what=f"{where} {why}.",
            retry_does="reads it again.",
            advice="Nothing was sent to the gateway. Look at the storage and its connection.",
        )
    )


def _refused(where: str, why: str) -> FalError:
    return error_of(bad_input(f"{where} {why}."))
