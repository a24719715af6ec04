"""Places to land in: a local folder, and a bucket behind a real S3 API on loopback, in a process of its own."""

from __future__ import annotations

import json
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests
from airflow.sdk import ObjectStoragePath

from demo.processes import Processes
from tests.fakes import wait_until
from tests.transport.servers import free_port


def s3_connection(url: str) -> str:
    """Return an Airflow connection to an S3 API, as JSON for an environment variable."""
    extra = {"endpoint_url": url, "region_name": "us-east-1"}
    return json.dumps({"conn_type": "aws", "login": "test", "password": "test", "extra": extra})


def _answers(url: str) -> bool:
    try:
        return requests.get(f"{url}/moto-api/", timeout=5).ok
    except requests.ConnectionError:
        return False


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Run an S3-compatible server; yield its address."""
    port = free_port()
    folder = tmp_path_factory.mktemp("s3")
    with Processes() as processes:
        processes.start(
            "s3",
            [sys.executable, "-m", "moto.server", "--host", "127.0.0.1", "--port", str(port)],
            environment={"PATH": "/usr/bin:/bin"},
            folder=folder,
            log=folder / "log",
        )
        url = f"http://127.0.0.1:{port}"
        wait_until(lambda: _answers(url), 60)
        yield url


@dataclass(frozen=True)
class Store:
    """
    One empty place in storage.

    :param root: its address
    :param conn_id: Airflow connection of the storage
    """

    root: str
    conn_id: str | None = None

    @property
    def path(self) -> ObjectStoragePath:
        return ObjectStoragePath(self.root, conn_id=self.conn_id)

    def names(self) -> list[str]:
        """List all files below it."""
        store, root = self.path.fs, self.path.path
        store.invalidate_cache()
        return sorted(found[len(root) :].lstrip("/") for found in store.find(root))

    def read(self, name: str) -> bytes:
        content: bytes = (self.path / name).read_bytes()
        return content


@pytest.fixture
def bucket(s3_server: str, monkeypatch: pytest.MonkeyPatch) -> Store:
    """Make a bucket, and the connection that leads to it."""
    # Airflow keeps the file system of a connection for good, so each server has a connection of its own.
    conn_id = f"media_bucket_{s3_server.rpartition(':')[2]}"
    monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", s3_connection(s3_server))
    name = f"bucket-{uuid.uuid4().hex}"
    requests.put(f"{s3_server}/{name}", timeout=10).raise_for_status()
    return Store(f"s3://{name}", conn_id)


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Give each test that asks for it a local folder, and then a bucket."""
    if request.param == "local":
        folder = tmp_path / "storage"
        folder.mkdir()
        return Store(folder.as_uri())
    made: Store = request.getfixturevalue("bucket")
    return made
