"""Bodies as gateways and the proxies before them really send them."""

from __future__ import annotations

import codecs
import gzip
import json
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.protocol.messages import (
    EXCERPT_CHARS,
    HttpReply,
    Unreadable,
    excerpt,
    read_json,
)

VALUE = {"status": "IN_QUEUE", "note": "當前 déjà"}
TEXT = json.dumps(VALUE, ensure_ascii=False)


def read(body: bytes, content_type: str = "") -> Any:
    return read_json(HttpReply(200, {"content-type": content_type} if content_type else {}, body))


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        pytest.param(TEXT.encode(), "", id="plain"),
        pytest.param(b"\n\n\r\n  " + TEXT.encode() + b"\n\n", "", id="heartbeat"),
        pytest.param(codecs.BOM_UTF8 + TEXT.encode(), "", id="BOM"),
        pytest.param(b"\n\n" + codecs.BOM_UTF8 + TEXT.encode(), "", id="heartbeat, then BOM"),
        pytest.param(TEXT.encode("utf-16"), "", id="UTF-16 with BOM"),
        pytest.param(TEXT.encode("utf-16-le"), "", id="UTF-16 without BOM"),
        pytest.param(TEXT.encode("utf-32"), "", id="UTF-32"),
        pytest.param(TEXT.encode("gb18030"), "application/json; charset=GB18030", id="GB 18030, declared"),
        pytest.param(TEXT.encode("gb18030"), 'text/html;Charset="gb18030"', id="declared in other letters"),
        pytest.param(TEXT.encode(), "text/plain; charset=iso-8859-1", id="UTF-8 declared as Latin-1"),
        pytest.param(TEXT.encode(), "application/json; charset=utf-16", id="UTF-8 declared as UTF-16"),
        pytest.param(TEXT.encode(), "application/json; charset=undefined", id="charset=undefined"),
        pytest.param(TEXT.encode(), "application/json; charset=base64", id="charset=base64"),
        pytest.param(TEXT.encode(), "application/json; charset=", id="empty charset"),
        pytest.param(TEXT.encode() + b"\0", "", id="trailing NUL"),
    ],
)
def test_json_is_read_however_it_is_dressed(body: bytes, content_type: str) -> None:
    assert read(body, content_type) == VALUE


@pytest.mark.parametrize("encoding", ["latin-1", "gbk", "shift-jis"])
def test_words_are_read_even_in_an_undeclared_charset(encoding: str) -> None:
    body = '{"status": "COMPLETED", "note": "§"}'.encode(encoding)
    assert read(body)["status"] == "COMPLETED"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\n\n\n",
        codecs.BOM_UTF8,
        b"<html><h1>502 Bad Gateway</h1></html>",
        b"error",
        b'{"status": "IN_QU',
        gzip.compress(b"{}", mtime=0),
        b"\xff\xfe\xfd\xfc\xfb",
        b"[" * 100_000 + b"]" * 100_000,
        b'{"a":' * 100_000,
        b"1" * 10_000,
    ],
    ids=lambda body: repr(body[:12]),
)
def test_what_is_no_json_is_unreadable_and_no_error(body: bytes) -> None:
    found = read(body)
    assert isinstance(found, Unreadable)
    assert len(found.excerpt) <= EXCERPT_CHARS


@pytest.mark.parametrize("depth", [90, 300, 900, 950, 970, 980, 985, 990, 995, 1100, 3000])
def test_nesting_that_json_still_reads_does_not_break_what_walks_it(depth: int) -> None:
    from airflow_provider_uniapi_fal.protocol.job import without_data_uris
    from tests.protocol.values import DIALECT, HANDLE

    nested = HttpReply(200, {}, b'{"a":' * depth + b"1" + b"}" * depth)
    found = DIALECT.read_result(HANDLE, nested, 0.0)
    without_data_uris(getattr(found, "data", None))


def test_numbers_that_are_no_json_become_null_because_databases_refuse_them() -> None:
    assert read(b'{"a": NaN, "b": [Infinity, -Infinity]}') == {"a": None, "b": [None, None]}


def test_half_a_surrogate_pair_is_replaced_because_nothing_can_write_it() -> None:
    body = rb'{"a\ud83d": ["\udc00b", {"c": "\uD83D\uDE00"}], "d": "\\ud83d"}'
    assert read(body) == {"a\ufffd": ["\ufffdb", {"c": "\U0001f600"}], "d": "\\ud83d"}
    json.dumps(read(b'{"a": "+2D0-"}', "application/json; charset=utf-7"), ensure_ascii=False).encode()


def test_an_oversized_body_is_unreadable_and_says_so() -> None:
    found = read_json(HttpReply(200, {}, b"", oversized=True))
    assert found == Unreadable("a body too long to read")


@given(st.binary(max_size=200), st.text(max_size=20))
@example(b"{}", "charset=idna")
@example(b"{}", "charset=\0")
@example(b"\xff", "charset=punycode")
@example(b"\\x", "charset=unicode_escape")
def test_no_bytes_and_no_content_type_break_the_reading(body: bytes, content_type: str) -> None:
    read(body, content_type)


@given(
    st.sampled_from([*sorted(set(codecs.__dict__)), "rot13", "zlib", "mbcs", "utf-7", "raw_unicode_escape"])
)
def test_no_declared_charset_breaks_the_reading(charset: str) -> None:
    assert read(b'{"a": 1}', f"application/json; charset={charset}") == {"a": 1}


@given(st.text(max_size=600))
def test_an_excerpt_is_one_short_printable_line(text: str) -> None:
    short = excerpt(text)
    assert len(short) <= EXCERPT_CHARS
    assert short.isprintable()


def test_an_excerpt_shows_that_it_was_cut() -> None:
    assert excerpt("a" * EXCERPT_CHARS) == "a" * EXCERPT_CHARS
    assert excerpt("word " * 100_000).endswith("…")
