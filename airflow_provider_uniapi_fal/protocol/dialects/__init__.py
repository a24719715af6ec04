"""The gateway's wire protocols behind one interface."""

from __future__ import annotations

from typing import TYPE_CHECKING

from airflow_provider_uniapi_fal.protocol.dialects.fal import FalDialect
from airflow_provider_uniapi_fal.protocol.dialects.kling import KlingDialect
from airflow_provider_uniapi_fal.protocol.dialects.luma import LumaDialect
from airflow_provider_uniapi_fal.protocol.dialects.openai_images import OpenAIImagesDialect

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.protocol.dialects.base import Dialect

DIALECTS: dict[str, Dialect] = {
    dialect.name: dialect for dialect in (FalDialect(), KlingDialect(), LumaDialect(), OpenAIImagesDialect())
}


def dialect_named(name: str) -> Dialect:
    """
    Return the dialect that a handle names.

    :raises ValueError: if there is none of that name
    """
    if name not in DIALECTS:
        raise ValueError(f"there is no dialect {name!r}; there are {', '.join(DIALECTS)}")
    return DIALECTS[name]
