"""Generative media as paid, watched and landed jobs in Apache Airflow, through the UniAPI gateway."""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"

__all__ = ["__version__", "get_provider_info"]


def get_provider_info() -> dict[str, Any]:
    """Return the provider metadata that Airflow reads through the ``apache_airflow_provider`` entry point."""
    name = "UniAPI fal"
    return {
        "package-name": "airflow-provider-uniapi-fal",
        "name": name,
        "description": "Paid image and video generation through the UniAPI gateway's fal queue.",
        "versions": [__version__],
        "integrations": [
            {"integration-name": name, "external-doc-url": "https://uniapi.io", "tags": ["service"]},
        ],
        "hooks": [
            {"integration-name": name, "python-modules": ["airflow_provider_uniapi_fal.hooks.fal"]},
        ],
        "operators": [
            {
                "integration-name": name,
                "python-modules": [
                    f"airflow_provider_uniapi_fal.operators.{module}"
                    for module in ("fal", "kling", "luma", "openai_images")
                ],
            },
        ],
        "sensors": [
            {"integration-name": name, "python-modules": ["airflow_provider_uniapi_fal.sensors.fal"]},
        ],
        "triggers": [
            {"integration-name": name, "python-modules": ["airflow_provider_uniapi_fal.triggers.fal"]},
        ],
        "cli": ["airflow_provider_uniapi_fal.cli.definition.get_fal_commands"],
        "connection-types": [
            {
                "connection-type": "uniapi_fal",
                "hook-class-name": "airflow_provider_uniapi_fal.hooks.fal.FalHook",
                "hook-name": name,
                "ui-field-behaviour": {
                    "hidden-fields": ["login", "schema"],
                    "relabeling": {"host": "Gateway", "password": "API key"},
                    "placeholders": {"host": "https://api.uniapi.io", "password": "sk-…"},
                },
                "conn-fields": _connection_fields(),
            },
        ],
    }


def _connection_fields() -> dict[str, Any]:
    """Describe the fields of the connection's extra for Airflow's form."""

    def field(label: str, description: str, **schema: Any) -> dict[str, Any]:
        return {"label": label, "description": description, "schema": schema}

    text = {"type": ["string", "null"]}
    seconds = {"type": ["number", "null"], "minimum": 0.1, "maximum": 86400}
    return {
        "auth_scheme": field(
            "Authorization scheme", "Word before the key; Key for fal.", **text, default="Key"
        ),
        "connect_timeout": field("Connect time-out (s)", "Time to reach the gateway.", **seconds, default=10),
        "read_timeout": field("Reply time-out (s)", "Time for a whole reply.", **seconds, default=60),
        "proxy": field("Proxy", "URL of an HTTP proxy, if one is needed.", **text, format="password"),
        "ca_bundle": field("CA bundle", "File of CA certificates, for a gateway with a private one.", **text),
    }
