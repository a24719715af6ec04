from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from airflow_provider_uniapi_fal.emulator.running import Emulator, running_emulator
from tests.emulator.client import Client

Start = Callable[..., tuple[Emulator, Client]]
AT_ONCE = {"queue_seconds": 0.0, "run_seconds": 0.0}


@pytest.fixture
def start() -> Iterator[Start]:
    """Start emulators whose jobs end at once unless said otherwise, each with a client."""
    with ExitStack() as stack:

        def begin(**settings: Any) -> tuple[Emulator, Client]:
            emulator = stack.enter_context(running_emulator(**{**AT_ONCE, **settings}))
            client = Client(emulator.url, prefix=settings.get("base_prefix", ""), ca_file=emulator.ca_file)
            stack.callback(client.close)
            return emulator, client

        yield begin
