"""Where journals and media lie: on the local file system, and in a real S3 API on loopback."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from airflow.sdk import ObjectStoragePath
from moto.server import ThreadedMotoServer

if TYPE_CHECKING:
    from pathlib import Path

CONNECTION = "store"


@pytest.fixture(scope="session")
def s3_url() -> Iterator[str]:
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def s3_connection(url: str) -> str:
    """Write the connection as Airflow reads it from an environment variable."""
    extra = {"endpoint_url": url, "region_name": "us-east-1"}
    return json.dumps({"conn_type": "aws", "login": "key", "password": "secret", "extra": extra})


@pytest.fixture
def s3_place(s3_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return an empty bucket, reached through an Airflow connection."""
    monkeypatch.setenv(f"AIRFLOW_CONN_{CONNECTION.upper()}", s3_connection(s3_url))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    bucket = f"bucket-{uuid.uuid4().hex}"
    ObjectStoragePath(f"s3://{CONNECTION}@{bucket}").mkdir()
    return f"s3://{CONNECTION}@{bucket}"


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return a place in each kind of storage."""
    return f"file://{tmp_path}" if request.param == "local" else request.getfixturevalue("s3_place")
