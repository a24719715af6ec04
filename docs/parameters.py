"""
Sphinx: the reference lists all that a class accepts, also what it takes over from classes that it is made of.

The texts stay where they are, in the docstring of the class whose constructor has the parameter.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

PACKAGE = "airflow_provider_uniapi_fal."

_KINDS = "param|cvar|return|raises"

#: A field of a docstring, up to the next one or to the end.
_FIELD = re.compile(
    rf"^:(?P<kind>{_KINDS})\b(?: (?P<name>\w+))?:.*(?:\n(?!:(?:{_KINDS})\b).*)*", re.MULTILINE
)


def accepted(cls: type) -> dict[str, inspect.Parameter]:
    """Return the parameters that may be given to a class: its own, and those of ours that it hands on to."""
    found: dict[str, inspect.Parameter] = {}
    taken: set[str] = set()
    for base in _ours(cls):
        if "__init__" not in vars(base):
            continue
        make = inspect.unwrap(vars(base)["__init__"])
        parameters = list(inspect.signature(make).parameters.values())[1:]
        for each in parameters:
            if each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL) and each.name not in taken:
                found.setdefault(each.name, each)
        handed_on = None if "__dataclass_fields__" in vars(base) else _given_to_super(make)
        if handed_on is None:
            break
        taken |= handed_on
    return found


def described(cls: type) -> dict[str, str]:
    """Return what the docstrings of a class, and of those that it is made of, say of parameters."""
    found: dict[str, str] = {}
    for base in _ours(cls):
        for name, field in _fields(vars(base).get("__doc__") or ""):
            found.setdefault(name, field)
    return found


def setup(app: Sphinx) -> Mapping[str, Any]:
    """Have the docstrings and the signatures of classes completed."""
    app.connect("autodoc-process-docstring", _complete)
    app.connect("autodoc-process-signature", _signature)
    app.connect("autodoc-process-bases", _bases)
    return {"parallel_read_safe": True}


def _complete(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    if what not in ("class", "exception") or not isinstance(obj, type):
        return
    own, texts = dict(_fields("\n".join(lines))), described(obj)
    added = [
        line
        for each in accepted(obj)
        if each in texts and each not in own
        for line in texts[each].splitlines()
    ]
    fields = [number for number, line in enumerate(lines) if re.match(rf":({_KINDS})\b", line)]
    # Parameters come before what is returned and raised.
    after = (number for number in fields if not lines[number].startswith((":param", ":cvar")))
    place = next(after, len(lines))
    if place == len(lines):
        while place and not lines[place - 1]:
            place -= 1
    lines[place:place] = added if fields else ["", *added]


def _bases(app: Sphinx, name: str, obj: Any, options: Any, bases: list[type]) -> None:
    """Show what a class is derived from without the private classes between."""
    public = [each for base in bases for each in (base.__bases__ if base.__name__[0] == "_" else (base,))]
    bases[:] = dict.fromkeys(public)


def _signature(
    app: Sphinx, what: str, name: str, obj: Any, options: Any, signature: str, returned: str
) -> tuple[str, str] | None:
    if what != "class" or not isinstance(obj, type) or not _is_of_a_dag(obj):
        return None
    parameters = [each.replace(annotation=each.empty) for each in accepted(obj).values()]
    needed = [each for each in parameters if each.default is each.empty]
    rest = [each for each in parameters if each.default is not each.empty]
    more = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
    return str(inspect.Signature([*needed, *rest, more])), returned


def _is_of_a_dag(cls: type) -> bool:
    """Whether it is an operator or a sensor, which take Airflow's own parameters as well."""
    return any(base.__name__ == "BaseOperator" for base in cls.__mro__)


def _ours(cls: type) -> Iterator[type]:
    return (base for base in cls.__mro__ if base.__module__.startswith(PACKAGE))


def _fields(doc: str) -> Iterator[tuple[str, str]]:
    for field in _FIELD.finditer(inspect.cleandoc(doc)):
        if field["kind"] == "param":
            yield field["name"], field.group().rstrip()


def _given_to_super(make: Callable[..., None]) -> set[str] | None:
    """Return the parameters of the next constructor that this one gives itself; None if it hands none on."""
    for call in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(make)))):
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "super().__init__":
            names = {keyword.arg for keyword in call.keywords}
            return {name for name in names if name is not None} if None in names else None
    return None
