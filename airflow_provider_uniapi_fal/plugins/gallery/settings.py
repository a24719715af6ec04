"""What the gallery reads from Airflow's configuration, section ``[uniapi_fal]``."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from airflow.configuration import conf

from airflow_provider_uniapi_fal.links.urls import prefix_below
from airflow_provider_uniapi_fal.plugins.gallery.roots import Root, read_roots

SECTION = "uniapi_fal"


def media_roots() -> tuple[Root, ...]:
    """
    Return the folders whose files may be shown; none, unless the deployment names some.

    :raises ValueError: if one of them is no usable folder
    """
    return read_roots(conf.get(SECTION, "media_roots", fallback="") or "")


def thumbnail_folder() -> Path:
    """Return where thumbnails are kept: on the API server's own disk, for its own user."""
    named = conf.get(SECTION, "thumbnail_folder", fallback="") or ""
    return Path(named or f"{tempfile.gettempdir()}/uniapi-fal-thumbnails-{os.getuid()}")


def thumbnail_bytes() -> int:
    """Return how much room thumbnails may take."""
    return conf.getint(SECTION, "thumbnail_megabytes", fallback=512) * 1024 * 1024


def own_prefix() -> str:
    """Return the path at which the gallery is mounted."""
    return prefix_below(conf.get("api", "base_url", fallback="") or "")
