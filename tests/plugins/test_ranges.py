"""Byte ranges as browsers send them, and as attackers do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.plugins.gallery.ranges import ByteRange, Unsatisfiable, read_range


@pytest.mark.parametrize(
    ("header", "span"),
    [
        ("bytes=0-", ByteRange(0, 99)),
        ("bytes=0-0", ByteRange(0, 0)),
        ("bytes=10-19", ByteRange(10, 19)),
        ("bytes=90-1000", ByteRange(90, 99)),
        ("bytes=0-99999999999999999999", ByteRange(0, 99)),
        ("bytes=-10", ByteRange(90, 99)),
        ("bytes=-1000", ByteRange(0, 99)),
        (" bytes=1-2 ", ByteRange(1, 2)),
    ],
)
def test_one_range_is_read(header: str, span: ByteRange) -> None:
    assert read_range(header, 100) == span


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes=-",
        "bytes=a-b",
        "bytes=5-2",
        "bytes=0-1,5-9",
        "items=0-1",
        "bytes=0-" + "9" * 5000,
        "bytes=" + "0-0," * 100_000,
        "bytes=+1-2",
        "bytes=٣-٤",
    ],
)
def test_what_is_no_single_range_means_the_whole_file(header: str | None) -> None:
    assert read_range(header, 100) is None


@pytest.mark.parametrize(
    ("header", "size"), [("bytes=100-", 100), ("bytes=0-", 0), ("bytes=-0", 9), ("bytes=-5", 0)]
)
def test_a_range_without_a_byte_of_the_file_is_unsatisfiable(header: str, size: int) -> None:
    with pytest.raises(Unsatisfiable):
        read_range(header, size)


def test_a_span_says_where_it_is() -> None:
    assert ByteRange(10, 19).of(100) == "bytes 10-19/100"
    assert ByteRange(10, 19).length == 10


@given(st.text(max_size=40) | st.from_regex(r"bytes=\d*-\d*", fullmatch=True), st.integers(0, 10**12))
def test_a_span_is_never_outside_the_file(header: str, size: int) -> None:
    try:
        span = read_range(header, size)
    except Unsatisfiable:
        return
    assert span is None or 0 <= span.first <= span.last < size
