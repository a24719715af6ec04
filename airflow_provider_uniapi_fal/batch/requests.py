"""The rows of a batch: where they come from, what is in them, and what is wrong with them."""

from __future__ import annotations

import csv
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
from airflow_provider_uniapi_fal.ledger.record import fingerprint
from airflow_provider_uniapi_fal.protocol.arguments import schema_problems
from airflow_provider_uniapi_fal.protocol.dialects import DIALECTS, dialect_named
from airflow_provider_uniapi_fal.protocol.errors import bad_input

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.hooks.fal import FalHook

#: Fields of a row that are no metadata.
FIELDS = ("key", "model", "dialect", "arguments")

#: Files of rows, by their suffix.
FILES = (".jsonl", ".ndjson", ".csv", ".parquet")

#: So many rows are named in an error or in the log; the others are counted.
MAX_NAMED = 20


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


def read_rows(requests: object, *, conn_id: str | None = None) -> list[Mapping[str, Any]]:
    """
    Return the rows of a list or of a file in storage, as they are.

    :param requests: a list of mappings, or the path of a file: JSON Lines (``.jsonl``, ``.ndjson``), CSV
        (``.csv``) or Parquet (``.parquet``)
    :param conn_id: Airflow connection of the storage
    :raises FalInputError: if it is neither, or cannot be read; nothing was submitted
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
) -> list[Row]:
    """
    Return the rows of a batch, or name all wrong ones at once.

    :param model: for rows that name none
    :param dialect: for rows that name none
    :param schema: JSON Schema for the arguments of rows that name no model
    :param check_name: raises if the files of a row cannot be named
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
        more = f"; and {len(problems) - MAX_NAMED} more" if len(problems) > MAX_NAMED else ""
        listed = "; ".join(problems[:MAX_NAMED])
        raise error_of(
            bad_input(
                f"requests: {len(problems)} problems in {len(rows)} rows: {listed}{more}.",
                "Nothing was submitted. Correct these rows.",
            )
        )
    return good


def _row(
    given: object, index: int, hook: FalHook, model: str | None, dialect: str
) -> tuple[Row | None, list[str]]:
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
    metadata = {str(name): value for name, value in given.items() if name not in FIELDS}
    try:
        json.dumps(metadata, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return None, [f"{where}: half of a surrogate pair is in its metadata"]
    except (TypeError, ValueError):
        return None, [f"{where}: its metadata has no form in JSON"]
    row = Row(
        key=key,
        index=index,
        model=str(asked),
        dialect=speaks,
        fal_conn_id=hook.fal_conn_id,
        arguments=given["arguments"],
        metadata=metadata,
        keyed=named is not None,
    )
    return row, []


def _read_file(where: str | ObjectStoragePath, conn_id: str | None) -> list[Mapping[str, Any]]:
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
        if suffix == ".parquet":
            rows = _parquet(path)
        else:
            text = path.read_text(encoding="utf-8-sig")
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


def _json_lines(text: str) -> list[Mapping[str, Any]]:
    rows = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            rows.append(json.loads(line))
        except ValueError:
            # The parser's own message would quote the line.
            raise ValueError(f"line {number} is no JSON") from None
    return rows


def _csv(text: str) -> list[Mapping[str, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    try:
        rows = list(reader)
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error
    if any(None in row or None in row.values() for row in rows):
        raise ValueError("a line has more or fewer cells than the heading")
    return [_from_columns({name: cell for name, cell in row.items() if cell != ""}) for row in rows]


def _parquet(path: ObjectStoragePath) -> list[Mapping[str, Any]]:
    try:
        from pyarrow import parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise error_of(
            bad_input(
                "requests: reading Parquet needs pyarrow.",
                "pip install 'airflow-provider-uniapi-fal[parquet]'",
            )
        ) from error
    with path.open("rb") as reader:
        rows = parquet.read_table(reader).to_pylist()
    return [_from_columns({name: cell for name, cell in row.items() if cell is not None}) for row in rows]


def _from_columns(cells: Mapping[str, Any]) -> dict[str, Any]:
    """
    Return a row from the columns of a table.

    With a column ``arguments`` (JSON text, or a struct), all others but key, model and dialect are metadata.
    Without one, they are arguments, except ``metadata.<name>``. A column ``<name>:json`` holds JSON, so that a
    number in a text file is a number; without that, a text stays a text.
    """
    row: dict[str, Any] = {name: cells[name] for name in ("key", "model", "dialect") if name in cells}
    rest = {name: cell for name, cell in cells.items() if name not in row}
    if "arguments" in rest:
        arguments = rest.pop("arguments")
        row["arguments"] = json.loads(arguments) if isinstance(arguments, str) else arguments
        return {**row, **_typed(rest)}
    prefix = "metadata."
    row["arguments"] = _typed({name: cell for name, cell in rest.items() if not name.startswith(prefix)})
    metadata = {name[len(prefix) :]: cell for name, cell in rest.items() if name.startswith(prefix)}
    return {**_typed(metadata), **row}


def _typed(cells: Mapping[str, Any]) -> dict[str, Any]:
    suffix = ":json"
    return {
        name.removesuffix(suffix): json.loads(cell) if name.endswith(suffix) else cell
        for name, cell in cells.items()
    }
