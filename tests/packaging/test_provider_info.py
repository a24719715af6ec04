"""The provider metadata is what Airflow expects, and every name in it leads somewhere."""

from __future__ import annotations

import json
import re
from importlib import import_module, metadata, resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jsonschema
import pytest
from airflow.sdk import BaseOperator
from airflow.triggers.base import BaseTrigger

from airflow_provider_uniapi_fal import __version__, get_provider_info
from airflow_provider_uniapi_fal.protocol.origin import _EXTRA_TYPES, GatewayAccount, read_account

if TYPE_CHECKING:
    from collections.abc import Iterator

PROJECT = Path(__file__).resolve().parents[2]


def schema(name: str) -> dict[str, Any]:
    """Return a JSON schema that the installed Airflow ships."""
    text = resources.files("airflow").joinpath(name).read_text(encoding="utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def strings(value: object) -> Iterator[str]:
    """Yield every string inside a JSON value, keys included."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, inner in value.items():
            yield from strings(key)
            yield from strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from strings(inner)


OWN_NAMES = sorted({s for s in strings(get_provider_info()) if s.startswith("airflow_provider_uniapi_fal")})


def test_the_provider_info_is_what_airflow_reads() -> None:
    jsonschema.validate(get_provider_info(), schema("provider_info.schema.json"))


def test_the_provider_info_uses_only_words_that_airflow_knows() -> None:
    # The schema lets unknown words pass, and Airflow then ignores them without a sound.
    assert get_provider_info().keys() <= schema("provider_info.schema.json")["properties"].keys() | {
        "versions"
    }


def test_each_connection_form_is_what_airflows_ui_shows() -> None:
    # Only the stricter schema, for Airflow's own providers, describes the fields of a form.
    strict = schema("provider.yaml.schema.json")
    forms = get_provider_info()["connection-types"]
    jsonschema.validate(
        forms, {**strict["properties"]["connection-types"], "definitions": strict["definitions"]}
    )
    assert [form["connection-type"] for form in forms] == ["uniapi_fal"]


def test_the_form_has_a_field_for_everything_that_the_hook_reads() -> None:
    (form,) = get_provider_info()["connection-types"]
    fields = form["conn-fields"]
    assert set(fields) == set(_EXTRA_TYPES)
    for name, field in fields.items():
        assert field["label"], name
        assert len(field["description"]) > 20, name
        assert "null" in field["schema"]["type"], name
    assert fields["proxy"]["schema"]["format"] == "password"
    assert form["ui-field-behaviour"]["placeholders"].keys() == {"host", "port", "password", "description"}


def test_what_the_form_saves_is_what_the_hook_reads() -> None:
    saved: dict[str, Any] = {
        name: field["schema"].get("default")
        for name, field in get_provider_info()["connection-types"][0]["conn-fields"].items()
    }
    saved |= {"media_hosts": ["media.example", "10.0.0.9 ", ""], "headers": {"X-Team": "media"}, "proxy": ""}
    account = read_account(host=None, port=None, schema=None, key="sk-key", extra=saved)
    assert isinstance(account, GatewayAccount)
    assert account.media_hosts == ("media.example", "10.0.0.9")
    assert account.proxy is None
    assert (account.connect_timeout, account.read_timeout) == (10.0, 60.0)


def test_the_plugin_is_found_by_the_entry_point_that_airflow_reads() -> None:
    (entry,) = [
        found for found in metadata.entry_points(group="airflow.plugins") if found.name == "uniapi_fal"
    ]
    (named,) = get_provider_info()["plugins"]
    assert entry.value.replace(":", ".") == named["plugin-class"]
    assert entry.load().name == "uniapi_fal"


def test_every_option_of_the_configuration_is_described() -> None:
    from airflow.configuration import conf

    options = get_provider_info()["config"]["uniapi_fal"]["options"]
    for name, option in options.items():
        assert len(option["description"]) > 20, name
        assert conf.get("uniapi_fal", name) == option["default"]


def test_the_provider_info_names_the_hook_and_the_trigger() -> None:
    assert {
        "airflow_provider_uniapi_fal.hooks.fal.FalHook",
        "airflow_provider_uniapi_fal.triggers.fal",
    } <= set(OWN_NAMES)


def test_the_provider_info_names_every_module_that_has_an_operator_a_sensor_a_trigger_or_a_transfer() -> None:
    import airflow_provider_uniapi_fal as package

    named = set(OWN_NAMES)
    for kind, base in (
        ("operators", BaseOperator),
        ("sensors", BaseOperator),
        ("transfers", BaseOperator),
        ("triggers", BaseTrigger),
    ):
        for file in Path(package.__path__[0], kind).glob("*.py"):
            module = import_module(f"{package.__name__}.{kind}.{file.stem}")
            public = [
                each
                for each in vars(module).values()
                if isinstance(each, type) and issubclass(each, base) and each.__module__ == module.__name__
            ]
            # What only other operators are made from is no user's.
            if public and file.stem not in ("submitting", "generating"):
                assert module.__name__ in named


@pytest.mark.parametrize("name", OWN_NAMES)
def test_every_name_in_the_provider_info_can_be_imported(name: str) -> None:
    parent, _, last = name.rpartition(".")
    if last[:1].isupper():
        assert isinstance(getattr(import_module(parent), last), type)
    elif name in get_provider_info().get("cli", ()):
        assert callable(getattr(import_module(parent), last))
    else:
        import_module(name)


def test_every_integration_that_a_module_list_names_is_described() -> None:
    info = get_provider_info()
    described = {integration["integration-name"] for integration in info["integrations"]}
    for section in ("hooks", "operators", "sensors", "triggers"):
        assert {entry["integration-name"] for entry in info[section]} <= described


def test_the_versions_agree() -> None:
    changelog = (PROJECT / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changelog, re.MULTILINE)
    assert headings[:1] == [__version__]
    assert get_provider_info()["versions"] == headings
