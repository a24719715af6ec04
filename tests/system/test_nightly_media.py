"""The nightly example, as its users run it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.running import Emulator
    from demo.local_airflow import LocalAirflow

pytestmark = [pytest.mark.system, pytest.mark.timeout(300)]

NIGHT: list[tuple[str, str, dict[str, Any]]] = [
    ("square", "flux/dev", {"prompt": "A square of slate", "image_size": {"width": 640, "height": 640}}),
    (
        "two-wide",
        "flux-pro/kontext/text-to-image",
        {"prompt": "Two wide valleys", "aspect_ratio": "16:9", "num_images": 2, "output_format": "png"},
    ),
    ("too-many", "flux/dev", {"prompt": "More pictures than allowed", "num_images": 9}),
    ("refused", "flux/dev", {"prompt": "Something the policy forbids"}),
    ("lost", "flux/dev", {"prompt": "A letter lost at sea"}),
    (
        "moving",
        "fal-ai/kling-video/v2.1/standard/image-to-video",
        {"prompt": "The square begins to turn", "image_url": "start.png", "duration": "5"},
    ),
]


def test_a_night_ends_with_an_account_of_every_prompt(
    airflow: LocalAirflow, emulator: Emulator, tmp_path: Path
) -> None:
    Image.new("RGB", (320, 240), "teal").save(tmp_path / "start.png")
    rows = [{"key": key, "model": model, "arguments": arguments} for key, model, arguments in NIGHT]
    (tmp_path / "prompts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    emulator.add_fault(fault="lost-reply", on="submit", match="lost at sea", times=1)
    emulator.add_fault(fault="job", match="policy forbids", failure="refused")
    posts_before = emulator.account()["totals"]["posts_accepted"]

    airflow.wait_for_dag("nightly_media")
    run_id = airflow.trigger(
        "nightly_media",
        conf={"prompts": f"file://{tmp_path}/prompts.jsonl", "destination": f"file://{tmp_path}/nights"},
    )
    assert airflow.wait_for_run("nightly_media", run_id, 240) == "success"

    assert emulator.account()["totals"]["posts_accepted"] - posts_before == len(NIGHT)
    (account,) = [json.loads(file.read_text()) for file in tmp_path.glob("nights/*/account.json")]
    assert account["counts"] == {"asked": 6, "failed": 1, "refused": 1, "succeeded": 3, "unknown": 1}
    found = {row["key"]: row for row in account["rows"]}
    assert list(found) == [key for key, _, _ in NIGHT]
    assert {key: row["outcome"] for key, row in found.items()} == {
        "square": "succeeded",
        "two-wide": "succeeded",
        "too-many": "failed",
        "refused": "refused",
        "lost": "unknown",
        "moving": "succeeded",
    }
    assert "num_images" in found["too-many"]["error"]
    assert "outcome of the submit is unknown" in found["lost"]["error"]
    assert all(row["error"] is None for row in found.values() if row["outcome"] == "succeeded")

    def files(key: str) -> list[Path]:
        return [Path(file["path"].removeprefix("file://")) for file in found[key]["files"]]

    assert [Image.open(file).size for file in files("square")] == [(640, 640)]
    assert [file.name for file in files("two-wide")] == ["two-wide-0.png", "two-wide-1.png"]
    assert {Image.open(file).format for file in files("two-wide")} == {"PNG"}
    assert all(width > height for width, height in (Image.open(file).size for file in files("two-wide")))
    (video,) = files("moving")
    assert video.suffix == ".mp4"
    assert video.stat().st_size == found["moving"]["files"][0]["bytes"] > 0
    media = sorted(path.name for path in tmp_path.glob("nights/*/*") if path.name != "account.json")
    assert media == sorted(["square.jpg", "two-wide-0.png", "two-wide-1.png", "moving.mp4"])

    for _, _, arguments in NIGHT:
        assert [place for place in airflow.places_with(arguments["prompt"]) if ".log" in place] == []
    downloads = [request for request in emulator.requests() if request["path"].startswith("/files/")]
    assert downloads
    assert not any(request["has_authorization"] for request in downloads)
