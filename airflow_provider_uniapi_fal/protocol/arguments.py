"""Checks of what a user gives, before anything is paid; each names the field."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from jsonschema import Draft202012Validator

from airflow_provider_uniapi_fal.protocol.messages import MAX_DEPTH, whole_text

if TYPE_CHECKING:
    from jsonschema import ValidationError

Word = TypeVar("Word", bound=str)

_MODEL_SEGMENT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def model_problem(model: object) -> str | None:
    """Return what is wrong with a model id, or None."""
    if not isinstance(model, str) or not model.strip():
        return f"model: a model id such as 'flux-pro/kontext/text-to-image' is needed, not {model!r}"
    if "://" in model:
        return f"model: {model!r} is an address; give the model id alone"
    segments = model.split("/")
    if ".." in segments or not all(_MODEL_SEGMENT.fullmatch(segment) for segment in segments):
        return (
            f"model: {model!r} is no model id; it is made of words of letters, digits, '.', '_', '-' and '/'"
        )
    return None


def arguments_problems(arguments: object) -> list[str]:
    """Return what keeps the arguments from being sent as JSON: one text for each wrong field."""
    if not isinstance(arguments, Mapping):
        return [f"arguments: a mapping of the model's inputs is needed, not {type(arguments).__name__}"]
    return _json_problems(arguments, "arguments", ())


def schema_problems(
    schema: Mapping[str, Any] | bool, arguments: Mapping[str, Any], where: str = "arguments"
) -> list[str]:
    """
    Return where the arguments break a JSON Schema (draft 2020-12), one text for each wrong field.

    The texts say what is needed and never what was given: that may be a prompt. A part of a schema that has a
    ``description`` and fails as a whole (``not``, ``anyOf``, ``oneOf``) is named by it.
    """
    found = Draft202012Validator(schema).iter_errors(as_json(arguments))
    ordered = sorted(found, key=lambda error: [str(step) for step in error.absolute_path])
    return list(dict.fromkeys(text for error in ordered for text in _said(error, where)))


def as_json(value: Any) -> Any:
    """Return a value without problems as what the JSON writer takes: of mappings, it takes a dict only."""
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    return [as_json(item) for item in value] if isinstance(value, (list, tuple)) else value


def one_of(name: str, value: Word, words: Sequence[Word]) -> Word:
    """
    Return a word if it is one of those that a setting may have.

    :raises ValueError: if it is not, naming the setting
    """
    if value not in words:
        raise ValueError(f"{name} must be one of {', '.join(words)}, not {value!r}")
    return value


def at_least_one(name: str, value: object) -> int:
    """
    Return how many of something a setting allows, a whole number.

    :raises ValueError: if it allows none, or is no whole number, naming the setting
    """
    # A truth value is a whole number to Python only.
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, not {value!r}")
    return value


def seconds(name: str, value: object, *, or_zero: bool = False) -> float:
    """
    Return a time-out or an interval as a number of seconds.

    :raises ValueError: if it makes no sense, naming the setting
    """
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(number, bool) or not isinstance(number, (int, float)):
        number = math.nan
    if not (0 < number < 1e9 or (or_zero and number == 0)):
        least = "0 seconds or more" if or_zero else "more than 0 seconds"
        raise ValueError(f"{name} must be {least}, not {value!r}")
    return float(number)


def seconds_or_none(name: str, value: object) -> float | None:
    """Return a time-out or an interval as a number of seconds, or None if there is none."""
    return None if value is None else seconds(name, value)


def both_clocks(queue_timeout: object, timeout: object) -> tuple[float | None, float]:
    """
    Return the two clocks of a wait as numbers of seconds: until the job must have started, or None, and until it ends.

    :raises ValueError: if they make no sense, each or together
    """
    queued, whole = seconds_or_none("queue_timeout", queue_timeout), seconds("timeout", timeout)
    if queued is not None and queued > whole:
        raise ValueError("queue_timeout must not be more than timeout")
    return queued, whole


def _json_problems(value: Any, where: str, around: tuple[int, ...]) -> list[str]:
    """Find the problems in a value; ``around`` are the ids of those that it lies in."""
    if id(value) in around:
        return [f"{where}: contains itself"]
    if len(around) > MAX_DEPTH:
        return [f"arguments: nested more than {MAX_DEPTH} deep"]
    inside = (*around, id(value))
    if isinstance(value, Mapping):
        problems = []
        for key, item in value.items():
            if not isinstance(key, str):
                problems.append(f"{where}: the key {key!r} is no text")
                continue
            if whole_text(key) != key:
                problems.append(f"{where}: half of a surrogate pair is in the key {key!r}")
                continue
            if key.endswith("_urls") and isinstance(item, str):
                problems.append(f"{where}.{key}: a list is needed, not a single text")
            problems += _json_problems(item, f"{where}.{key}", inside)
        return problems
    if isinstance(value, (list, tuple)):
        return [
            problem
            for index, item in enumerate(value)
            for problem in _json_problems(item, f"{where}[{index}]", inside)
        ]
    if isinstance(value, float) and not math.isfinite(value):
        return [f"{where}: {value} has no form in JSON"]
    if isinstance(value, str):
        return [] if whole_text(value) == value else [f"{where}: half of a surrogate pair is no text"]
    if value is None or isinstance(value, (bool, int, float)):
        return []
    return [f"{where}: {type(value).__name__} has no form in JSON"]


_TYPE_WORDS = {
    "string": "a text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}


_NEEDED = {
    "const": "{!r} is",
    "minLength": "at least {} characters are",
    "maxLength": "at most {} characters are",
    "minimum": "{} or more is",
    "maximum": "{} or less is",
    "exclusiveMinimum": "more than {} is",
    "exclusiveMaximum": "less than {} is",
    "multipleOf": "a multiple of {} is",
    "minItems": "at least {} of them are",
    "maxItems": "at most {} of them are",
    "uniqueItems": "a list in which nothing comes twice is",
}


def _said(error: ValidationError, where: str) -> list[str]:
    """Return what is needed in the place that an error is about, without what is there."""
    place = where + "".join(
        f"[{step}]" if isinstance(step, int) else f".{step}" for step in error.absolute_path
    )
    limit: Any = error.validator_value
    instance: Any = error.instance
    schema: Mapping[str, Any] = error.schema if isinstance(error.schema, Mapping) else {}
    keyword = str(error.validator)
    if keyword == "required":
        return [f"{place}.{name}: is needed" for name in limit if name not in instance]
    if keyword == "additionalProperties":
        return [f"{place}: has names that are not known; known are {', '.join(schema.get('properties', ()))}"]
    if keyword in _NEEDED:
        return [f"{place}: {_NEEDED[keyword].format(limit)} needed"]
    if keyword == "type":
        words = [limit] if isinstance(limit, str) else limit
        return [f"{place}: {' or '.join(_TYPE_WORDS[word] for word in words)} is needed"]
    if keyword == "enum":
        return [f"{place}: one of {', '.join(map(repr, limit))} is needed"]
    return [f"{place}: {schema.get('description') or f'does not fit the schema ({keyword})'}"]
