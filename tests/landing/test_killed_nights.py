"""Nights whose worker is killed while it lands: the next try lands the rest, and clears away what the killed one left."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal.landing.manifest import read_manifest, verify_files
from tests.batch.tasks import MODES, BatchTask, counts, table
from tests.fakes import posts

if TYPE_CHECKING:
    import pytest

    from tests.fakes import Start

#: The first try of a night, which is killed with half of its second file in storage.
FIRST_TRY = """
import os, shutil, signal, sys
from airflow_provider_uniapi_fal.landing import media, storage
from tests.batch.tasks import BatchTask, table

put, copy = media.put, shutil.copyfileobj

def copy_half(reader, writer, length):
    writer.write(reader.read(100))
    writer.flush()
    os.kill(os.getpid(), signal.SIGKILL)

def put_until_killed(source, target):
    if target.name.startswith("row-001"):
        storage.shutil.copyfileobj = copy_half
    put(source, target)

media.put = put_until_killed
BatchTask(sys.argv[1], requests=table(4), deferrable=False, name_template="media/{key}", parallel=1).run()
"""


def test_what_a_killed_worker_left_is_cleared_away_by_the_next_try(
    start: Start, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    emulator = start()
    spool = tmp_path / "spool"
    spool.mkdir()
    night = f"{place}/night"
    killed = subprocess.run(
        [sys.executable, "-c", FIRST_TRY, night],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "TMPDIR": str(spool)},
        timeout=120,
        check=False,
    )
    assert killed.returncode == -9
    halves = list((tmp_path / "night" / "media").glob(".*.part"))
    assert [path.stat().st_size for path in halves] == ([100] if place.startswith("file") else [])
    assert list(spool.iterdir()) != []
    assert posts(emulator) == 4
    monkeypatch.setattr(tempfile, "tempdir", str(spool))
    task = BatchTask(night, requests=table(4), name_template="media/{key}", **MODES["blocking"])
    task.next_try()
    assert counts(task.run()) == {"asked": 4, "succeeded": 4}
    assert posts(emulator) == 4
    manifest = read_manifest(ObjectStoragePath(f"{night}/manifest.jsonl"))
    assert [check for check in verify_files(manifest) if check.problem] == []
    assert list(spool.iterdir()) == []
    root = ObjectStoragePath(night)
    root.fs.invalidate_cache()
    names = {str(name).rpartition("/")[2] for name in root.fs.find(root.path)}
    assert {name for name in names if not name.startswith(("manifest.", "000"))} == {
        f"row-{n:03}.jpg" for n in range(4)
    }
