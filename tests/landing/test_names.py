"""Names from a template: they never lead elsewhere, and never give two files one place."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.exceptions import FalInputError
from airflow_provider_uniapi_fal.landing.names import FIELDS, Names, check_template
from airflow_provider_uniapi_fal.landing.storage import is_plain_name

HASH = "0123456789abcdef" * 4


def name(template: str, *, index: int = 0, count: int = 1, where: str = "images[0]", **fields: Any) -> str:
    common: dict[str, Any] = {"key": "harbour", "model": "flux/dev", "date": datetime.date(2026, 1, 31)}
    names = Names(template=template, **{**common, "seed": 7, "request_id": "r-1", **fields})
    return names.of(index, count, where=where, sha256=HASH)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{key}", "harbour"),
        ("{date}/{model}/{key}", "2026-01-31/flux-dev/harbour"),
        ("{date:%Y/%m}/{key}-{seed}", "2026/01/harbour-7"),
        ("{request_id}-{index:03}", "r-1-000"),
        ("{key} {where}", "harbour images-0"),
        ("{hash}", "0123456789abcdef"),
        ("{{{key}}}", "{harbour}"),
    ],
)
def test_a_template_says_where_a_file_lies_below_the_destination(template: str, expected: str) -> None:
    assert name(template) == expected
    check_template(template)


def test_several_files_of_a_result_never_share_a_name() -> None:
    assert [name("{key}", index=index, count=2) for index in range(2)] == ["harbour-0", "harbour-1"]
    assert name("{key}-{index}", index=1, count=2) == "harbour-1"
    assert name("{key}-{where}", index=1, count=2, where="images[1]") == "harbour-images-1"
    assert name("{key}-{hash}", index=1, count=2) == f"harbour-{HASH[:16]}"


def test_a_seed_that_is_not_known_is_said_to_be_none() -> None:
    assert name("{key}-{seed}", seed=None) == "harbour-none"


@pytest.mark.parametrize(
    "template",
    [
        "{key.__class__}",
        "{key[0]}",
        "{key!r}",
        "{}",
        "{0}",
        "{unknown}-{key}",
        "{key:{index}}",
        "{key}-{index:09999}",
        "{key",
        "{index}",
        "{date}/{model}-{seed}",
        "/{key}",
        "{key}/",
        "../{key}",
        "{date}//{key}",
        "a/./{key}",
        "a\\{key}",
        "a\n{key}",
        "{key}" + "x" * 250,
        " {key}",
        "",
        7,
        None,
    ],
)
def test_a_template_that_leads_elsewhere_or_tells_no_result_apart_is_refused(template: Any) -> None:
    with pytest.raises(ValueError, match="template"):
        check_template(template)
    with pytest.raises(FalInputError, match="template"):
        Names(key="a", template=template, date=datetime.date(2026, 1, 31)).check()


@pytest.mark.parametrize("key", ["", ".", "..", "a/b", "../a", "a\\b", "a\0", "x" * 201, " a"])
def test_a_key_that_is_no_file_name_is_refused(key: str) -> None:
    with pytest.raises(FalInputError, match="key"):
        Names(key=key).check()


def test_a_date_that_is_not_there_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(FalInputError, match="date"):
        Names(key="a", template="{date}/{key}").check()


@settings(max_examples=40)
@given(
    st.sampled_from(
        ["{key}", "{date}/{model}/{key}", "{model}-{where}-{hash}", "{request_id}/{key}-{index}"]
    ),
    st.text(),
    st.text(),
    st.text(),
    st.integers(0, 99),
)
def test_whatever_comes_from_outside_no_name_leaves_the_destination(
    template: str, key: str, model: str, where: str, index: int
) -> None:
    try:
        made = name(template, index=index, count=3, where=where, key=key, model=model)
    except ValueError:
        return
    assert all(is_plain_name(segment) or len(segment) > 190 for segment in made.split("/"))
    assert made.count("/") == template.count("/"), "a value makes no folders"


def test_every_field_has_an_example_that_works() -> None:
    for field in FIELDS:
        check_template(f"{{key}}{{{field}}}")
