"""The rows of a batch: where they come from, what is in them, and what is wrong with them."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal.exceptions import FalInputError, error_of
from airflow_provider_uniapi_fal.landing.inputs import input_problems, unread
from airflow_provider_uniapi_fal.ledger.record import fingerprint
from airflow_provider_uniapi_fal.protocol.arguments import as_json, schema_problems
from airflow_provider_uniapi_fal.protocol.dialects import DIALECTS, dialect_named
from airflow_provider_uniapi_fal.protocol.errors import bad_input

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.hooks.fal import FalHook

#: Fields of a row that are no metadata.
FIELDS = ("key", "model", "dialect", "arguments")

#: Files of rows, by their suffix.
FILES = (".jsonl", ".ndjson", ".csv", ".parquet")

#: How the name of a column begins that is metadata beside arguments, and ends if its cells are JSON.
METADATA = "metadata."
JSON = ":json"

#: So many rows are named in an error, and so many warned of in the log.
MAX_NAMED = 20

#: So much of a column's name is shown: without a heading, it is somebody's prompt.
MAX_SHOWN = 60


@dataclass(frozen=True)
class Row:
    """
    One request of a batch.

    :param key: the user's name for it, unique in the batch
    :param index: its place in the table, from 0
    :param fal_conn_id: connection that submits it
    :param metadata: what else the table says of it; travels to the manifest
    :param keyed: the table gave the key; else it is the place
    """

    key: str
    index: int
    model: str
    dialect: str
    fal_conn_id: str
    arguments: Mapping[str, Any]
    metadata: Mapping[str, Any] = field(default_factory=dict)
    keyed: bool = True

    @cached_property
    def fingerprint(self) -> str:
        """Hash of what is asked for."""
        model = dialect_named(self.dialect).model_id(self.model)
        return fingerprint(model, self.arguments, self.fal_conn_id, dialect=self.dialect)

    @cached_property
    def arguments_sha256(self) -> str:
        """Hash of the arguments, as the manifest has it."""
        text = json.dumps(self.arguments, sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()


@dataclass(frozen=True)
class UnreadableRow:
    """
    What stands for a row of a file that cannot be read.

    :param problems: what is wrong with it, and where in the file
    """

    problems: tuple[str, ...]


GivenRow = Mapping[str, Any] | UnreadableRow


def read_rows(requests: object, *, conn_id: str | None = None) -> list[GivenRow]:
    """
    Return the rows of a list or of a file in storage, as they are.

    A row that cannot be read is an :class:`UnreadableRow`, so that :func:`checked_rows` names it with all others.

    :param requests: a list of mappings, or the path of a file: JSON Lines (``.jsonl``, ``.ndjson``), CSV
        (``.csv``) or Parquet (``.parquet``)
    :param conn_id: Airflow connection of the storage
    :raises FalInputError: if it is neither, or no table; nothing was submitted
    :raises FalProtocolError: if storage does not give it now; nothing was submitted
    """
    if isinstance(requests, (str, ObjectStoragePath)):
        return _read_file(requests, conn_id)
    if isinstance(requests, Mapping) or not isinstance(requests, Iterable):
        raise error_of(bad_input(f"requests: a list of rows is needed, not {type(requests).__name__}."))
    return list(requests)


def checked_rows(
    rows: Sequence[object],
    hook: FalHook,
    *,
    model: str | None,
    dialect: str = "fal",
    schema: Mapping[str, Any] | None = None,
    check_name: Callable[[Row], None],
    say: Callable[[str], None],
) -> list[Row]:
    """
    Return the rows of a batch, or name all wrong ones at once.

    :param model: for rows that name none
    :param dialect: for rows that name none
    :param schema: JSON Schema for the arguments of rows that name no model
    :param check_name: raises if the files of a row cannot be named
    :param say: takes each line for the log, which names those wrong ones that are too many for an error
    :raises FalInputError: if any row is wrong; nothing was submitted
    """
    good: list[Row] = []
    problems: list[str] = []
    for index, given in enumerate(rows):
        row, wrong = _row(given, index, hook, model, dialect)
        problems += wrong
        if row is not None:
            if schema is not None and isinstance(given, Mapping) and given.get("model") is None:
                problems += schema_problems(schema, row.arguments, f"row {row.key!r}: arguments")
            good.append(row)
            try:
                check_name(row)
            except FalInputError as error:
                problems.append(f"row {row.key!r}: {error.failure.what}")
    twice = [key for key, count in Counter(row.key for row in good).items() if count > 1]
    problems += [f"row {key!r}: the key is there more than once" for key in twice]
    if problems:
        raise error_of(
            bad_input(
                f"requests: {len(problems)} problems in {len(rows)} rows: {named(problems, say)}.",
                "Nothing was submitted. Correct these rows.",
            )
        )
    return good


def named(problems: Sequence[str], say: Callable[[str], None]) -> str:
    """
    Return problems as one text for an error: some of many, while the log is told all the others.

    :param say: takes each line for the log
    """
    others = problems[MAX_NAMED:]
    for problem in others:
        say(f"Also wrong: {problem}.")
    more = f"; and {len(others)} more, which the log names" if others else ""
    return "; ".join(problems[:MAX_NAMED]) + more


def _row(
    given: object, index: int, hook: FalHook, model: str | None, dialect: str
) -> tuple[Row | None, list[str]]:
    if isinstance(given, UnreadableRow):
        return None, list(given.problems)
    if not isinstance(given, Mapping):
        return None, [f"row {index}: a mapping with 'arguments' is needed, not {type(given).__name__}"]
    named = given.get("key")
    key = str(index) if named is None else named
    where = f"row {index}" if named is None else f"row {index} ({named!r})"
    if not isinstance(key, str) or not key.strip():
        return None, [f"{where}: the key must be a text that is not empty"]
    speaks = dialect if given.get("dialect") is None else given["dialect"]
    if speaks not in DIALECTS:
        return None, [f"{where}: there is no dialect {speaks!r}; there are {', '.join(DIALECTS)}"]
    asked = model if given.get("model") is None else given["model"]
    if "arguments" not in given:
        return None, [f"{where}: it has no 'arguments'"]
    try:
        hook.prepare(asked, given["arguments"], dialect=speaks)
    except FalInputError as error:
        return None, [f"{where}: {error.failure.what}"]
    arguments = as_json(given["arguments"])
    metadata = {str(name): value for name, value in given.items() if name not in FIELDS}
    problems = [
        f"{where}: {wrong}" for wrong in input_problems(arguments, dialect_named(speaks).media_inputs)
    ]
    # What cannot be written into the manifest must be known before anything is paid for.
    parts = {"key": key, "arguments": arguments, "metadata": metadata}
    problems += [f"{where}: {wrong}" for name, part in parts.items() if (wrong := _unwritable(name, part))]
    if problems:
        return None, problems
    row = Row(
        key=key,
        index=index,
        model=str(asked),
        dialect=speaks,
        fal_conn_id=hook.fal_conn_id,
        arguments=arguments,
        metadata=metadata,
        keyed=named is not None,
    )
    return row, []


def _unwritable(name: str, value: Any) -> str | None:
    """Return what keeps a part of a row from being written as JSON that others can read, or None."""
    try:
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return f"half of a surrogate pair is in its {name}"
    except (TypeError, ValueError):
        return f"its {name} has no form in JSON"
    return None


def _read_file(where: str | ObjectStoragePath, conn_id: str | None) -> list[GivenRow]:
    suffix = PurePosixPath(str(where)).suffix.lower()
    if suffix not in FILES:
        raise error_of(
            bad_input(
                "requests: a list of rows is needed, or the path of a file that ends in "
                f"{', '.join(FILES)}, not another text."
            )
        )
    path = ObjectStoragePath(where, conn_id=conn_id) if isinstance(where, str) else where
    try:
        content = path.read_bytes()
    except Exception as error:
        why = f"{path} cannot be read as a table of rows ({type(error).__name__}: {error})"
        raise unread("requests:", why, error) from error
    try:
        if suffix == ".parquet":
            rows = _parquet(content)
        else:
            text = io.TextIOWrapper(io.BytesIO(content), encoding="utf-8-sig").read()
            rows = _csv(text) if suffix == ".csv" else _json_lines(text)
    except (OSError, ValueError) as error:
        raise error_of(
            bad_input(
                f"requests: {path} cannot be read as a table of rows ({type(error).__name__}: {error})."
            )
        ) from error
    return [_with_files_beside(row, path.parent) for row in rows]


def _with_files_beside(row: Any, folder: ObjectStoragePath) -> Any:
    """Return a row in which each input that is a bare path is the path of a file beside the table."""
    if not isinstance(row, Mapping) or not isinstance(row.get("arguments"), Mapping):
        return row
    arguments = {name: _beside(name, value, folder) for name, value in row["arguments"].items()}
    return {**row, "arguments": arguments}


def _beside(name: str, value: Any, folder: ObjectStoragePath) -> Any:
    if name.endswith("_urls") and isinstance(value, (list, tuple)):
        return [_beside("_url", item, folder) for item in value]
    if name.endswith("_url") and isinstance(value, str) and value and ":" not in value:
        return str(folder / value)
    return value


def _json_lines(text: str) -> list[GivenRow]:
    rows: list[GivenRow] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except (ValueError, RecursionError):
            # The parser's own message would quote the line.
            rows.append(UnreadableRow((f"line {number} is no JSON",)))
    return rows


def _csv(text: str) -> list[GivenRow]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    rows: list[GivenRow] = []
    try:
        heading = next(reader, [])
        _check_columns(heading, foreign=";\t")
        line = reader.line_num + 1
        for cells in reader:
            if cells and not any(cells):
                rows.append(UnreadableRow((f"line {line} has empty cells only",)))
            elif len(cells) == len(heading):
                given = {name: cell for name, cell in zip(heading, cells, strict=True) if cell != ""}
                rows.append(_from_columns(given, f"line {line}"))
            elif cells:
                problem = f"line {line} has {len(cells)} cells, and the heading has {len(heading)}"
                rows.append(UnreadableRow((problem,)))
            # A cell can hold line breaks: the next row begins after the last line of this one.
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error
    return rows


def _parquet(content: bytes) -> list[GivenRow]:
    try:
        import pyarrow  # type: ignore[import-untyped]
        from pyarrow import parquet
    except ImportError as error:
        raise error_of(
            bad_input(
                "requests: reading Parquet needs pyarrow.",
                "pip install 'airflow-provider-uniapi-fal[parquet]'",
            )
        ) from error
    # No Python object is read through, and no thread started: either can end the process with an abort, or
    # not at all, once the interpreter is gone (apache/arrow issues 34314, 33975, 50482).
    table = parquet.ParquetFile(pyarrow.BufferReader(content)).read(use_threads=False)
    _check_columns(table.column_names)
    rows: list[GivenRow] = []
    for index, cells in enumerate(table.to_pylist()):
        given = {name: cell for name, cell in cells.items() if cell is not None}
        place = f"row {index}"
        rows.append(
            _from_columns(given, place) if given else UnreadableRow((f"{place} has empty cells only",))
        )
    return rows


def _check_columns(names: Sequence[str], *, foreign: str = "") -> None:
    """
    Refuse a heading that is not what it was meant to be: each row would be paid for without what it names.

    :param foreign: what separates cells in tables of another form, and so is in no name here
    """
    bare = [name.removesuffix(JSON) for name in names]
    problems = [f"column {column} has no name" for column, name in enumerate(bare, 1) if not name.strip()]
    for name, count in Counter(filter(str.strip, bare)).items():
        shown = repr(name[:MAX_SHOWN])
        plain = name.strip().lower()
        if count > 1:
            problems.append(f"the column {shown} is there {count} times")
        if any(mark in name for mark in foreign):
            problems.append(f"the column {shown} holds a semicolon or a tab; cells are separated by commas")
        elif name != name.strip():
            problems.append(f"the column {shown} has blanks around its name")
        elif plain in FIELDS and (name not in FIELDS or name + JSON in names):
            problems.append(f"a column {plain!r} is written so, in small letters and without {JSON!r}")
        elif plain.startswith(METADATA) and (name == METADATA or not name.startswith(METADATA)):
            problems.append(f"the column {shown} is written {METADATA + '<name>'!r}")
    if problems:
        raise ValueError(f"in the heading {'; '.join(problems)}")


def _from_columns(cells: Mapping[str, Any], where: str) -> dict[str, Any] | UnreadableRow:
    """
    Return a row from the columns of a table.

    With a column ``arguments`` (JSON text, or a struct), all others but key, model and dialect are metadata.
    Without one, they are arguments, except ``metadata.<name>``. A column ``<name>:json`` holds JSON, so that a
    number in a text file is a number; without that, a text stays a text.
    """
    values: dict[str, Any] = {}
    problems = []
    for name, cell in cells.items():
        if name.endswith(JSON) or (name == "arguments" and isinstance(cell, str)):
            try:
                values[name.removesuffix(JSON)] = json.loads(cell)
            except (TypeError, ValueError, RecursionError):
                # As for a line: the parser's own message tells a place in the cell only.
                problems.append(f"{where}: the cell in the column {name!r} is no JSON")
        else:
            values[name] = cell
    if problems:
        return UnreadableRow(tuple(problems))
    row = {name: values.pop(name) for name in FIELDS if name in values}
    if "arguments" in row:
        return {**values, **row}
    arguments = {name: value for name, value in values.items() if not name.startswith(METADATA)}
    metadata = {
        name.removeprefix(METADATA): value for name, value in values.items() if name.startswith(METADATA)
    }
    return {**metadata, **row, "arguments": arguments}
