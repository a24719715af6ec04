"""How Airflow reads connections, keeps their secrets and shows their form; ``hooks/fal.py`` hangs on it."""

from __future__ import annotations

import asyncio
import inspect
import json
from typing import TYPE_CHECKING

from airflow.api_fastapi.core_api.services.ui.connections import HookMetaService
from airflow.sdk import BaseHook, Connection
from airflow.sdk.log import amask_secret, mask_logs, mask_secret

from airflow_provider_uniapi_fal import get_provider_info
from airflow_provider_uniapi_fal.hooks.fal import FalHook

if TYPE_CHECKING:
    import pytest


def connection(monkeypatch: pytest.MonkeyPatch, text: str) -> Connection:
    monkeypatch.setenv("AIRFLOW_CONN_FACTS", text)
    return BaseHook.get_connection("facts")


def test_a_uri_puts_its_path_into_schema_and_a_quoted_address_into_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # protocol/origin.py: _base_url() takes the path from there.
    read = connection(monkeypatch, "uniapi-fal://:sk-a-key@gateway.example:8443/v1/fal-ai")
    assert (read.conn_type, read.password) == ("uniapi_fal", "sk-a-key")
    assert (read.host, read.port, read.schema) == ("gateway.example", 8443, "v1/fal-ai")

    quoted = connection(monkeypatch, "uniapi-fal://:sk-a-key@https%3A%2F%2Fgateway.example%2Fv1")
    assert quoted.host == "https://gateway.example/v1"


def test_a_uri_with_an_underscore_in_its_scheme_is_read_as_something_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # README, docs: the URI form is spelled `uniapi-fal://`.
    read = connection(monkeypatch, "uniapi_fal://:sk-a-key@gateway.example")
    assert (read.conn_type, read.host) != ("uniapi_fal", "gateway.example")


def test_json_gives_each_field_as_it_is_and_extra_as_text(monkeypatch: pytest.MonkeyPatch) -> None:
    # hooks/fal.py: _account_of() parses the text itself, because a misspelt one must not pass for an empty one.
    value = {"conn_type": "uniapi_fal", "host": "https://gateway.example/v1", "password": "sk-a-key"}
    read = connection(monkeypatch, json.dumps({**value, "extra": {"read_timeout": 3}}))
    assert (read.host, read.port, read.schema) == ("https://gateway.example/v1", None, None)
    assert json.loads(read.extra or "") == {"read_timeout": 3}
    assert connection(monkeypatch, json.dumps(value)).extra is None


def test_a_connection_is_read_from_an_event_loop_as_from_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    # FalHook.aaccount()
    read = connection(monkeypatch, '{"conn_type": "uniapi_fal", "password": "sk-a-key"}')
    assert inspect.iscoroutinefunction(BaseHook.aget_connection)
    assert asyncio.run(BaseHook.aget_connection("facts")) == read


def test_secrets_that_were_named_are_masked_in_logs() -> None:
    # FalHook.account and aaccount() name proxy and headers; Airflow itself masks only the password.
    mask_secret("sk-named-by-a-worker")
    asyncio.run(amask_secret("sk-named-by-a-trigger"))
    line = "sk-named-by-a-worker sk-named-by-a-trigger sk-not-named"
    masked = mask_logs(None, "info", {"event": line})
    assert masked["event"] == "*** *** sk-not-named"


def test_the_form_is_made_of_the_providers_metadata_alone() -> None:
    # airflow_provider_uniapi_fal/__init__.py: `conn-fields` and `ui-field-behaviour`; the hook has no widgets.
    assert not {"get_connection_form_widgets", "get_ui_field_behaviour"} & vars(FalHook).keys()
    (form,) = [each for each in HookMetaService.hook_meta_data() if each.connection_type == "uniapi_fal"]
    (declared,) = get_provider_info()["connection-types"]
    assert form.extra_fields is not None
    assert form.extra_fields.keys() == declared["conn-fields"].keys()
    assert form.standard_fields is not None
    shown = form.standard_fields.model_dump()
    hidden = {name for name, field in shown.items() if field and field["hidden"]}
    assert hidden == {
        {"schema": "url_schema"}.get(name, name) for name in declared["ui-field-behaviour"]["hidden-fields"]
    }
