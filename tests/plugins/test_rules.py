"""What is on a page, what a browser may show, and the addresses and words of the pages."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_provider_uniapi_fal.landing.files import LandedFile
from airflow_provider_uniapi_fal.landing.manifest import Manifest, RowError
from airflow_provider_uniapi_fal.links.urls import Urls, prefix_below
from airflow_provider_uniapi_fal.plugins.gallery import kinds, words
from airflow_provider_uniapi_fal.plugins.gallery.choosing import Account, Wanted, page_of
from tests.plugins.nights import row

FILE = LandedFile("images[0]", "file:///m/a.png", 3, "ab" * 32, "image/png", 4, 3, False)


def account(*rows: Any) -> Account:
    return Account("land", -1, Manifest(tuple(rows)))


NIGHT = account(
    row("fox", 0, files=(FILE, FILE), arguments={"prompt": "A red FOX"}),
    row("storm", 1, "refused", error=RowError("content_refused", "No storms here.", "no", False)),
    row("sea", 2, "flagged", files=(FILE,), model="kling-video", metadata={"campaign": "Über"}),
)


def keys(**wanted: Any) -> list[str]:
    return [card.row.key for card in page_of([NIGHT], Wanted(**wanted)).cards]


def test_each_file_has_a_card_and_a_row_without_files_has_one_too() -> None:
    page = page_of([NIGHT], Wanted())
    assert [(card.row.key, card.file_number) for card in page.cards] == [
        ("fox", 0),
        ("fox", 1),
        ("storm", None),
        ("sea", 0),
    ]
    assert [card.place for card in page.cards] == ["1/2", "2/2", "", ""]
    assert (page.rows, page.files, page.found, page.pages) == (3, 3, 4, 1)
    assert page.outcomes == {"succeeded": 1, "flagged": 1, "refused": 1}
    assert page.models == ["flux/dev", "kling-video"]


def test_filters_choose_rows() -> None:
    assert keys(outcome="refused") == ["storm"]
    assert keys(model="kling-video") == ["sea"]
    assert keys(text="fox red") == ["fox", "fox"]
    assert keys(text="no storms") == ["storm"]
    assert keys(text="ÜBER") == ["sea"]
    assert keys(text="req-00002") == ["sea"]
    assert keys(text="fox", outcome="flagged") == []


@pytest.mark.parametrize(
    "text", ['"dawn"', 'at "dawn"', "C:\\new\\media", "second", "image_size", "768", "0.5", "true", "ähre"]
)
def test_a_search_finds_what_is_read_in_arguments_and_metadata(text: str) -> None:
    arguments = {
        "prompt": 'A harbour, at "dawn"\nsecond line',
        "image_size": {"width": 768},
        "paths": ["C:\\new\\media"],
    }
    night = account(row("a", 0, arguments=arguments, metadata={"Ähre": 0.5, "good": True}), row("b", 1))
    assert [card.row.key for card in page_of([night], Wanted(text=text)).cards] == ["a"]


def test_filters_leave_the_counts_of_the_whole_night() -> None:
    page = page_of([NIGHT], Wanted(outcome="refused"))
    assert sum(page.outcomes.values()) == page.rows == 3
    assert page.found == 1


def test_pages_cover_every_card_once() -> None:
    night = account(*(row(str(n), n, files=(FILE,)) for n in range(95)))
    first = page_of([night], Wanted(size=30))
    assert (first.pages, first.first, len(first.cards)) == (4, 1, 30)
    seen = [card.row.key for n in range(1, 5) for card in page_of([night], Wanted(size=30, page=n)).cards]
    assert seen == [str(n) for n in range(95)]
    last = page_of([night], Wanted(size=30, page=99))
    assert (last.number, last.first, len(last.cards)) == (4, 91, 5)


def test_an_empty_night_has_one_page() -> None:
    page = page_of([], Wanted(page=7))
    assert (page.number, page.pages, page.first, list(page.cards)) == (1, 1, 0, [])


@pytest.mark.parametrize(
    "query",
    [
        {"page": "0"},
        {"page": "-3"},
        {"page": "x"},
        {"page": "٣"},
        {"page": "9" * 40},
        {"size": "1000000"},
        {"outcome": "<script>"},
    ],
)
def test_a_query_that_makes_no_sense_counts_as_none(query: dict[str, str]) -> None:
    assert Wanted.of(query) == Wanted()


def test_a_query_is_written_as_it_is_read() -> None:
    wanted = Wanted("failed", "flux/dev", "a & b", 3, 120)
    assert Wanted.of({name: str(value) for name, value in wanted.as_query().items()}) == wanted
    assert Wanted().as_query() == {}
    assert wanted.as_query(page=1, outcome="") == {"model": "flux/dev", "text": "a & b", "size": 120}


@pytest.mark.parametrize(
    ("content_type", "kind", "served"),
    [
        ("image/png", "picture", "image/png"),
        ("Image/JPEG; charset=x", "picture", "image/jpeg"),
        ("video/mp4", "video", "video/mp4"),
        ("audio/mpeg", "sound", "audio/mpeg"),
        ("image/svg+xml", "other", "application/octet-stream"),
        ("text/html", "other", "application/octet-stream"),
        ("application/pdf", "other", "application/octet-stream"),
        ("image/png\r\nSet-Cookie: a=b", "other", "application/octet-stream"),
        (None, "other", "application/octet-stream"),
    ],
)
def test_only_kinds_on_the_list_are_shown(content_type: str | None, kind: str, served: str) -> None:
    assert kinds.kind_of(content_type) == kind
    assert kinds.served_as(content_type) == served


def test_a_file_name_cannot_break_out_of_its_header() -> None:
    value = kinds.disposition('a"\r\nX: y; ü.html', inline=False)
    assert value.startswith('attachment; filename="a___X__y')
    assert "\r" not in value
    assert "\n" not in value
    assert value.count('"') == 2
    assert value.isascii()


def test_ids_are_quoted_in_addresses() -> None:
    urls = Urls("/base/fal-media")
    assert (
        urls.task("a b", "scheduled__2026-11-25T02:00:00+00:00", "g.land", 3)
        == "/base/fal-media/dags/a%20b/runs/scheduled__2026-11-25T02%3A00%3A00%2B00%3A00/tasks/g.land/3"
    )
    assert urls.run("a", "../x", text="a&b", page=1).endswith("/runs/..%2Fx?text=a%26b")
    assert urls.item("d", "r", "t", -1, 4, None, "details").endswith("/tasks/t/-1/rows/4/details")
    assert urls.item("d", "r", "t", -1, 4, 0, "media").endswith("/rows/4/files/0/media")


def test_the_prefix_is_below_the_api_servers_own() -> None:
    assert prefix_below("") == "/fal-media"
    assert prefix_below("http://airflow.example:8080") == "/fal-media"
    assert prefix_below("https://example.com/team/airflow/") == "/team/airflow/fal-media"


def test_numbers_and_times_are_written_for_people() -> None:
    assert [words.in_bytes(n) for n in (0, 999, 1400, 250_000, 3_200_000_000_000)] == [
        "0 B",
        "999 B",
        "1.4 kB",
        "250 kB",
        "3200 GB",
    ]
    assert [words.in_seconds(n) for n in (None, 0.0, 59.99, 125.0, 7265)] == [
        "–",
        "0.0 s",
        "1 min 00 s",
        "2 min 05 s",
        "2 h 01 min",
    ]
    assert [words.clock(n) for n in (None, 5.04, 65)] == ["", "0:05", "1:05"]
    assert words.moment(1_790_000_000.0) == "2026-09-21 14:13:20 UTC"
    assert words.moment(None) == "–"
