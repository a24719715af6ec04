"""
JSON Schemas of arguments: the vendors' documented limits, and those of single models.

``<dialect>/<model>.json``, with dots for the slashes of a model id. A user's own come from a mapping, from a JSON
file, or from the OpenAPI file that fal publishes for each of its models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError


@cache
def shipped() -> tuple[str, ...]:
    """Return the names of all shipped schemas, such as ``fal/flux-pro/kontext/text-to-image``."""
    folders = (each for each in resources.files(__name__).iterdir() if each.is_dir())
    return tuple(
        sorted(
            json.loads(file.read_text("utf-8"))["$id"]
            for folder in folders
            for file in folder.iterdir()
            if file.name.endswith(".json")
        )
    )


@cache
def shipped_schema(name: str) -> Mapping[str, Any]:
    """
    Return a shipped schema.

    :param name: dialect and model id, such as ``kling/videos/text2video``
    :raises KeyError: if there is none of that name
    """
    if name not in shipped():
        raise KeyError(name)
    dialect, _, model = name.partition("/")
    file = resources.files(__name__).joinpath(dialect, model.replace("/", ".") + ".json")
    loaded: dict[str, Any] = json.loads(file.read_text("utf-8"))
    return loaded


def schema_in(document: object) -> Mapping[str, Any]:
    """
    Return the JSON Schema in a document: the document itself, or the input of the model in an OpenAPI file.

    :raises ValueError: if there is none, or it is no valid one
    """
    if not isinstance(document, Mapping):
        raise ValueError(f"a mapping is needed, not {type(document).__name__}")
    schema = _input_in(document) if "openapi" in document else document
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        place = "/".join(map(str, error.absolute_path))
        raise ValueError(f"it is no valid JSON Schema ({place or 'at its top'})") from error
    return schema


def _input_in(document: Mapping[str, Any]) -> Mapping[str, Any]:
    """
    Return the schema of the body of the first post in an OpenAPI document, with all that it refers to.

    fal's files have one such post; the other calls that they describe are those of the queue, without a body.
    """
    paths = document.get("paths")
    for calls in paths.values() if isinstance(paths, Mapping) else ():
        post = calls.get("post") if isinstance(calls, Mapping) else None
        body: Any = post
        for step in ("requestBody", "content", "application/json", "schema"):
            body = body.get(step) if isinstance(body, Mapping) else None
        if isinstance(body, Mapping):
            whole = {**body, "components": document.get("components", {})}
            written: Mapping[str, Any] = _as_2020_12(whole)
            return written
    raise ValueError("it describes no post with a JSON body")


def _as_2020_12(value: Any) -> Any:
    """
    Write what OpenAPI 3.0 has of its own in the words of JSON Schema.

    ``nullable`` lets null in; a true ``exclusiveMinimum`` makes the ``minimum`` beside it exclusive.
    """
    if isinstance(value, list):
        return [_as_2020_12(item) for item in value]
    if not isinstance(value, Mapping):
        return value
    schema = {key: _as_2020_12(item) for key, item in value.items()}
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if isinstance(schema.get(exclusive), bool):
            is_exclusive = schema.pop(exclusive)
            if is_exclusive and bound in schema:
                schema[exclusive] = schema.pop(bound)
    nullable = schema.pop("nullable", None) if isinstance(schema.get("nullable"), bool) else None
    return {"anyOf": [schema, {"type": "null"}]} if nullable else schema
