"""A batch on a real Airflow, as the tests follow it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal.landing.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.running import Emulator
    from airflow_provider_uniapi_fal.landing.manifest import ManifestRow
    from demo.local_airflow import LocalAirflow


class BatchRun:
    """One run of a batch, known by what its prompts begin with."""

    def __init__(
        self,
        airflow: LocalAirflow,
        emulator: Emulator,
        dag_id: str,
        place: Path,
        name: str,
        destination: str | None = None,
    ) -> None:
        self.airflow, self.emulator, self.dag_id, self.name = airflow, emulator, dag_id, name
        self.place = place
        self.destination = ObjectStoragePath(destination or (place / "night").as_uri())
        self.run_id = ""

    def begin(self, count: int = 8, **more: Any) -> None:
        size = {"width": 64, "height": 48}
        rows = [
            {"key": f"{n:03}", "arguments": {"prompt": f"{self.name} {n:03}.", "image_size": size}, **more}
            for n in range(count)
        ]
        table = self.place / "table.jsonl"
        table.write_text("\n".join(map(json.dumps, rows)))
        self.airflow.wait_for_dag(self.dag_id)
        conf = {"table": table.as_uri(), "destination": str(self.destination)}
        self.run_id = self.airflow.trigger(self.dag_id, conf=conf)

    def jobs(self) -> list[dict[str, Any]]:
        return [job for job in self.emulator.account()["jobs"] if job["prompt"].startswith(self.name)]

    def posts(self) -> int:
        return sum(job["accepted_posts"] for job in self.jobs())

    def kill_worker(self) -> None:
        os.kill(self.airflow.pid_of_task(self.dag_id, self.run_id, "batch"), signal.SIGKILL)

    def end(self, seconds: float = 150) -> str:
        return self.airflow.wait_for_run(self.dag_id, self.run_id, seconds)

    def tries(self) -> int:
        return self.airflow.task_instance(self.dag_id, self.run_id, "batch").try_number

    def landed(self) -> list[str]:
        """Name the files in the destination, besides the manifest and the journal."""
        store, folder = self.destination.fs, self.destination.path
        store.invalidate_cache()
        try:
            found = [str(path).rpartition("/")[2] for path in store.ls(folder, detail=False)]
        except FileNotFoundError:
            return []
        finally:
            # What was listed is not to be taken for what is there later.
            store.invalidate_cache()
        return sorted(name for name in found if not name.startswith("manifest."))

    def manifest(self) -> Manifest:
        return read_manifest(self.destination / "manifest.jsonl")

    def assert_all_is_whole(self, count: int) -> tuple[ManifestRow, ...]:
        """Each row is accounted for, each file is whole, and none is there that no row has."""
        rows = self.manifest().rows
        assert [row.key for row in rows] == [f"{n:03}" for n in range(count)]
        files = [file for row in rows for file in row.files]
        for file in files:
            content = ObjectStoragePath(file.path).read_bytes()
            assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)
        assert sorted(file.path.rpartition("/")[2] for file in files) == self.landed()
        return rows
