"""Which addresses the gallery may show: those below a root, whatever a manifest says."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.plugins.gallery.roots import NotAllowed, Root, place_of, read_roots

ROOTS = read_roots("file:///media/nights, s3://aws@bucket/nights/")


def test_roots_are_read_as_an_operator_writes_them() -> None:
    assert read_roots(" /srv/media/ ,\n s3a://aws@bucket/nights ,, gs://other ") == (
        Root("file", "/srv/media"),
        Root("s3", "bucket/nights", "aws"),
        Root("gs", "other"),
    )
    assert read_roots("") == ()


@pytest.mark.parametrize(
    "text",
    ["/", "file:///", "media", "file://host", "https://example.com/media", "s3://", "s3://a/../b", "://"],
)
def test_what_is_no_folder_in_storage_is_no_root(text: str) -> None:
    with pytest.raises(ValueError, match="media_roots"):
        read_roots(text)


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("file:///media/nights/a b/é.png", "/media/nights/a b/é.png"),
        ("/media/nights/x", "/media/nights/x"),
        ("s3://bucket/nights/run__2026-11-25T00:00:00+00:00/a.png", None),
        ("s3a://bucket/nights/a", "bucket/nights/a"),
    ],
)
def test_an_address_below_a_root_has_a_place(address: str, path: str | None) -> None:
    place = place_of(address, ROOTS)
    assert place.path == (path or address.partition("://")[2])


def test_the_connection_is_the_roots_whatever_the_address_says() -> None:
    place = place_of("s3://somebody_elses@bucket/nights/a.png", ROOTS)
    assert place.root.conn_id == "aws"
    assert place.path == "bucket/nights/a.png"


@pytest.mark.parametrize(
    "address",
    [
        "file:///media/nights",
        "file:///media/nights/../secret",
        "file:///media/nights/./a",
        "file:///media/nights//a",
        "file:///media/nights-of-others/a",
        "/etc/passwd",
        "file:///etc/passwd",
        "media/nights/a",
        "file://media/nights/a",
        "s3://bucket/other/a",
        "s3://bucket-2/nights/a",
        "gs://bucket/nights/a",
        "http://169.254.169.254/latest",
        "simplecache::file:///media/nights/a",
        "file:///media/nights/a::http://example.com",
        "file:///media/nights/a\\..\\b",
        "file:///media/nights/a\x00",
        "file:///media/nights/a\nb",
        "",
        "x" * 5000,
    ],
)
def test_any_other_address_is_refused(address: str) -> None:
    with pytest.raises(NotAllowed):
        place_of(address, ROOTS)


def test_without_roots_everything_is_refused() -> None:
    with pytest.raises(NotAllowed, match="media_roots"):
        place_of("file:///media/nights/a", ())


@given(st.text(alphabet="./\\:@ab", max_size=30))
def test_no_address_leads_out_of_its_root(tail: str) -> None:
    try:
        place = place_of(f"file:///media/nights/{tail}", ROOTS)
    except NotAllowed:
        return
    assert place.path.startswith("/media/nights/")
    assert ".." not in place.path.split("/")
