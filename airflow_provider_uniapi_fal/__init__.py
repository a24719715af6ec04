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
                    for module in ("fal", "batch", "kling", "luma", "openai_images")
                ],
            },
        ],
        "sensors": [
            {"integration-name": name, "python-modules": ["airflow_provider_uniapi_fal.sensors.fal"]},
        ],
        "triggers": [
            {
                "integration-name": name,
                "python-modules": [
                    "airflow_provider_uniapi_fal.triggers.fal",
                    "airflow_provider_uniapi_fal.triggers.batch",
                ],
            },
        ],
        "transfers": [
            {
                "source-integration-name": name,
                "target-integration-name": "Common IO",
                "python-module": "airflow_provider_uniapi_fal.transfers.fal_to_object_storage",
            },
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
                    "placeholders": {
                        "host": "https://api.uniapi.io",
                        "port": "443",
                        "password": "sk-…",
                        "description": "Whose account this is, and who pays",
                    },
                },
                "conn-fields": _connection_fields(),
            },
        ],
        "extra-links": [
            "airflow_provider_uniapi_fal.links.fal.FalGalleryLink",
            "airflow_provider_uniapi_fal.links.fal.FalManifestLink",
            "airflow_provider_uniapi_fal.links.fal.FalJobLink",
        ],
        "plugins": [
            {
                "name": "uniapi_fal",
                "plugin-class": "airflow_provider_uniapi_fal.plugins.uniapi_fal.UniapiFalPlugin",
            },
        ],
        "config": _configuration(),
    }


def _connection_fields() -> dict[str, Any]:
    """Describe the fields of the connection's extra for Airflow's form."""

    def field(label: str, description: str, **schema: Any) -> dict[str, Any]:
        return {"label": label, "description": description, "schema": schema}

    text = {"type": ["string", "null"]}
    seconds = {"type": ["number", "null"], "minimum": 0.1, "maximum": 86400}
    mapping = {"type": ["object", "null"]}
    return {
        "auth_scheme": field(
            "Authorization scheme",
            "The word before the key for the fal family: Key, as fal wants it, or Bearer. The other families "
            "use Bearer.",
            **text,
            default="Key",
        ),
        "family_paths": field(
            "Family paths",
            "JSON object, only if the gateway has other paths than the usual "
            '{"fal": "/fal-ai", "kling": "/kling", "luma": "/luma", "openai": "/v1"}.',
            **mapping,
        ),
        "connect_timeout": field(
            "Connect time-out (s)", "Seconds to reach the gateway.", **seconds, default=10
        ),
        "read_timeout": field(
            "Reply time-out (s)",
            "Seconds for a whole reply. A job may take longer: it is asked for again and again.",
            **seconds,
            default=60,
        ),
        "media_hosts": field(
            "Media hosts",
            "One host a line. Media files are fetched from public addresses only, and from these.",
            type=["array", "null"],
            items={"type": "string"},
        ),
        "proxy": field(
            "Proxy",
            "Address of an HTTP proxy, such as http://user:password@proxy:3128. Empty: as the environment says.",
            **text,
            format="password",
        ),
        "ca_bundle": field(
            "CA bundle",
            "Path of a file of CA certificates, on workers and triggerers, for a gateway with a private one.",
            **text,
        ),
        "headers": field(
            "Headers",
            "JSON object of headers for every request to the gateway. The key does not belong here.",
            **mapping,
        ),
    }


def _configuration() -> dict[str, Any]:
    """Describe the section of Airflow's configuration."""

    def option(description: str, kind: str, default: str, example: str | None = None) -> dict[str, Any]:
        return {
            "description": description,
            "version_added": "0.1.0",
            "type": kind,
            "default": default,
            "example": example,
        }

    options = {
        "media_roots": option(
            "Folders in storage, separated by commas, whose manifests and media the gallery may show to those who "
            "may see the DAG. The API server reads them, with the connection that a folder names before an @. "
            "Empty: the gallery shows nothing and says why.",
            "string",
            "",
            "s3://aws_default@bucket/nights, file:///srv/media",
        ),
        "thumbnail_folder": option(
            "Folder on the API server's disk in which the gallery keeps thumbnails. Empty: one in the folder for "
            "temporary files.",
            "string",
            "",
            "/var/cache/airflow/thumbnails",
        ),
        "thumbnail_megabytes": option(
            "Room that thumbnails may take; those not looked at for longest go first.", "integer", "512"
        ),
        "job_url_template": option(
            "Address of a job's page at the gateway, for the link Job of tasks that submit one. It may name "
            "{request_id} and {model}. Empty: no such link.",
            "string",
            "",
            "https://gateway.example/logs?id={request_id}",
        ),
    }
    description = "The gallery and the links of the UniAPI fal provider."
    return {"uniapi_fal": {"description": description, "options": options}}
