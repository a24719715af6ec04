"""The names of landed files: from a template, safe against leading elsewhere."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from string import Formatter
from typing import Any

from airflow_provider_uniapi_fal.exceptions import error_of
from airflow_provider_uniapi_fal.landing.storage import is_plain_name
from airflow_provider_uniapi_fal.protocol.errors import bad_input

DEFAULT_TEMPLATE = "{key}"

#: What a template may name, and an example of each.
FIELDS: Mapping[str, Any] = {
    "key": "harbour",
    "model": "flux-dev",
    "date": date(2026, 1, 31),
    "seed": 7,
    "request_id": "a1b2c3",
    "index": 0,
    "where": "images-0",
    "hash": "0123456789abcdef",
}

#: Each of these tells one result from all others, so one of them must be in every template.
_TELLS_RESULTS_APART = {"key", "request_id", "hash"}

#: Each of these tells the files of one result apart; a template without any gets the index at its end.
_TELLS_FILES_APART = {"index", "where", "hash"}

#: Characters of the file's sha256 that ``{hash}`` stands for.
HASH_LENGTH = 16

#: What a result may bring into a name, at its longest: a seed of 64 bits, and an id as long as a UUID.
_LONG_SEED = 2**64 - 1
_LONG_ID = "00000000-0000-0000-0000-000000000000"

_NOT_IN_A_NAME = re.compile(r"[/\\\x00-\x1f\x7f]+")
_FORMATTER = Formatter()


@dataclass(frozen=True, kw_only=True)
class Names:
    """
    How the files of one result are called.

    A template is text with fields in braces: ``{key}``, ``{model}`` (its slashes become ``-``), ``{date}`` (or
    ``{date:%Y/%m}``), ``{seed}`` (``none`` where the model gave none), ``{request_id}``, ``{index}`` (from 0, or
    ``{index:03}``), ``{where}`` (place in the result, such as ``images-0``) and ``{hash}`` (the first 16
    characters of the file's sha256). A slash in it makes folders. The suffix follows from the file. Where a
    result has several files and the template tells them apart by nothing, ``-<index>`` is added.

    :param key: the user's name for the request; a plain file name
    :param template: default ``{key}``
    :param model: model id
    :param date: what ``{date}`` stands for
    :param seed: seed of the result, if it is known
    :param request_id: the server's id of the job
    """

    key: str
    template: str = DEFAULT_TEMPLATE
    model: str = ""
    date: date | None = None
    seed: int | None = None
    request_id: str = ""

    def check(self) -> None:
        """
        Check what can be checked before there are any files.

        :raises FalInputError: the key is no plain file name, or the template leads nowhere
        """
        if not is_plain_name(self.key):
            raise error_of(bad_input(f"key: a plain file name is needed, not {self.key!r}."))
        try:
            check_template(self.template)
            self.of(0, 1, where="images[0]", sha256="0" * 64)
        except ValueError as error:
            raise error_of(bad_input(f"The name of a landed file: {error}.")) from error

    def check_ahead(self) -> None:
        """
        Check before there is a result that any one may be named, whether it brings a seed or not.

        :raises FalInputError: as :meth:`check`
        """
        for seed in (None, _LONG_SEED):
            replace(self, seed=seed, request_id=_LONG_ID).check()

    def of(self, index: int, count: int, *, where: str, sha256: str) -> str:
        """
        Return the path of one file below the destination, without its suffix.

        :param index: which of the result's files, from 0
        :param count: how many files the result has
        :param where: the file's place in the result
        :param sha256: hash of its bytes
        :raises ValueError: if that is no path below a folder
        """
        fields = {
            "key": _NOT_IN_A_NAME.sub("-", self.key),
            "model": _plain(self.model),
            "date": self.date,
            "seed": "none" if self.seed is None else self.seed,
            "request_id": _plain(self.request_id),
            "index": index,
            "where": _plain(where.replace("[", "-").replace("]", "").replace(".", "-")),
            "hash": sha256[:HASH_LENGTH],
        }
        used = _fields_of(self.template)
        if "date" in used and self.date is None:
            raise ValueError(f"the template {self.template!r} names a date, and there is none")
        path = _FORMATTER.vformat(self.template, (), fields)
        if not all(is_plain_name(segment) for segment in path.split("/")):
            raise ValueError(
                f"the template {self.template!r} makes {path[:300]!r}, which is no name of a file"
            )
        return path if count == 1 or used & _TELLS_FILES_APART else f"{path}-{index}"


def check_template(template: object) -> None:
    """
    Check a template without knowing a result.

    :raises ValueError: if it names an unknown field, leads elsewhere, or gives two results one name
    """
    if not isinstance(template, str):
        raise ValueError(f"a template is a text, not {type(template).__name__}")
    used = _fields_of(template)
    if unknown := used - set(FIELDS):
        raise ValueError(
            f"the template {template!r} has the unknown field {', '.join(sorted(unknown))}; "
            f"there are {', '.join(FIELDS)}"
        )
    if not used & _TELLS_RESULTS_APART:
        raise ValueError(
            f"the template {template!r} gives every result the same name; use {{key}}, {{request_id}} or {{hash}}"
        )
    path = _FORMATTER.vformat(template, (), FIELDS)
    if not all(is_plain_name(segment) for segment in path.split("/")):
        raise ValueError(f"the template {template!r} makes {path[:300]!r}, which is no name of a file")


def _fields_of(template: str) -> set[str]:
    """Return the names in a template; those that reach into a value, or convert it, are refused."""
    found = set()
    try:
        pieces = list(_FORMATTER.parse(template))
    except ValueError as error:
        raise ValueError(f"the template {template!r} is none: {error}") from error
    for _, name, spec, conversion in pieces:
        if name is None:
            continue
        # A long number in a specification would make a name of that length.
        if conversion or not name.isidentifier() or "{" in (spec or "") or len(spec or "") > 30:
            raise ValueError(f"the template {template!r} has a field that is none: {{{name}}}")
        if re.search(r"\d{4}", spec or ""):
            raise ValueError(f"the template {template!r} asks for a field of that many characters")
        found.add(name)
    return found


def _plain(text: str) -> str:
    return _NOT_IN_A_NAME.sub("-", text).strip(" -.")
