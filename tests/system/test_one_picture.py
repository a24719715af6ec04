"""The README's DAG, as its reader runs it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import av
import pytest
from PIL import Image

if TYPE_CHECKING:
    from pathlib import Path

    from airflow_provider_uniapi_fal.emulator.running import Emulator
    from demo.local_airflow import LocalAirflow

pytestmark = [pytest.mark.system, pytest.mark.timeout(180)]


def test_the_readmes_dag_lands_its_picture(airflow: LocalAirflow, emulator: Emulator, tmp_path: Path) -> None:
    airflow.wait_for_dag("one_picture")
    run_id = airflow.trigger("one_picture", conf={"destination": f"file://{tmp_path}"})
    assert airflow.wait_for_run("one_picture", run_id, 120) == "success"

    (file,) = airflow.xcom("one_picture", run_id, "land")
    request_id = airflow.xcom("one_picture", run_id, "submit", key="request_id")
    (picture,) = tmp_path.iterdir()
    assert file["path"] == f"file://{picture}"
    assert picture.stem == request_id
    width, height = Image.open(picture).size
    assert width / height == pytest.approx(16 / 9, rel=0.05)
    for key, ending in (("status_url", f"/requests/{request_id}/status"), ("response_url", f"/{request_id}")):
        url = airflow.xcom("one_picture", run_id, "submit", key=key)
        assert url.startswith(f"{emulator.url}/fal-ai/")
        assert url.endswith(ending)


def test_the_one_task_example_lands_its_video(
    airflow: LocalAirflow, emulator: Emulator, tmp_path: Path
) -> None:
    airflow.wait_for_dag("one_task")
    run_id = airflow.trigger("one_task", conf={"destination": f"file://{tmp_path}"})
    assert airflow.wait_for_run("one_task", run_id, 120) == "success"
    (video,) = tmp_path.iterdir()
    with av.open(str(video)) as container:
        assert sum(1 for _ in container.decode(video=0)) > 1
