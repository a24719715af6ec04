"""Connections as users write them, and addresses as replies name them."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from airflow_provider_uniapi_fal.protocol.errors import FailureKind
from airflow_provider_uniapi_fal.protocol.origin import (
    GatewayAccount,
    is_request_id,
    is_safe_path,
    path_below_family,
)
from tests.protocol.values import BASE, KEY, account, failure, read


def base_url(*args: Any, **kwargs: Any) -> str:
    found = read(*args, **kwargs)
    assert isinstance(found, GatewayAccount), str(found)
    return found.base_url


@pytest.mark.parametrize(
    ("host", "port", "schema", "expected"),
    [
        (None, None, None, BASE),
        ("", None, "", BASE),
        ("  ", None, None, BASE),
        ("hk.uniapi.io", None, None, "https://hk.uniapi.io"),
        (" HK.UniAPI.io ", None, None, "https://hk.uniapi.io"),
        ("hk.uniapi.io", 8443, None, "https://hk.uniapi.io:8443"),
        ("hk.uniapi.io:8443", None, None, "https://hk.uniapi.io:8443"),
        ("hk.uniapi.io:8443", 8443, None, "https://hk.uniapi.io:8443"),
        ("hk.uniapi.io", None, "https", "https://hk.uniapi.io"),
        ("127.0.0.1", 8000, "http", "http://127.0.0.1:8000"),
        ("127.0.0.1", 8000, "HTTP", "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000", None, None, "http://127.0.0.1:8000"),
        ("http://127.0.0.1:8000/", None, None, "http://127.0.0.1:8000"),
        ("https://hk.uniapi.io", None, "http", "https://hk.uniapi.io"),
        ("https://gw.example/proxy/uniapi/", None, None, "https://gw.example/proxy/uniapi"),
        ("gw.example/proxy", None, None, "https://gw.example/proxy"),
        ("gw.example", 8000, "proxy/uniapi", "https://gw.example:8000/proxy/uniapi"),
        ("https://api.uniapi.io/fal-ai", None, None, BASE),
        ("https://api.uniapi.io/fal-ai/", None, None, BASE),
        ("api.uniapi.io", None, "fal-ai", BASE),
        ("api.uniapi.io", None, "gw/fal-ai", "https://api.uniapi.io/gw"),
        ("gw.example/not-fal-ai", None, None, "https://gw.example/not-fal-ai"),
        ("[::1]:8000", None, "http", "http://[::1]:8000"),
        ("http://[::1]", 8000, None, "http://[::1]:8000"),
    ],
)
def test_every_form_of_the_address_leads_to_one_base_url(
    host: str | None, port: int | None, schema: str | None, expected: str
) -> None:
    assert base_url(host, port, schema) == expected


@pytest.mark.parametrize(
    ("host", "port", "schema"),
    [
        (None, 8000, None),
        (None, None, "fal-ai"),
        ("ftp://api.uniapi.io", None, None),
        ("file:///etc/passwd", None, None),
        ("https://", None, None),
        ("https:///fal-ai", None, None),
        ("api.uniapi.io:", None, None),
        ("api.uniapi.io:99999", None, None),
        ("api.uniapi.io", 99999, None),
        ("api.uniapi.io", -1, None),
        ("api.uniapi.io", 0, None),
        ("api.uniapi.io:0", None, None),
        ("api.uniapi.io:abc", None, None),
        ("api.uniapi.io:1", 2, None),
        ("https://user:word@api.uniapi.io", None, None),
        ("https://user@api.uniapi.io", None, None),
        ("https://@api.uniapi.io", None, None),
        ("https://api.uniapi.io?x=1", None, None),
        ("https://api.uniapi.io/#x", None, None),
        ("https://api.uniapi.io/a/../b", None, None),
        ("https://api.uniapi.io/a//b", None, None),
        ("https://api.uniapi.io/a%2fb", None, None),
        ("https://api uniapi.io", None, None),
        ("api.uniapi.io\\@evil.example", None, None),
        ("https://[::1", None, None),
        ("https://例え.jp", None, None),
        ("api.uniapi.io", None, "a b"),
    ],
)
def test_a_base_url_that_is_none_is_refused_with_what_to_fix(
    host: str | None, port: int | None, schema: str | None
) -> None:
    found = failure(read(host, port, schema))
    assert found.kind is FailureKind.INPUT
    assert "host" in found.what
    assert found.advice


def test_a_key_put_into_the_host_is_not_repeated() -> None:
    for host in (
        f"https://{KEY}@api.uniapi.io",
        f"api.uniapi.io:{KEY}",
        f"https://u:{KEY}@h",
        f"h/?key={KEY}",
    ):
        assert KEY not in str(failure(read(host)))


@pytest.mark.parametrize(
    ("key", "says"),
    [
        (None, "no API key"),
        ("", "no API key"),
        (" sk-1", "white space"),
        ("sk-1\n", "white space"),
        ("sk 1", "white space"),
        ("\u3000sk-1", "white space"),
        ("sk-é", "characters that no key has"),
        ("sk-\x01", "characters that no key has"),
        ("sk-\u200b1", "characters that no key has"),
    ],
)
def test_a_key_that_cannot_be_one_is_refused_without_being_quoted(key: str | None, says: str) -> None:
    found = failure(read(key=key))
    assert found.kind is FailureKind.AUTH
    assert says in found.what
    assert "password field" in found.advice
    assert not key or key not in str(found)


def test_the_extra_reaches_the_account() -> None:
    found = read(
        auth_scheme="Bearer",
        family_paths={"fal": "queue/fal/", "kling": "/k"},
        headers={"X-Team": "media"},
        connect_timeout="3",
        read_timeout=90,
        ca_bundle="/etc/ca.pem",
        proxy="http://proxy:3128",
        media_hosts=["Media.Local", "10.0.0.9", "[::1]"],
    )
    assert isinstance(found, GatewayAccount)
    assert found.credential("fal", BASE) == f"Bearer {KEY}"
    assert found.url("fal", "/flux") == f"{BASE}/queue/fal/flux"
    assert found.url("kling", "/v1") == f"{BASE}/k/v1"
    assert found.url("luma", "/x") == f"{BASE}/luma/x"
    assert found.headers == {"X-Team": "media"}
    assert (found.connect_timeout, found.read_timeout) == (3.0, 90.0)
    assert (found.ca_bundle, found.proxy) == ("/etc/ca.pem", "http://proxy:3128")
    assert found.media_hosts == ("media.local", "10.0.0.9", "::1")


def test_fields_left_empty_in_the_form_are_as_if_not_given() -> None:
    empty: dict[str, Any] = dict.fromkeys(
        ("auth_scheme", "family_paths", "headers", "connect_timeout", "read_timeout", "ca_bundle", "proxy"),
        "",
    )
    assert read(**empty, media_hosts=None) == read()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("auth_scheme", 5),
        ("auth_scheme", "Key Key"),
        ("auth_scheme", {"fall": "Key"}),
        ("auth_scheme", {"fal": None}),
        ("family_paths", "/fal-ai"),
        ("family_paths", {"fall": "/x"}),
        ("family_paths", {"fal": "/a/../b"}),
        ("family_paths", {"fal": "a?b"}),
        ("family_paths", {"fal": 5}),
        ("headers", ["X-A: b"]),
        ("headers", {"X A": "b"}),
        ("headers", {"X-A": "b\r\nX-B: c"}),
        ("headers", {"X-A": "媒"}),
        ("headers", {"X-A": 5}),
        ("headers", {"Authorization": "Key x"}),
        ("headers", {"hOsT": "x"}),
        ("connect_timeout", "soon"),
        ("connect_timeout", 0),
        ("connect_timeout", "0"),
        ("connect_timeout", -1),
        ("read_timeout", "nan"),
        ("read_timeout", "inf"),
        ("read_timeout", 86401),
        ("read_timeout", 10**400),
        ("read_timeout", True),
        ("read_timeout", [1]),
        ("ca_bundle", True),
        ("proxy", {}),
        ("media_hosts", "localhost"),
        ("media_hosts", [5]),
        ("media_hosts", ["http://localhost"]),
        ("media_hosts", ["localhost:80"]),
        ("time_out", 5),
    ],
)
def test_each_wrong_extra_field_is_named(name: str, value: Any) -> None:
    found = failure(read(**{name: value}))
    assert found.kind is FailureKind.INPUT
    assert name in found.what


def test_secrets_are_not_in_the_representation_of_an_account() -> None:
    secret = account(headers={"X-Secret": "s3cret"}, proxy="http://u:pass-word@proxy")
    assert not [word for word in (KEY, "s3cret", "pass-word") if word in repr(secret)]


@pytest.mark.parametrize(
    "url",
    [
        "https://api.uniapi.io.evil.example/fal-ai/flux",
        "https://api.uniapi.io@evil.example/fal-ai/flux",
        "https://evil.example/https://api.uniapi.io/fal-ai",
        "https://evil.example#@api.uniapi.io/",
        "https://evil.example\\@api.uniapi.io.evil/",
        "https://api.uniapi.iofal-ai/flux",
        "https://api.uniapi.io./fal-ai",
        "https://api-uniapi.io/fal-ai",
        "https://queue.fal.run/fal-ai",
        "https://xn--pi-7kc.uniapi.io/",
        "https://аpi.uniapi.io/fal-ai",  # a Cyrillic letter
        "http://api.uniapi.io/fal-ai",
        "https://api.uniapi.io:444/fal-ai",
        "https://api.uniapi.io:99999/fal-ai",
        "//api.uniapi.io/fal-ai",
        "/fal-ai",
        "https://[api.uniapi.io",
        "",
    ],
)
def test_no_other_origin_gets_the_key(url: str) -> None:
    assert account().credential("fal", url) is None


def test_an_origin_that_cannot_be_read_gets_no_key_even_if_it_is_the_configured_one() -> None:
    assert account("https://gw:99999").credential("fal", "https://gw:99999/fal-ai") is None


@pytest.mark.parametrize("url", [BASE, f"{BASE}:443/x", "https://API.uniapi.io/fal-ai/flux?logs=1"])
def test_the_configured_origin_gets_the_key_with_its_familys_scheme(url: str) -> None:
    assert account().credential("fal", url) == f"Key {KEY}"
    assert account().credential("kling", url) == f"Bearer {KEY}"


STATUS = "/flux/requests/r-1/status"


@pytest.mark.parametrize(
    ("url", "family", "base", "expected"),
    [
        (f"https://queue.fal.run/fal-ai{STATUS}", "/fal-ai", BASE, STATUS),
        (f"https://api.uniapi.io/fal-ai{STATUS}", "/fal-ai", BASE, STATUS),
        (f"https://api.uniapi.io/fal-ai/fal-ai{STATUS}", "/fal-ai", BASE, STATUS),
        (f"https://gw.example/gw/fal-ai{STATUS}", "/fal-ai", "https://gw.example/gw", STATUS),
        (f"https://queue.fal.run/fal-ai{STATUS}", "/fal-ai", "https://gw.example/gw", STATUS),
        (f"https://gw.example/gw/queue{STATUS}", "/queue", "https://gw.example/gw", STATUS),
        (
            "https://queue.fal.run/bytedance/s/requests/r/status",
            "/fal-ai",
            BASE,
            "/bytedance/s/requests/r/status",
        ),
        (f"https://evil.example/fal-ai{STATUS}?key=1#x", "/fal-ai", BASE, STATUS),
        (f"//evil.example/fal-ai{STATUS}", "/fal-ai", BASE, STATUS),
        (f"/fal-ai{STATUS}", "/fal-ai", BASE, STATUS),
        (f"  https://queue.fal.run/fal-ai{STATUS}\n", "/fal-ai", BASE, STATUS),
        ("https://queue.fal.run/fal-ai", "/fal-ai", BASE, "/fal-ai"),
        ("https://queue.fal.run/fal-ai/../admin", "/fal-ai", BASE, None),
        ("https://queue.fal.run/fal-ai/./flux", "/fal-ai", BASE, None),
        ("https://queue.fal.run/fal-ai/%2e%2e/admin", "/fal-ai", BASE, None),
        ("https://queue.fal.run/fal-ai/flux%2frequests", "/fal-ai", BASE, None),
        ("https://queue.fal.run//fal-ai/flux", "/fal-ai", BASE, None),
        ("https://queue.fal.run/fal-ai//evil.example/flux", "/fal-ai", BASE, None),
        ("https://queue.fal.run/fal-ai/flux/", "/fal-ai", BASE, None),
        ("https://queue.fal.run/fal-ai\\@evil.example", "/fal-ai", BASE, None),
        ("https://queue.fal.run/fal-ai/a b", "/fal-ai", BASE, None),
        ("https://queue.fal.run/fal-ai/媒", "/fal-ai", BASE, None),
        ("https://queue.fal.run", "/fal-ai", BASE, None),
        ("https://[queue", "/fal-ai", BASE, None),
        ("", "/fal-ai", BASE, None),
        (None, "/fal-ai", BASE, None),
        (5, "/fal-ai", BASE, None),
    ],
)
def test_of_an_address_in_a_reply_only_the_safe_path_below_the_family_is_used(
    url: object, family: str, base: str, expected: str | None
) -> None:
    assert path_below_family(url, family, base) == expected


@given(st.text(max_size=60) | st.from_regex(r"https?://[a-z.]{1,9}/fal-ai/[a-z./%?#\\@:-]{0,30}"))
def test_whatever_an_address_says_its_path_stays_at_the_gateway_and_below_the_family(url: str) -> None:
    path = path_below_family(url, "/fal-ai", BASE)
    if path is not None:
        assert is_safe_path(path)
        assert not path.startswith("/fal-ai/")
        led_back = account().url("fal", path)
        assert led_back.startswith(f"{BASE}/fal-ai/")
        assert account().credential("fal", led_back) is not None


@pytest.mark.parametrize("value", ["abc", "A-b_9", "0" * 200, "764cabcf-b745-4b3e-ae38-1200304cf45b"])
def test_an_id_of_letters_digits_dashes_may_enter_a_path(value: str) -> None:
    assert is_request_id(value)


@pytest.mark.parametrize(
    "value",
    ["", ".", "..", "a/b", "a%2fb", "a?b", "a#b", "a b", "a\n", "é", "٣", "a" * 201, None, 7, ["a"], True],
)
def test_nothing_else_may(value: object) -> None:
    assert not is_request_id(value)
