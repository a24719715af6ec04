"""Reading manifests and files: each once, of every store, and never what is not to be read."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import requests
from airflow.sdk import ObjectStoragePath
from moto.server import ThreadedMotoServer

from airflow_provider_uniapi_fal.landing.files import LandedFile
from airflow_provider_uniapi_fal.landing.manifest import Manifest, read_manifest, write_manifest
from airflow_provider_uniapi_fal.plugins.gallery import accounts as module
from airflow_provider_uniapi_fal.plugins.gallery.accounts import Named, Reader
from airflow_provider_uniapi_fal.plugins.gallery.files import located, part_of
from airflow_provider_uniapi_fal.plugins.gallery.ranges import ByteRange
from airflow_provider_uniapi_fal.plugins.gallery.roots import NotAllowed, place_of, read_roots
from tests.plugins import nights


def named(address: str, dag_id: str = "open_night", map_index: int = -1) -> Named:
    return Named(dag_id, "a run", "land", map_index, address)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])  # type: ignore[attr-defined]
    return now


def test_a_manifest_is_read_once_and_again_when_it_has_changed(
    tmp_path: Path, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    address = nights.write(tmp_path / "m.jsonl", [nights.row("a", 0)])
    roots, reader = read_roots(tmp_path.as_uri()), Reader()
    (first,), _ = reader.read([named(address)], roots)
    with monkeypatch.context() as patch:
        patch.setattr(module, "read_manifest", lambda *_: pytest.fail("read again"))
        assert reader.read([named(address)], roots)[0][0] is first
        clock[0] += module.FRESH_SECONDS + 1
        assert reader.read([named(address)], roots)[0][0] is first
    nights.write(tmp_path / "m.jsonl", [nights.row("a", 0), nights.row("b", 1)])
    clock[0] += module.FRESH_SECONDS + 1
    (second,), _ = reader.read([named(address)], roots)
    assert len(second.manifest.rows) == 2


def test_a_root_that_is_taken_away_is_closed_at_once(tmp_path: Path) -> None:
    address = nights.write(tmp_path / "m.jsonl", [nights.row("a", 0)])
    reader = Reader()
    assert reader.read([named(address)], read_roots(tmp_path.as_uri()))[0]
    accounts, (problem,) = reader.read([named(address)], read_roots("file:///elsewhere"))
    assert accounts == []
    assert problem.kind == "refused"
    assert problem.folder == tmp_path.as_uri()


def test_what_was_read_for_one_dag_is_not_shown_for_another(tmp_path: Path) -> None:
    address = nights.write(tmp_path / "m.jsonl", [nights.row("a", 0)])
    roots, reader = read_roots(tmp_path.as_uri()), Reader()
    assert reader.read([named(address)], roots)[0]
    accounts, (problem,) = reader.read([named(address, "another")], roots)
    assert (accounts, problem.kind) == ([], "foreign")


def test_memory_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "KEPT_ROWS", 5)
    reader, roots = Reader(), read_roots(tmp_path.as_uri())
    for index in range(6):
        address = nights.write(tmp_path / f"{index}.jsonl", [nights.row(str(n), n) for n in range(2)])
        reader.read([named(address, map_index=index)], roots)
    assert len(reader._kept) == 2
    assert reader._rows == 4


def test_a_manifest_that_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = nights.write(tmp_path / "m.jsonl", [nights.row("a", 0)])
    monkeypatch.setattr(module, "MAX_MANIFEST_BYTES", 10)
    _, (problem,) = Reader().read([named(address)], read_roots(tmp_path.as_uri()))
    assert "too long" in problem.message


def test_a_summary_that_is_too_long_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    address = nights.write(tmp_path / "m.jsonl", [nights.row("a", 0)])
    with (tmp_path / "m.summary.json").open("ab") as summary:
        summary.truncate(2**40)  # a hole: it takes no room on the disk
    monkeypatch.setattr(module, "chunks_of", lambda *_: pytest.fail("read"))
    _, (problem,) = Reader().read([named(address)], read_roots(tmp_path.as_uri()))
    assert problem.kind == "broken"
    assert "summary has 1099511627776 bytes, which is too long" in problem.message


def test_a_manifest_behind_a_link_has_its_summary_beside_itself(tmp_path: Path) -> None:
    (tmp_path / "2026").mkdir()
    nights.write(tmp_path / "2026" / "night.jsonl", [nights.row("right", 0)])
    nights.write(tmp_path / "latest.jsonl", [nights.row("another", 0)])
    (tmp_path / "latest.jsonl").unlink()
    (tmp_path / "latest.jsonl").symlink_to(tmp_path / "2026" / "night.jsonl")
    (account,), _ = Reader().read([named(f"file://{tmp_path}/latest.jsonl")], read_roots(tmp_path.as_uri()))
    assert [row.key for row in account.manifest.rows] == ["right"]


def test_a_summary_behind_a_link_out_of_the_root_is_not_read(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    for folder in (root / "real", outside):
        folder.mkdir(parents=True)
        nights.write(folder / "m.jsonl", [nights.row("a", 0)])
    (root / "real" / "m.summary.json").unlink()
    (root / "real" / "m.summary.json").symlink_to(outside / "m.summary.json")
    (root / "m.jsonl").symlink_to(root / "real" / "m.jsonl")
    (root / "m.summary.json").write_text("{}")
    for name in ("m.jsonl", "real/m.jsonl"):
        accounts, (problem,) = Reader().read([named(f"file://{root}/{name}")], read_roots(root.as_uri()))
        assert (accounts, problem.kind) == ([], "refused")


def test_the_summary_that_was_looked_at_is_the_one_that_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between a look and a read, somebody may have put a link in its place."""
    address = nights.write(tmp_path / "m.jsonl", [nights.row("a", 0)])

    def swapped(*args: object) -> Manifest:
        (tmp_path / "m.summary.json").write_text("{}")
        return read_manifest(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "read_manifest", swapped)
    accounts, problems = Reader().read([named(address)], read_roots(tmp_path.as_uri()))
    assert (len(accounts), problems) == (1, [])


@pytest.mark.parametrize("text", ["[]", "{}", "nonsense", '{"rows_sha256": 5}'])
def test_a_summary_that_is_none_is_said_to_be_none(tmp_path: Path, text: str) -> None:
    address = nights.write(tmp_path / "m.jsonl", [nights.row("a", 0)])
    (tmp_path / "m.summary.json").write_text(text)
    accounts, (problem,) = Reader().read([named(address)], read_roots(tmp_path.as_uri()))
    assert (accounts, problem.kind) == ([], "broken")


def test_what_is_no_file_is_not_opened(tmp_path: Path) -> None:
    roots = read_roots(tmp_path.as_uri())
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for ever
    (tmp_path / "folder").mkdir()
    for name in ("pipe", "folder"):
        with pytest.raises(NotAllowed, match="no file"):
            located(place_of(f"file://{tmp_path}/{name}", roots))


def test_a_link_within_the_root_is_followed_and_one_out_of_it_is_not(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    (root / "a").write_text("a")
    (outside / "b").write_text("b")
    (root / "in").symlink_to(root / "a")
    (root / "out").symlink_to(outside)
    roots = read_roots(root.as_uri())
    path, size = located(place_of(f"file://{root}/in", roots))
    assert b"".join(part_of(path, size, None)) == b"a"
    with pytest.raises(NotAllowed, match="leads out"):
        located(place_of(f"file://{root}/out/b", roots))


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        url = f"http://{host}:{port}"
        # Airflow keeps the file system of a connection for good, so each server has a connection of its own.
        conn_id = f"gallery_{port}"
        extra = {"endpoint_url": url, "region_name": "us-east-1"}
        connection = {"conn_type": "aws", "login": "test", "password": "test", "extra": extra}
        monkeypatch.setenv(f"AIRFLOW_CONN_{conn_id.upper()}", json.dumps(connection))
        requests.put(f"{url}/media", timeout=10).raise_for_status()
        yield f"s3://{conn_id}@media/nights"
    finally:
        server.stop()


def test_manifests_and_media_of_an_object_store_are_read_with_the_roots_connection(bucket: str) -> None:
    content = bytes(range(256)) * 2000
    folder = ObjectStoragePath(bucket)
    (folder / "a.mp4").write_bytes(content)
    # As a task without a connection of its own would name it.
    file = LandedFile("video", "s3://media/nights/a.mp4", len(content), "ab" * 32, "video/mp4", 1, 1, False)
    row = replace(nights.row("a", 0), files=(file,))
    write_manifest(Manifest((row,), dag_id="open_night"), folder / "m.jsonl")
    roots = read_roots(bucket)
    (account,), _ = Reader().read([named("s3://media/nights/m.jsonl")], roots)
    path, size = located(place_of(account.manifest.rows[0].files[0].path, roots))
    assert size == len(content)
    assert b"".join(part_of(path, size, None)) == content
    assert b"".join(part_of(path, size, ByteRange(300_000, 300_099))) == content[300_000:300_100]
    _, (problem,) = Reader().read([named("s3://media/nights/later.jsonl")], roots)
    assert problem.kind == "unfinished"
