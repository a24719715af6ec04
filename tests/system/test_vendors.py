"""Every vendor's kinds of jobs on a real scheduler and triggerer: real files are landed, and each job is paid once."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import av
import pytest
from airflow.sdk import ObjectStoragePath
from PIL import Image

from airflow_provider_uniapi_fal.landing.manifest import read_manifest
from tests.system.waiting import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_uniapi_fal.emulator.running import Emulator
    from demo.local_airflow import LocalAirflow

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(300)]

#: The example, the endpoint of its jobs, and how many files of which kind it lands.
EXAMPLES: dict[str, tuple[str, list[str], str, int]] = {
    "kling_images": ("kling", ["images/generations"], "image", 2),
    "kling_text_to_video": ("kling", ["videos/text2video"], "video", 1),
    "kling_image_to_video": ("kling", ["videos/image2video"], "video", 1),
    "kling_try_on": ("kling", ["images/kolors-virtual-try-on"], "image", 1),
    "luma_video": ("luma", ["generations", "extend"], "video", 2),
    "openai_pictures": ("openai-images", ["generations"], "image", 2),
}


def is_image(path: Path) -> bool:
    with Image.open(path) as picture:
        return min(picture.size) > 1


def is_video(path: Path) -> bool:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0)) > 1


KINDS: dict[str, Callable[[Path], bool]] = {"image": is_image, "video": is_video}


def pictures(folder: Path) -> dict[str, str]:
    folder.mkdir()
    made = {}
    for name, colour in (("picture", "teal"), ("person", "pink"), ("cloth", "navy")):
        Image.new("RGB", (480, 640), colour).save(folder / f"{name}.jpg")
        made[name] = (folder / f"{name}.jpg").as_uri()
    return made


def test_every_example_lands_its_files_and_pays_once(
    airflow: LocalAirflow, emulator: Emulator, tmp_path: Path
) -> None:
    inputs = pictures(tmp_path / "inputs")
    before = {job["request_id"] for job in emulator.account()["jobs"]}
    runs: dict[str, str] = {}
    for name in EXAMPLES:
        airflow.wait_for_dag(name)
        conf: dict[str, Any] = {**inputs, "destination": (tmp_path / name).as_uri()}
        runs[name] = airflow.trigger(name, conf=conf)
    for name, run_id in runs.items():
        assert airflow.wait_for_run(name, run_id, 200) == "success", name
    jobs = [job for job in emulator.account()["jobs"] if job["request_id"] not in before]
    for name, (family, endpoints, kind, count) in EXAMPLES.items():
        found = [path for path in (tmp_path / name).iterdir() if path.is_file()]
        assert len(found) == count, name
        assert all(KINDS[kind](path) for path in found), name
        for endpoint in endpoints:
            made = [job for job in jobs if (job["family"], job["endpoint"]) == (family, endpoint)]
            assert [job["accepted_posts"] for job in made] == [1], (name, endpoint)


def test_a_night_of_every_vendor_in_one_batch_reconciles(
    airflow: LocalAirflow, emulator: Emulator, tmp_path: Path
) -> None:
    inputs = pictures(tmp_path / "inputs")
    asked: dict[str, tuple[str, str, dict[str, Any]]] = {
        "fal": ("fal", "flux/dev", {"prompt": "mixed, by fal", "image_size": {"width": 64, "height": 48}}),
        "kling-picture": ("kling", "images/generations", {"prompt": "mixed, by kling", "n": 2}),
        "kling-video": ("kling", "videos/text2video", {"prompt": "mixed, moving", "duration": "5"}),
        "kling-from-picture": ("kling", "videos/image2video", {"image": inputs["picture"]}),
        "kling-try-on": (
            "kling",
            "images/kolors-virtual-try-on",
            {"human_image": inputs["person"], "cloth_image": inputs["cloth"]},
        ),
        "luma": ("luma", "generations", {"user_prompt": "mixed, by luma"}),
        "openai": (
            "openai_images",
            "flux-pro/kontext/text-to-image",
            {"prompt": "mixed, at once", "n": 1, "response_format": "b64_json"},
        ),
        "refused": ("fal", "flux/dev", {"prompt": "mixed, refused by fal"}),
    }
    emulator.add_fault(fault="job", match="mixed, refused by fal", failure="refused")
    table = tmp_path / "table.jsonl"
    rows = [
        {"key": key, "dialect": dialect, "model": model, "arguments": arguments}
        for key, (dialect, model, arguments) in asked.items()
    ]
    table.write_text("\n".join(map(json.dumps, rows)))
    before = {job["request_id"] for job in emulator.account()["jobs"]}
    airflow.wait_for_dag("nightly_batch")
    conf = {"prompts": table.as_uri(), "destination": (tmp_path / "nights").as_uri()}
    run_id = airflow.trigger("nightly_batch", conf=conf)
    # One row was refused, and min_success_ratio is 1.
    assert airflow.wait_for_run("nightly_batch", run_id, 250) == "failed"
    (path,) = (tmp_path / "nights").rglob("manifest.jsonl")
    manifest = read_manifest(ObjectStoragePath(path.as_uri()))
    outcomes = {row.key: row.outcome for row in manifest.rows}
    assert outcomes == {key: "refused" if key == "refused" else "succeeded" for key in asked}
    assert {row.key: len(row.files) for row in manifest.rows} == {
        key: {"refused": 0, "kling-picture": 2}.get(key, 1) for key in asked
    }
    jobs = [job for job in emulator.account()["jobs"] if job["request_id"] not in before]
    assert [job["accepted_posts"] for job in jobs] == [1] * len(asked)


def jobs_of(emulator: Emulator, prompt: str) -> list[dict[str, Any]]:
    return [job for job in emulator.account()["jobs"] if job["prompt"] == prompt]


def started(airflow: LocalAirflow, emulator: Emulator, dag_id: str, **settings: Any) -> tuple[str, str]:
    """Start a run whose job takes its time; return the run and the prompt, which tells its jobs from others."""
    prompt = f"killed in {dag_id}"
    airflow.wait_for_dag(dag_id)
    emulator.add_fault(fault="job", match=prompt, queue_seconds=1, run_seconds=15, times=1)
    run_id = airflow.trigger(dag_id, conf={"prompt": prompt, **settings})
    eventually(lambda: len(jobs_of(emulator, prompt)) == 1, 60)
    return run_id, prompt


@pytest.mark.long
@pytest.mark.parametrize("vendor", ["kling", "luma"])
def test_a_worker_that_dies_while_it_waits_takes_up_the_same_job(
    airflow: LocalAirflow, emulator: Emulator, vendor: str
) -> None:
    dag_id = f"{vendor}_blocking"
    run_id, prompt = started(airflow, emulator, dag_id)
    eventually(lambda: jobs_of(emulator, prompt)[0]["calls"]["status"] >= 2, 30)
    os.kill(airflow.pid_of_task(dag_id, run_id, "generate"), signal.SIGKILL)
    assert airflow.wait_for_run(dag_id, run_id, 120) == "success"
    (job,) = jobs_of(emulator, prompt)
    assert airflow.task_instance(dag_id, run_id, "generate").try_number == 2
    assert airflow.xcom(dag_id, run_id, "generate")["handle"]["request_id"] == job["request_id"]


@pytest.mark.long
def test_jobs_of_both_vendors_outlive_the_triggerer(airflow: LocalAirflow, emulator: Emulator) -> None:
    runs = {dag_id: started(airflow, emulator, dag_id) for dag_id in ("kling_deferred", "luma_deferred")}
    for dag_id, (run_id, _) in runs.items():
        airflow.wait_for_task(dag_id, run_id, "generate", "deferred")
    airflow.kill("triggerer")
    airflow.restart("triggerer")
    for dag_id, (run_id, prompt) in runs.items():
        assert airflow.wait_for_run(dag_id, run_id, 120) == "success"
        assert len(jobs_of(emulator, prompt)) == 1
        assert airflow.task_instance(dag_id, run_id, "generate").try_number == 1


@pytest.mark.long
def test_a_worker_that_dies_while_the_answer_is_made_does_not_pay_twice(
    airflow: LocalAirflow, emulator: Emulator, tmp_path: Path
) -> None:
    """Nobody can tell what became of such a request, so the retry fails and says so."""
    dag_id = "openai_at_once"
    run_id, prompt = started(airflow, emulator, dag_id, destination=tmp_path.as_uri())
    os.kill(airflow.pid_of_task(dag_id, run_id, "generate"), signal.SIGKILL)
    assert airflow.wait_for_run(dag_id, run_id, 120) == "failed"
    assert len(jobs_of(emulator, prompt)) == 1
    assert airflow.task_instance(dag_id, run_id, "generate").try_number == 2
    assert airflow.xcom(dag_id, run_id, "generate", key="failure")["outcome"] == "unknown"
