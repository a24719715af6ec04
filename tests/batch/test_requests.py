"""Rows from a list, JSON Lines, CSV and Parquet come to the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa  # type: ignore[import-untyped]
import pytest
from airflow.sdk import ObjectStoragePath
from pyarrow import parquet

from airflow_provider_uniapi_fal.batch.requests import Row, checked_rows, read_rows
from airflow_provider_uniapi_fal.exceptions import FalInputError
from airflow_provider_uniapi_fal.hooks.fal import FalHook

if TYPE_CHECKING:
    from tests.fakes import Start

ROWS: list[dict[str, Any]] = [
    {
        "key": "harbour",
        "model": "flux/dev",
        "arguments": {"prompt": 'A harbour, at "dawn"\nand 1984', "num_images": 2, "seed": 7},
        "campaign": "spring",
    },
    {"key": "港口", "arguments": {"prompt": "黎明的港口\u2028在海边", "seed": 8}},
]


#: A folder with an entry for each thread of the process that looks.
THREADS = Path("/proc/self/task")


def written(place: str, name: str, content: bytes) -> str:
    path = ObjectStoragePath(place) / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def test_json_lines(place: str) -> None:
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS) + "\n"
    for name in ("rows.jsonl", "rows.ndjson", "ROWS.JSONL"):
        assert read_rows(written(place, name, text.encode())) == ROWS


def test_csv_with_a_column_for_each_argument(place: str) -> None:
    text = (
        "key,model,prompt,num_images:json,seed:json,metadata.campaign\r\n"
        'harbour,flux/dev,"A harbour, at ""dawn""\nand 1984",2,7,spring\r\n'
        "港口,,黎明的港口\u2028在海边,,8,\r\n"
    )
    assert read_rows(written(place, "rows.csv", ("\ufeff" + text).encode())) == ROWS


def test_csv_with_a_column_of_arguments(place: str) -> None:
    text = 'key,arguments,shot:json,note\none,"{""prompt"": ""x"", ""seed"": 3}",7,1984\n'
    assert read_rows(written(place, "rows.csv", text.encode())) == [
        {"key": "one", "arguments": {"prompt": "x", "seed": 3}, "shot": 7, "note": "1984"}
    ]


def test_a_number_in_a_text_file_stays_a_text_unless_the_heading_says_json(place: str) -> None:
    row: Any
    [row] = read_rows(written(place, "rows.csv", b"prompt,steps:json\n1984,28\n"))
    assert row["arguments"] == {"prompt": "1984", "steps": 28}


def test_parquet(place: str, tmp_path: Path) -> None:
    table = pa.table(
        {
            "key": ["harbour", "港口"],
            "model": ["flux/dev", None],
            "prompt": [row["arguments"]["prompt"] for row in ROWS],
            "num_images": [2, None],
            "seed": [7, 8],
            "metadata.campaign": ["spring", None],
        }
    )
    parquet.write_table(table, tmp_path / "rows.parquet")
    assert read_rows(written(place, "rows.parquet", (tmp_path / "rows.parquet").read_bytes())) == ROWS


def checked(rows: list[Any]) -> list[Row]:
    return checked_rows(rows, FalHook(), model="flux/dev", check_name=lambda row: None, say=lambda line: None)


@pytest.mark.skipif(not THREADS.exists(), reason="threads are counted in Linux's /proc")
def test_reading_parquet_starts_no_thread_that_could_abort_the_process_at_its_end(tmp_path: Path) -> None:
    table = pa.table({"key": [str(n) for n in range(1000)], "prompt": ["x"] * 1000})
    parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=100)
    (tmp_path / "rows.csv").write_text("key,prompt\none,x\n")
    code = f"""
import os
import pyarrow.parquet
from airflow_provider_uniapi_fal.batch.requests import read_rows

def after(name):
    rows = read_rows({tmp_path.as_uri()!r} + "/" + name)
    return len(rows), len(os.listdir({str(THREADS)!r}))

(_, before), (rows, threads) = after("rows.csv"), after("rows.parquet")
print(rows, threads - before)
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split()[-2:] == ["1000", "0"]


def test_an_input_that_is_a_bare_path_is_a_file_beside_the_table(place: str) -> None:
    given = {
        "image_url": "in/start.png",
        "mask_url": "https://x/y.png",
        "ref_image_urls": ["a.png", "data:,"],
    }
    text = json.dumps({"arguments": given})
    row: Any
    [row] = read_rows(written(place, "tables/rows.jsonl", text.encode()))
    assert row["arguments"] == {
        "image_url": f"{place}/tables/in/start.png",
        "mask_url": "https://x/y.png",
        "ref_image_urls": [f"{place}/tables/a.png", "data:,"],
    }


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("rows.jsonl", b"\xff\xfe", "UnicodeDecodeError"),
        ("rows.csv", b'prompt,seed\none,2\n"a secret,"7"\n', "line 3: "),
        ("rows.parquet", b"PAR1 it is not", "cannot be read"),
        ("rows.parquet", b"PAR1" + bytes(64) + b"PAR1", "cannot be read"),
    ],
)
def test_a_file_that_is_no_table_is_refused_without_quoting_it(
    place: str, name: str, content: bytes, words: str
) -> None:
    with pytest.raises(FalInputError, match=words) as raised:
        read_rows(written(place, name, content))
    assert "secret" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "text", "wrong"),
    [
        (
            "rows.jsonl",
            '{"a secret\n{"key": "good", "arguments": {}}\n\n{"key": 7, "arguments": {}}\n{]',
            ["line 1 is no JSON", "row 2 (7): the key must be a text", "line 5 is no JSON"],
        ),
        (
            "rows.csv",
            """key,prompt,seed:json,metadata.shot:json
a,x,a secret,a secret
" ","a text
of two lines",7,

b,x
"c","of
two lines",8,,a secret
d,x,9,1
e,x,{,
,,,
""",
            [
                "line 2: the cell in the column 'seed:json' is no JSON",
                "line 2: the cell in the column 'metadata.shot:json' is no JSON",
                "row 1 (' '): the key must be a text",
                "line 6 has 2 cells, and the heading has 4",
                "line 7 has 5 cells, and the heading has 4",
                "line 10: the cell in the column 'seed:json' is no JSON",
                "line 11 has empty cells only",
            ],
        ),
        (
            "rows.csv",
            'key,arguments,note\na,a secret,\nb,"{""prompt"": ""x""}",\nc,7,\n',
            [
                "line 2: the cell in the column 'arguments' is no JSON",
                "row 2 ('c'): Refused before anything was sent: arguments",
            ],
        ),
    ],
)
def test_every_wrong_row_of_a_file_is_named_by_its_line_and_column_beside_all_others(
    start: Start, place: str, name: str, text: str, wrong: list[str]
) -> None:
    start()
    rows = read_rows(written(place, name, text.encode()))
    with pytest.raises(FalInputError, match=f"{len(wrong)} problems in {len(rows)} rows") as raised:
        checked(rows)
    said = str(raised.value)
    assert [problem for problem in wrong if problem not in said] == []
    assert "secret" not in said


def test_a_cell_of_parquet_that_is_no_json_is_named_by_its_row(
    start: Start, place: str, tmp_path: Path
) -> None:
    start()
    parquet.write_table(
        pa.table({"prompt": ["x"] * 3, "a:json": ["1", "{", "3"], "b:json": [None, 1, None]}),
        tmp_path / "rows.parquet",
    )
    rows = read_rows(written(place, "rows.parquet", (tmp_path / "rows.parquet").read_bytes()))
    with pytest.raises(FalInputError, match="2 problems in 3 rows") as raised:
        checked(rows)
    for column in ("a:json", "b:json"):
        assert f"row 1: the cell in the column {column!r} is no JSON" in str(raised.value)


@pytest.mark.parametrize(
    ("heading", "words"),
    [
        ("key;prompt;num_images", "'key;prompt;num_images' holds a semicolon or a tab"),
        ("key\tprompt", "holds a semicolon or a tab"),
        ("key,prompt,prompt", "'prompt' is there 2 times"),
        ("key,seed,seed:json", "'seed' is there 2 times"),
        ("key, prompt", "' prompt' has blanks around its name"),
        ("key,prompt ,num_images", "'prompt ' has blanks around its name"),
        ("Key,prompt", "a column 'key' is written so"),
        ("key,MODEL,prompt", "a column 'model' is written so"),
        ("key,Arguments", "a column 'arguments' is written so"),
        ("key,arguments:json", "a column 'arguments' is written so"),
        ("key,prompt,Metadata.shot", "'Metadata.shot' is written 'metadata.<name>'"),
        ("key,prompt,metadata.", "'metadata.' is written 'metadata.<name>'"),
        ("key,prompt,", "column 3 has no name"),
        ("key,,prompt, ", "column 2 has no name; column 4 has no name"),
        ("key,prompt,:json", "column 3 has no name"),
    ],
)
def test_a_heading_that_would_be_paid_for_wrongly_is_refused(place: str, heading: str, words: str) -> None:
    cells = ",".join("1" * len(heading.split(",")))
    with pytest.raises(FalInputError, match="in the heading ") as raised:
        read_rows(written(place, "rows.csv", f"{heading}\n{cells}\n".encode()))
    assert words in str(raised.value)


def test_all_that_is_wrong_in_a_heading_is_named_at_once_and_no_long_text_is_quoted(place: str) -> None:
    heading = f"Key,prompt,prompt,{'a long prompt; ' * 9}and a secret"
    with pytest.raises(FalInputError, match=r"'key' .*'prompt' is there 2 times.*semicolon") as raised:
        read_rows(written(place, "rows.csv", f"{heading}\na,b,c,d\n".encode()))
    assert "secret" not in str(raised.value)


def test_the_columns_of_parquet_are_checked_as_a_heading_is(place: str, tmp_path: Path) -> None:
    parquet.write_table(pa.table({"Key": ["one"], "prompt": ["x"]}), tmp_path / "rows.parquet")
    with pytest.raises(FalInputError, match="a column 'key' is written so"):
        read_rows(written(place, "rows.parquet", (tmp_path / "rows.parquet").read_bytes()))
    # There are no separators in it, so any mark may be in a name.
    table = pa.table({"key": ["one"], "arguments": ['{"prompt": "x"}'], "cost; EUR": ["2"]})
    parquet.write_table(table, tmp_path / "rows.parquet")
    row: Any
    [row] = read_rows(written(place, "rows.parquet", (tmp_path / "rows.parquet").read_bytes()))
    assert row["cost; EUR"] == "2"


def test_a_row_of_parquet_that_has_empty_cells_only_is_no_job_without_arguments(
    place: str, tmp_path: Path
) -> None:
    parquet.write_table(pa.table({"key": ["one", None], "prompt": ["x", None]}), tmp_path / "rows.parquet")
    rows = read_rows(written(place, "rows.parquet", (tmp_path / "rows.parquet").read_bytes()))
    with pytest.raises(FalInputError, match="row 1 has empty cells only"):
        checked(rows)


@pytest.mark.parametrize("given", ["a prompt", "s3://bucket/rows.txt", {"arguments": {}}, 7, None])
def test_what_is_no_list_and_no_file_is_refused(given: Any) -> None:
    with pytest.raises(FalInputError, match="a list of rows is needed"):
        read_rows(given)
