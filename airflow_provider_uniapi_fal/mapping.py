"""The settings of mapped tasks, which Airflow itself looks at only in each of their tries."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from airflow.sdk import BaseOperator, XComArg
from airflow.sdk.definitions.mappedoperator import OperatorPartial

if TYPE_CHECKING:
    from airflow.sdk.definitions.mappedoperator import MappedOperator


class CheckedWhenMapped(BaseOperator):
    """
    Base of what refuses settings that make no sense when the DAG is parsed, mapped or not.

    What a constructor refuses, ``partial(…).expand(…)`` refuses as well, with the same words.
    """

    @classmethod
    def partial(cls, **kwargs: Any) -> OperatorPartial:
        """Take the settings that all the mapped tasks have in common."""
        plain = super().partial(**kwargs)
        # Its place is taken by one that checks; else Airflow would warn that it was never mapped.
        plain._expand_called = True
        return _CheckedPartial(operator_class=plain.operator_class, kwargs=plain.kwargs, params=plain.params)


class _CheckedPartial(OperatorPartial):
    """Makes of what is known the tasks that a worker would make, and lets their constructor judge."""

    def expand(self, **mapped: Any) -> MappedOperator:
        task = super().expand(**mapped)
        _try_out(task, _side_by_side({name: _values(each) for name, each in mapped.items()}))
        return task

    def expand_kwargs(self, kwargs: Any, *, strict: bool = True) -> MappedOperator:
        task = super().expand_kwargs(kwargs, strict=strict)
        _try_out(task, () if isinstance(kwargs, XComArg) else kwargs)
        return task


def _try_out(task: MappedOperator, rows: Iterable[Any]) -> None:
    """
    Make a task of each row that is known well enough.

    :raises ValueError: or whatever else the constructor raises for a setting
    """
    for row in rows:
        if isinstance(row, Mapping) and all(
            not isinstance(value, XComArg) or _takes_xcoms(task.operator_class, name)
            for name, value in row.items()
        ):
            task.unmap(row)


def _values(mapped: Any) -> Sequence[Any]:
    """Return what is mapped over; of what a task returns, that which stands for it."""
    if isinstance(mapped, XComArg):
        return [mapped]
    return list(mapped.items()) if isinstance(mapped, Mapping) else mapped


def _side_by_side(mapped: Mapping[str, Sequence[Any]]) -> Iterable[dict[str, Any]]:
    """Yield rows in which each value occurs; Airflow makes tasks of all combinations, which may be many."""
    if all(mapped.values()):
        for place in range(max(map(len, mapped.values()))):
            yield {name: values[place % len(values)] for name, values in mapped.items()}


def _takes_xcoms(operator_class: type[BaseOperator], name: str) -> bool:
    """Whether a constructor takes what only a run brings; it says so in its signature."""
    for each in operator_class.__mro__:
        if "__init__" in vars(each):
            parameter = inspect.signature(vars(each)["__init__"]).parameters.get(name)
            if parameter is not None:
                return "XComArg" in str(parameter.annotation)
    return False
