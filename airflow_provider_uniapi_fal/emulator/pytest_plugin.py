"""
Fixtures for tests of one's own DAGs: a local gateway that costs nothing, and a connection that leads to it.

Load it in the ``conftest.py`` at the root of the tests, or with ``pytest -p`` and the same name::

    pytest_plugins = ["airflow_provider_uniapi_fal.emulator.pytest_plugin"]

A test asks for ``fal_connection``, runs what it wants to see run, and looks at what arrived::

    def test_a_lost_reply_is_paid_once(fal_connection, fal_emulator):
        fal_emulator.add_fault("lost-reply times=1")
        assert my_dag.test().state == "failed"
        assert fal_emulator.account()["totals"]["posts_accepted"] == 1

The rules that ``add_fault`` takes, and everything that can be set, are listed by
``python -m airflow_provider_uniapi_fal.emulator --help``. A setting is the option's name with underscores::

    @pytest.fixture
    def fal_emulator_settings(fal_emulator_settings):
        return {**fal_emulator_settings, "run_seconds": 2.0, "faults": ["job match=storm failure=refused"]}

``fal_emulator_settings`` may be overridden for all tests, for a module or a class. Without that, jobs end at once.
Emulators are started once for each set of settings and run until the end of the session; each test finds its own as
if freshly started.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from airflow_provider_uniapi_fal.emulator.running import Emulator, running_emulator
from airflow_provider_uniapi_fal.emulator.settings import Settings

CONNECTION = "fal_default"
ANY_KEY = "any-key"


@pytest.fixture
def fal_emulator_settings() -> dict[str, Any]:
    """Return the settings of the emulator; to be overridden."""
    return {"queue_seconds": 0.0, "run_seconds": 0.0}


@pytest.fixture(scope="session")
def _fal_emulators() -> Iterator[Callable[[dict[str, Any]], Emulator]]:
    running: dict[str, Emulator] = {}
    with contextlib.ExitStack() as stack:

        def emulator_with(settings: dict[str, Any]) -> Emulator:
            name = repr(sorted(settings.items()))
            if name not in running:
                running[name] = stack.enter_context(running_emulator(**settings))
            return running[name]

        yield emulator_with


@pytest.fixture
def fal_emulator(
    _fal_emulators: Callable[[dict[str, Any]], Emulator], fal_emulator_settings: dict[str, Any]
) -> Emulator:
    """Return an emulator with these settings, which has seen nothing yet."""
    emulator = _fal_emulators(fal_emulator_settings)
    emulator.reset()
    return emulator


@pytest.fixture
def fal_connection(
    fal_emulator: Emulator, fal_emulator_settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> str:
    """Let Airflow's connection ``fal_default`` lead to the emulator, and return its id."""
    extra: dict[str, Any] = {"media_hosts": [urlsplit(fal_emulator.url).hostname]}
    if fal_emulator.ca_file is not None:
        extra["ca_bundle"] = fal_emulator.ca_file
    settings = Settings(**fal_emulator_settings)
    connection = {
        "conn_type": "uniapi_fal",
        "host": fal_emulator.url + settings.base_prefix,
        "password": settings.key or ANY_KEY,
        "extra": extra,
    }
    monkeypatch.setenv(f"AIRFLOW_CONN_{CONNECTION.upper()}", json.dumps(connection))
    return CONNECTION
