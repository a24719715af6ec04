"""What is sent for a model, arguments and options, and what is refused before anything is sent."""

from __future__ import annotations

import json
from collections import UserDict
from enum import Enum
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.protocol.dialects.fal import bare_model
from airflow_provider_uniapi_fal.protocol.errors import FailureKind
from airflow_provider_uniapi_fal.protocol.messages import HttpRequest
from tests.protocol.values import DIALECT, failure, handle


def request(model: Any = "flux/dev", arguments: Any = None, **options: Any) -> HttpRequest:
    found = DIALECT.submit_request(model, {"prompt": "p"} if arguments is None else arguments, options)
    assert isinstance(found, HttpRequest), str(found)
    return found


def refusal(model: Any = "flux/dev", arguments: Any = None, **options: Any) -> str:
    given_arguments = {"prompt": "a secret fox"} if arguments is None else arguments
    found = failure(DIALECT.submit_request(model, given_arguments, options))
    assert found.kind is FailureKind.INPUT
    assert (found.billed, found.may_run, found.transient) == ("no", False, False)
    assert "Nothing was sent" in str(found)
    assert "a secret fox" not in str(found)
    return found.what


@pytest.mark.parametrize("model", ["flux-pro/kontext/text-to-image", "fal-ai/flux-pro/kontext/text-to-image"])
def test_a_model_is_posted_below_the_family_once_with_or_without_its_prefix(model: str) -> None:
    sent = request(model, {"prompt": "p", "num_images": 2})
    assert (sent.method, sent.family, sent.path) == ("POST", "fal", "/flux-pro/kontext/text-to-image")
    assert sent.json == {"prompt": "p", "num_images": 2}
    assert (sent.query, sent.headers) == ({}, {})


def test_only_the_leading_prefix_is_taken_off() -> None:
    assert bare_model("bytedance/fal-ai/x") == "bytedance/fal-ai/x"
    assert bare_model("fal-air/x") == "fal-air/x"


@pytest.mark.parametrize(
    "model",
    [
        None,
        "",
        "  ",
        5,
        ["flux"],
        "https://queue.fal.run/fal-ai/flux",
        "//evil.example/flux",
        "/flux/dev",
        "flux/dev/",
        "flux//dev",
        "flux/../../admin",
        "..",
        "./flux",
        "flux/%2e%2e/x",
        "flux/dev?fal_webhook=x",
        "flux/dev#x",
        "flux dev",
        "flux\n",
        "flux\\dev",
        "@evil.example/x",
        "媒体/模型",
        "fal-ai/",
    ],
)
def test_what_is_no_model_id_is_refused_by_name(model: Any) -> None:
    assert "model:" in refusal(model)


@pytest.mark.parametrize(
    ("options", "headers", "query"),
    [
        ({"start_timeout": 30}, {"X-Fal-Request-Start-Timeout": "30"}, {}),
        ({"start_timeout": 1.5}, {"X-Fal-Request-Start-Timeout": "1.5"}, {}),
        ({"start_timeout": 1234567}, {"X-Fal-Request-Start-Timeout": "1234567"}, {}),
        ({"start_timeout": 86399.5}, {"X-Fal-Request-Start-Timeout": "86399.5"}, {}),
        ({"priority": "low"}, {"X-Fal-Queue-Priority": "low"}, {}),
        ({"priority": "normal"}, {"X-Fal-Queue-Priority": "normal"}, {}),
        ({"runner_hint": "a b-1"}, {"X-Fal-Runner-Hint": "a b-1"}, {}),
        ({"no_retry": True}, {"X-Fal-No-Retry": "1"}, {}),
        ({"no_retry": False}, {}, {}),
        ({"store_io": False}, {"X-Fal-Store-IO": "0"}, {}),
        ({"store_io": True}, {}, {}),
        (
            {"object_lifetime": 3600},
            {"X-Fal-Object-Lifecycle-Preference": '{"expiration_duration_seconds": 3600}'},
            {},
        ),
        ({"max_queue_length": 10}, {}, {"fal_max_queue_length": "10"}),
        (dict.fromkeys(("start_timeout", "priority", "runner_hint", "no_retry", "store_io")), {}, {}),
    ],
)
def test_an_option_becomes_fals_header_or_parameter(
    options: dict[str, Any], headers: dict[str, str], query: dict[str, str]
) -> None:
    sent = request(**options)
    assert (sent.headers, sent.query) == (headers, query)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("start_timeout", 0.1),
        ("start_timeout", "30"),
        ("start_timeout", True),
        ("start_timeout", float("nan")),
        ("start_timeout", float("inf")),
        ("priority", "high"),
        ("priority", ["low"]),
        ("runner_hint", ""),
        ("runner_hint", "a\r\nX-Evil: 1"),
        ("runner_hint", " padded "),
        ("runner_hint", "é"),
        ("runner_hint", "x" * 201),
        ("no_retry", 1),
        ("no_retry", "yes"),
        ("store_io", 0),
        ("object_lifetime", 0),
        ("object_lifetime", 1.5),
        ("object_lifetime", True),
        ("max_queue_length", -1),
        ("fal_webhook", "https://example.com"),
        ("priorty", "low"),
    ],
)
def test_a_wrong_or_unknown_option_is_refused_by_name(option: str, value: Any) -> None:
    assert f"{option}:" in refusal(**{option: value})


class Format(str, Enum):
    PNG = "png"


@pytest.mark.parametrize(
    ("arguments", "where"),
    [
        ("a prompt", "arguments:"),
        (["a prompt"], "arguments:"),
        (5, "arguments:"),
        ({"image_urls": "https://example.com/a.png"}, "arguments.image_urls: a list"),
        ({"a": {"mask_urls": "x"}}, "arguments.a.mask_urls: a list"),
        ({"cfg": float("nan")}, "arguments.cfg:"),
        ({"cfg": [0, float("-inf")]}, "arguments.cfg[1]:"),
        ({"image": b"\x89PNG"}, "arguments.image: bytes"),
        ({"image": Path("a.png")}, "arguments.image:"),
        ({"when": {1, 2}}, "arguments.when: set"),
        ({5: "x"}, "arguments: the key 5"),
        ({"a": [{"b": {None: 1}}]}, "arguments.a[0].b: the key None"),
    ],
)
def test_arguments_with_no_form_in_json_are_refused_by_place(arguments: Any, where: str) -> None:
    assert where in refusal(arguments=arguments)


def test_arguments_that_contain_themselves_are_refused() -> None:
    arguments: dict[str, Any] = {"prompt": "p"}
    arguments["again"] = [arguments]
    assert "arguments.again[0]: contains itself" in refusal(arguments=arguments)


def test_arguments_that_never_end_are_refused_and_the_same_value_twice_is_not() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    assert "deep" in refusal(arguments={"deep": deep})
    size = {"width": 8}
    assert request(arguments={"a": size, "b": [size, size]}).json == {"a": size, "b": [size, size]}


def test_every_wrong_field_is_named_at_once() -> None:
    says = refusal("a b", {"x": b"", "y": b""}, priority="high", nonsense=1)
    assert [
        word for word in ("model:", "arguments.x:", "arguments.y:", "priority:", "nonsense:") if word in says
    ]
    assert says.count(";") >= 4


@pytest.mark.parametrize(
    "arguments",
    [
        {"loras": ({"path": "x"},), "format": Format.PNG, "seed": None, "ok": True, "cfg": 3.5},
        MappingProxyType({"size": MappingProxyType({"width": 8})}),
        UserDict({"sizes": [UserDict({"width": 8})]}),
        {},
    ],
)
def test_every_mapping_and_sequence_that_is_accepted_can_also_be_written(arguments: Any) -> None:
    assert isinstance(json.dumps(request(arguments=arguments).json, allow_nan=False), str)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3),
    max_leaves=20,
)


@given(st.dictionaries(st.text(max_size=9), json_values, max_size=4))
def test_json_is_sent_as_it_is(arguments: dict[str, Any]) -> None:
    if "_urls" not in json.dumps(arguments):
        assert request(arguments=arguments).json == arguments


def test_reads_and_cancels_use_the_paths_of_the_handle() -> None:
    job = handle()
    status = DIALECT.status_request(job, logs=True)
    assert (status.method, status.path, status.query) == ("GET", job.status_path, {"logs": "1"})
    assert DIALECT.status_request(job, logs=False).query == {}
    assert (DIALECT.result_request(job).method, DIALECT.result_request(job).path) == (
        "GET",
        job.response_path,
    )
    cancel = DIALECT.cancel_request(job)
    assert cancel is not None
    assert (cancel.method, cancel.path) == ("PUT", job.cancel_path)
    assert DIALECT.cancel_request(handle(cancel_path=None)) is None
