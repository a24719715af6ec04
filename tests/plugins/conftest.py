"""One real Airflow whose runs name the manifests of a test's nights, good ones and hostile ones."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import requests
from airflow.sdk import ObjectStoragePath
from moto.server import ThreadedMotoServer

from airflow_provider_uniapi_fal.landing.files import LandedFile
from airflow_provider_uniapi_fal.landing.manifest import read_manifest
from demo.local_airflow import LocalAirflow
from tests.plugins import nights

PROJECT = Path(__file__).parents[2]
SCRIPT = "<script>document.title='owned'</script>"

#: What the tasks ``scene_0``, ``scene_1`` … name.
SCENES = (
    "good",
    "absolute path",
    "dots",
    "link out of the root",
    "hostile files",
    "hostile words",
    "another DAG's manifest",
    "manifest outside the root",
    "manifest is a link out of the root",
    "not written yet",
    "broken",
    "on the web",
    "file on the web",
    "hostile films",
    "malformed types",
    "summary is a link out of the root",
)


@dataclass
class Site:
    """
    A running Airflow with the gallery, and two users: ``admin``, and ``guest`` who may see ``open_…`` DAGs.

    :param ear: what listens at the web address that manifests and files name
    """

    airflow: LocalAirflow
    folder: Path
    open_run: str
    closed_run: str
    long_run: str
    store_run: str
    ear: socket.socket

    def password(self, user: str) -> str:
        file = self.airflow.folder / "simple_auth_manager_passwords.json.generated"
        return str(json.loads(file.read_text())[user])

    def token(self, user: str) -> str:
        body = {"username": user, "password": self.password(user)}
        reply = requests.post(f"{self.airflow.url}/auth/token", json=body, timeout=30)
        reply.raise_for_status()
        return str(reply.json()["access_token"])

    def as_user(self, user: str | None) -> requests.Session:
        """Return a session that is logged in as a browser is: by the cookie."""
        session = requests.Session()
        session.trust_env = False
        if user is not None:
            session.cookies.set("_token", self.token(user))
        return session

    def web_was_called(self) -> bool:
        """Whether anything has connected to the web address since the last time; it would wait to be accepted."""
        try:
            self.ear.accept()[0].close()
        except BlockingIOError:
            return False
        return True

    def address(self, path: str) -> str:
        return f"{self.airflow.url}/fal-media{path}"

    def run(self, dag_id: str = "open_night", run_id: str | None = None) -> str:
        runs = {"closed_night": self.closed_run, "nightly_batch": self.store_run}
        run_id = run_id or runs.get(dag_id, self.open_run)
        return f"/dags/{dag_id}/runs/{quote(run_id, safe='')}"

    def scene(self, name: str) -> str:
        return f"{self.run()}/tasks/{self.task(name)}/-1"

    def task(self, scene: str) -> str:
        return f"scene_{SCENES.index(scene)}"


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("gallery")
    root, outside = folder / "root", folder / "outside"
    root.mkdir()
    outside.mkdir()
    dags = folder / "dags"
    shutil.copytree(Path(__file__).parent / "dags", dags)
    ear = socket.create_server(("127.0.0.1", 0))
    ear.setblocking(False)
    scenes = hostile_scenes(root, outside, f"http://127.0.0.1:{ear.getsockname()[1]}")
    closed = nights.small_night(root / "closed", "closed_night")
    long = nights.long_night(root / "long")
    config: dict[str, dict[str, object]] = {
        "core": {
            "auth_manager": "tests.plugins.auth.PerDagAuthManager",
            "simple_auth_manager_users": "admin:admin,guest:viewer",
            "test_connection": "Enabled",
        },
        "uniapi_fal": {
            "media_roots": f"file://{root}, s3://store@media/nights",
            "thumbnail_folder": folder / "thumbnails",
        },
    }
    with ear, object_store() as url:
        extra = {"endpoint_url": url, "region_name": "us-east-1"}
        store = {"conn_type": "aws", "login": "test", "password": "test", "extra": extra}
        environment = {"PYTHONPATH": str(PROJECT), "AIRFLOW_CONN_STORE": json.dumps(store)}
        in_store = stored_night(folder / "stored", url)
        with LocalAirflow(
            folder / "airflow", dags=dags, environment=environment, config=config, parallelism=6
        ) as airflow:
            for dag_id in ("open_night", "closed_night", "nightly_batch", "landing"):
                airflow.wait_for_dag(dag_id)
            site = Site(airflow, folder, "", "", "", "", ear)
            admin = site.as_user("admin")
            named = {site.task(name): scenes[name] for name in SCENES}
            site.closed_run = a_run(admin, airflow.url, "closed_night", {"one": closed})
            site.store_run = a_run(admin, airflow.url, "nightly_batch", {"media": in_store})
            site.long_run = a_run(admin, airflow.url, "open_night", {"one": long})
            site.open_run = a_run(admin, airflow.url, "open_night", {"one": scenes["good"], **named})
            yield site


@contextmanager
def object_store() -> Iterator[str]:
    """Run an object store with a bucket ``media``, and give its address."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        requests.put(f"http://{host}:{port}/media", timeout=10).raise_for_status()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def stored_night(folder: Path, url: str) -> str:
    """Put a good night into the object store and return the address of its manifest."""
    local = nights.good_night(folder, "nightly_batch")
    there = "s3://media/nights/2026-11-25"
    rows = [
        replace(row, files=tuple(replace(f, path=f"{there}/{Path(f.path).name}") for f in row.files))
        for row in read_manifest(ObjectStoragePath(local)).rows
    ]
    nights.write(folder / "manifest.jsonl", rows, "nightly_batch", written_at=1_790_003_600.0)
    for file in folder.iterdir():
        key = f"{there.removeprefix('s3://')}/{file.name}"
        requests.put(f"{url}/{key}", data=file.read_bytes(), timeout=30).raise_for_status()
    return f"{there}/manifest.jsonl"


def a_run(session: requests.Session, url: str, dag_id: str, manifests: dict[str, str]) -> str:
    """Make a run of a DAG that is paused, and say in XCom where the manifests of its tasks are."""
    headers = {"Authorization": f"Bearer {session.cookies['_token']}"}

    def post(path: str, body: dict[str, Any]) -> Any:
        reply = session.post(f"{url}/api/v2/dags/{dag_id}{path}", json=body, headers=headers, timeout=60)
        reply.raise_for_status()
        return reply.json()

    run_id = str(post("/dagRuns", {"logical_date": None})["dag_run_id"])
    for task_id, path in manifests.items():
        post(
            f"/dagRuns/{quote(run_id, safe='')}/taskInstances/{task_id}/xcomEntries",
            {"key": "manifest_path", "value": path},
        )
    return run_id


def hostile_scenes(root: Path, outside: Path, web: str) -> dict[str, str]:
    """Write a manifest for each scene and return where they are."""

    def folder(name: str) -> Path:
        made = root / name
        made.mkdir(exist_ok=True)
        return made

    def one_file(name: str, path: str, content_type: str = "image/png") -> str:
        file = LandedFile("images[0]", path, 5, "ab" * 32, content_type, 4, 3, False)
        return nights.write(folder(name) / "manifest.jsonl", [nights.row(name, 0, files=(file,))])

    secret = outside / "secret.png"
    shutil.copy(nights_picture(outside), secret)
    link = folder("link") / "innocent.png"
    link.symlink_to(secret)
    files = folder("files")
    svg, html, lying = files / "drawing.svg", files / "page.html", files / "lying.png"
    svg.write_text(f'<svg xmlns="http://www.w3.org/2000/svg">{SCRIPT}</svg>')
    html.write_text(f"<!doctype html>{SCRIPT}")
    lying.write_text(f"<!doctype html>{SCRIPT}")
    hostile = [
        nights.landed(svg, "image/svg+xml"),
        nights.landed(html, "text/html"),
        nights.landed(lying, "image/png"),
    ]
    words: dict[str, Any] = {
        "arguments": {"prompt": f"\"'>{SCRIPT}<img src=x onerror=alert(1)>"},
        "metadata": {"note": f"</pre>{SCRIPT}"},
        "model": f"model-{SCRIPT}",
        "request_id": f"id-{SCRIPT}",
    }
    row = nights.row(f"key-{SCRIPT}", 0, files=(nights.landed(lying, f"image/png{SCRIPT}"),), **words)
    secret_film = outside / "secret.mp4"
    nights.video(secret_film, "A secret", 1, 1.0)
    films = [
        nights.landed(film, "video/mp4") for film in nights.hostile_films(folder("films"), secret_film, web)
    ]
    away = nights.small_night(outside / "night")
    linked = folder("linked") / "manifest.jsonl"
    for name in ("manifest.jsonl", "manifest.summary.json"):
        (linked.parent / name).symlink_to(outside / "night" / name)
    broken = nights.write(folder("broken") / "manifest.jsonl", [nights.row("a", 0)])
    with Path(broken.removeprefix("file://")).open("a") as rows:
        rows.write("{}\n")
    malformed = folder("malformed") / "manifest.jsonl"
    nights.write(malformed, [nights.row("a", 0), nights.row("b", 1)])
    nights.rewrite(malformed, lambda row: {**row, "model": None})
    half_linked = folder("half_linked")
    nights.write(half_linked / "manifest.jsonl", [nights.row("scene-00", 0)])
    nights.write(outside / "manifest.jsonl", [nights.row("scene-00", 0)])
    (half_linked / "manifest.summary.json").unlink()
    (half_linked / "manifest.summary.json").symlink_to(outside / "manifest.summary.json")
    os.chmod(secret, 0o644)  # noqa: PTH101
    return {
        "good": nights.good_night(folder("good")),
        "absolute path": one_file("absolute", "/etc/passwd"),
        "dots": one_file("dots", f"file://{root}/dots/../../outside/secret.png"),
        "link out of the root": one_file("link", f"file://{link}"),
        "hostile files": nights.write(
            files / "manifest.jsonl", [nights.row("files", 0, files=tuple(hostile))]
        ),
        "hostile words": nights.write(folder("words") / "manifest.jsonl", [row]),
        "another DAG's manifest": nights.write(
            folder("foreign") / "manifest.jsonl", [nights.row("a", 0)], "closed_night"
        ),
        "manifest outside the root": away,
        "manifest is a link out of the root": f"file://{linked}",
        "not written yet": f"file://{root}/later/manifest.jsonl",
        "broken": broken,
        "on the web": f"{web}/manifest.jsonl",
        "file on the web": one_file("web", f"{web}/a.png"),
        "hostile films": nights.write(
            root / "films" / "manifest.jsonl", [nights.row("films", 0, files=tuple(films))]
        ),
        "malformed types": f"file://{malformed}",
        "summary is a link out of the root": f"file://{half_linked}/manifest.jsonl",
    }


def nights_picture(folder: Path) -> Path:
    """Paint a picture nobody may see, and return where it is."""
    path = folder / "painting.jpg"
    nights.picture(path, "A secret", 1, 64, 48)
    return path
