"""A user's own template for the page of a job at the gateway."""

from __future__ import annotations

from string import Formatter
from urllib.parse import quote, urlsplit

#: What a template may name.
FIELDS = ("request_id", "model")


def filled(template: str, *, request_id: str, model: str) -> str:
    """
    Return the address that a template makes.

    :param template: an address on the web with ``{request_id}`` and, if need be, ``{model}`` in it
    :raises ValueError: if it is none, or names something else
    """
    named = [
        (name, spec, conversion)
        for _, name, spec, conversion in Formatter().parse(template)
        if name is not None
    ]
    for name, spec, conversion in named:
        if name not in FIELDS or spec or conversion:
            raise ValueError(f"it may name {{request_id}} and {{model}}, not {{{name}}}")
    parts = urlsplit(template)
    if parts.scheme not in ("http", "https") or not parts.hostname or "{" in parts.netloc:
        raise ValueError("it is no address on the web")
    return template.format(request_id=quote(request_id, safe=""), model=quote(model, safe="/"))
