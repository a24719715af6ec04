"""What a task has to load before it can begin: every start of a task, and every parse of a DAG, pays for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

OPERATORS = "airflow_provider_uniapi_fal.operators.fal"
SENSOR = "airflow_provider_uniapi_fal.sensors.fal"

#: What is for event loops, media, tables and pages only.
HEAVY = {"aiohttp", "PIL", "av", "pyarrow", "pandas", "fastapi", "rich"}


@pytest.mark.parametrize("module", [OPERATORS, SENSOR, "airflow_provider_uniapi_fal.triggers.fal"])
def test_a_task_that_submits_and_waits_loads_nothing_that_only_others_need(module: str) -> None:
    program = (
        "import sys, airflow.sdk, airflow.sdk.execution_time.xcom, airflow.triggers.base\n"
        "before = set(sys.modules)\n"
        f"import {module}\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    ).stdout.split()
    assert module in loaded
    assert HEAVY & set(loaded) == set()
