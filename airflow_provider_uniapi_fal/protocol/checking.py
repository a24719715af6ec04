"""Checking that the fields of a dataclass hold what their annotations say: a file of JSON can hold anything."""

from __future__ import annotations

import math
import reprlib
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints


def check_fields(value: Any) -> None:
    """
    Check the fields of a dataclass: the type of each, not what is in a list or a mapping; a float is finite.

    :raises ValueError: naming the first field that holds something else
    """
    for name, allowed in _fields_of(value.__class__):
        found = getattr(value, name)
        kind = type(found)
        if kind in allowed:
            fits = kind is not float or math.isfinite(found)
        elif kind is int:
            fits = float in allowed and _is_finite(found)
        else:
            # A truth value is a whole number to Python only.
            fits = kind is not bool and isinstance(found, allowed)
        if not fits:
            raise ValueError(f"{name} cannot be {reprlib.repr(found)}")


@cache
def _fields_of(kind: type) -> tuple[tuple[str, tuple[type, ...]], ...]:
    hints = get_type_hints(kind)
    return tuple(
        (each.name, _types_in(hints[each.name])) for each in fields(kind) if hints[each.name] is not Any
    )


def _types_in(hint: Any) -> tuple[type, ...]:
    """Return the classes of a hint such as ``Mapping[str, Any] | None``, without what is in them."""
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(get_origin(part) or part for part in parts)


def _is_finite(number: int) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:
        return False
