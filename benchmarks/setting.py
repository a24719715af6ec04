"""Where the ways are compared: the emulator over TLS, some way off, and one real Airflow."""

from __future__ import annotations

import json
from pathlib import Path

from airflow_provider_uniapi_fal.emulator.running import Emulator, EmulatorProcess
from demo.local_airflow import LocalAirflow

PROJECT = Path(__file__).resolve().parent.parent
DAGS = Path(__file__).parent / "dags"
KEY = "benchmark-key"

#: Seconds on the way to the gateway, and the share by which they vary: 30 to 80 ms.
LATENCY, LATENCY_SPREAD = 0.055, 0.45


def a_gateway(
    seconds: float, *, spread: float, latency: float = LATENCY, latency_spread: float = LATENCY_SPREAD
) -> EmulatorProcess:
    """Return a gateway, not yet started, whose jobs take so many seconds, more or less by a share of them."""
    return EmulatorProcess(
        tls=True,
        key=KEY,
        queue_seconds=0.0,
        run_seconds=seconds,
        spread=spread,
        urls="gateway",
        cancel_url="present",
        stream="offered",
        # One small picture for all, so that the emulator does not take the CPU that is measured.
        same_media=True,
        latency=latency,
        latency_spread=latency_spread,
        faults=["job match=http_provider early_result_code=404"],
    )


def an_airflow(folder: Path, emulator: Emulator, parallelism: int = 32) -> LocalAirflow:
    """Return an Airflow in a folder, not yet started, with a connection of each way to the gateway."""
    ca_file, host = str(emulator.ca_file), emulator.url.removeprefix("https://")
    media = {"media_hosts": ["127.0.0.1"]}
    ours = {"conn_type": "uniapi_fal", "host": emulator.url, "password": KEY, "extra": media}
    authorization = {"Authorization": f"Key {KEY}"}
    http = {"conn_type": "http", "schema": "https", "host": host, "extra": authorization}
    return LocalAirflow(
        folder / "airflow",
        dags=DAGS,
        environment={
            "AIRFLOW_CONN_FAL_DEFAULT": json.dumps(ours),
            "AIRFLOW_CONN_BENCH_HTTP": json.dumps(http),
            "BENCH_URL": emulator.url,
            "BENCH_KEY": KEY,
            "FAL_KEY": KEY,
            "FAL_RUN_HOST": host,
            "FAL_QUEUE_RUN_HOST": host,
            "REQUESTS_CA_BUNDLE": ca_file,
            "SSL_CERT_FILE": ca_file,
            "PYTHONPATH": str(PROJECT),
        },
        config={"core": {"max_active_tasks_per_dag": 1000}},
        parallelism=parallelism,
        start_timeout=240,
    )
