"""What a task has to load before it can begin: every start of a task, and every parse of a DAG, pays for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

OPERATORS = "airflow_provider_uniapi_fal.operators.fal"
BATCH = "airflow_provider_uniapi_fal.operators.batch"
SENSOR = "airflow_provider_uniapi_fal.sensors.fal"

#: What is for event loops, media, tables and pages only.
HEAVY = {"aiohttp", "PIL", "av", "pyarrow", "pandas", "fastapi", "rich"}


def loaded_with(module: str) -> set[str]:
    program = (
        "import sys, airflow.sdk, airflow.sdk.execution_time.xcom, airflow.triggers.base\n"
        "before = set(sys.modules)\n"
        f"import {module}\n"
        "print(*sorted(set(sys.modules) - before))\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120
    ).stdout
    return set(output.split())


@pytest.mark.parametrize("module", [OPERATORS, SENSOR, "airflow_provider_uniapi_fal.triggers.fal"])
def test_a_task_that_submits_and_waits_loads_nothing_that_only_others_need(module: str) -> None:
    loaded = loaded_with(module)
    assert module in loaded
    assert HEAVY & loaded == set()


def test_a_batch_loads_what_it_lands_with_only_when_it_lands() -> None:
    loaded = loaded_with(BATCH)
    assert BATCH in loaded
    assert {"PIL", "av", "pyarrow", "pandas", "puremagic"} & loaded == set()
