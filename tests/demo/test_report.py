"""What the demo shows of a run, from accounts and pictures made here."""

from __future__ import annotations

import io
import json
import signal
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath
from PIL import Image
from rich.console import Console

from airflow_provider_uniapi_fal.landing.files import LandedFile
from airflow_provider_uniapi_fal.landing.manifest import Manifest, ManifestRow, RowError, write_manifest
from demo import __main__ as demo
from demo.account import BrokenMedia, MediaFile, Row, picture_of, read_account, read_keys, what_is_wrong
from demo.contact_sheet import draw_contact_sheet
from demo.local_airflow import TaskInstance
from demo.processes import Processes
from demo.progress import Progress, stages

PROMPTS = Path(demo.__file__).with_name("prompts.jsonl")


def make_picture(path: Path, size: tuple[int, int], colour: str = "teal") -> MediaFile:
    Image.new("RGB", size, colour).save(path)
    return MediaFile(path, path.stat().st_size, f"image/{path.suffix.lstrip('.')}")


def row(key: str, *files: MediaFile, outcome: str = "succeeded", error: str | None = None) -> Row:
    return Row(key, "flux/dev", f"A picture of {key}", outcome, error, 1.25, 3.0, files)


# The account


def test_a_manifest_is_read_with_its_prompts_and_its_files(tmp_path: Path) -> None:
    file = LandedFile("images[0]", f"file://{tmp_path}/a.png", 3, "0" * 64, "image/png", None, None, False)
    made: dict[str, Any] = {
        "fal_conn_id": "fal_default",
        "dialect": "fal",
        "arguments_sha256": "0" * 64,
        "model": "flux/dev",
    }
    rows = (
        ManifestRow("a", 0, outcome="succeeded", arguments={"prompt": "A"}, files=(file,), **made),
        ManifestRow(
            "b", 1, outcome="refused", error=RowError("content_refused", "No.", "maybe", False), **made
        ),
    )
    write_manifest(Manifest(rows), ObjectStoragePath((tmp_path / "manifest.jsonl").as_uri()))
    first, second = read_account(tmp_path / "manifest.jsonl")
    assert (first.prompt, first.files) == ("A", (MediaFile(tmp_path / "a.png", 3, "image/png"),))
    assert (second.outcome, second.error, second.prompt) == ("refused", "No.", "")
    console = Console(file=io.StringIO(), width=100)
    console.print(demo.summary_of(tmp_path / "manifest.summary.json"))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(word in shown for word in ("asked", "2", "refused", "3 B"))


def test_a_run_in_which_all_is_well_has_nothing_wrong(tmp_path: Path) -> None:
    rows = [
        row("a", make_picture(tmp_path / "a.png", (8, 8))),
        row("b", make_picture(tmp_path / "b.jpeg", (8, 8))),
    ]
    assert what_is_wrong(["a", "b"], rows, 2, "success") == []


@pytest.mark.parametrize(
    ("keys", "changed", "posts", "state", "problem"),
    [
        (["a"], {}, 1, "failed", "the DAG run ended as failed"),
        (["a", "b"], {}, 2, "success", "b: not in the account"),
        ([], {}, 0, "success", "a: in the account, but never asked for"),
        (
            ["a"],
            {"outcome": "refused", "error": "content policy"},
            1,
            "success",
            "a: refused (content policy)",
        ),
        (["a"], {"files": ()}, 1, "success", "a: succeeded, but there is no file"),
        (["a"], {}, 2, "success", "2 submits were accepted for 1 prompts"),
    ],
)
def test_whatever_is_wrong_is_named(
    keys: list[str], changed: dict[str, Any], posts: int, state: str, problem: str, tmp_path: Path
) -> None:
    fields = {**vars(row("a", make_picture(tmp_path / "a.png", (8, 8)))), **changed}
    assert what_is_wrong(keys, [Row(**fields)], posts, state) == [problem]


def test_a_picture_that_is_cut_off_or_missing_is_named(tmp_path: Path) -> None:
    whole = make_picture(tmp_path / "whole.png", (64, 64))
    cut = MediaFile(tmp_path / "cut.png", whole.size // 2, "image/png")
    cut.path.write_bytes(whole.path.read_bytes()[: cut.size])
    other_size = MediaFile(whole.path, whole.size + 1, "image/png")
    missing = MediaFile(tmp_path / "missing.png", 1, "image/png")
    for file in (cut, other_size, missing):
        with pytest.raises(BrokenMedia, match=file.path.name):
            picture_of(file)
        (problem,) = what_is_wrong(["a"], [row("a", file)], 1, "success")
        assert file.path.name in problem


# The contact sheet


def test_every_file_and_every_failure_has_a_tile(tmp_path: Path) -> None:
    red, blue = (200, 30, 30), (30, 30, 200)
    Image.new("RGB", (300, 300), red).save(tmp_path / "red.png")
    Image.new("RGB", (300, 300), blue).save(tmp_path / "blue.png")
    files = [
        MediaFile(path, path.stat().st_size, "image/png")
        for path in (tmp_path / "red.png", tmp_path / "blue.png")
    ]
    broken = MediaFile(tmp_path / "gone.png", 1, "image/png")
    rows = [
        row("two", *files),
        row("bad", outcome="refused", error="content policy " * 40),
        row("gone", broken),
    ]
    draw_contact_sheet(rows, "A title", tmp_path / "sheet.png")
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.format == "PNG"
        colours = {colour for _, colour in sheet.convert("RGB").getcolors(1 << 24) or []}
    assert {red, blue} <= colours
    assert (58, 24, 30) in colours


def test_keys_in_any_script_are_written_as_they_are(tmp_path: Path) -> None:
    """A font draws each character that it lacks as the same box: two keys of as many characters would look alike."""
    file = make_picture(tmp_path / "one.png", (300, 300))
    sheets = []
    for key in ("雪国", "茶室"):
        draw_contact_sheet([row(key, file)], "A title", tmp_path / "sheet.png")
        sheets.append((tmp_path / "sheet.png").read_bytes())
    assert sheets[0] != sheets[1]


def test_a_video_shows_its_middle_frame(tmp_path: Path) -> None:
    import av

    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for colour in ["black"] * 4 + ["white"] * 3 + ["black"] * 4:
            frame = av.VideoFrame.from_image(Image.new("RGB", (64, 48), colour))  # type: ignore[no-untyped-call]
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    picture = picture_of(MediaFile(path, path.stat().st_size, "video/mp4"))
    assert picture.size == (64, 48)
    assert min(picture.getpixel((32, 24))) > 200  # type: ignore[arg-type]


# Progress and table


def tasks(*states: str | None) -> list[TaskInstance]:
    start = datetime(2026, 1, 1, tzinfo=timezone.utc)
    return [
        TaskInstance(
            "media.wait", index, state, 1, None, start + timedelta(seconds=5) if state else None, None
        )
        for index, state in enumerate(states)
    ] + [
        TaskInstance("media.submit", 0, "success", 1, None, start, start),
        TaskInstance("account", -1, None, 0, None, None, None),
    ]


def test_steps_are_counted_in_the_order_in_which_they_began() -> None:
    found = stages(tasks("success", "deferred", "deferred", "running", "upstream_failed", None))
    assert [str(stage) for stage in found] == [
        "submit 1/1",
        "wait 1/6 (2 waiting, 1 running, 1 failed)",
    ]


def test_without_a_terminal_a_line_is_written_only_when_something_changed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = io.StringIO()
    monkeypatch.setattr("demo.progress.SECONDS_BETWEEN_LINES", 0)
    with Progress(Console(file=output, width=20), lambda: {"running": 1, "queued": 0}) as progress:
        progress(tasks("deferred"))
        progress(tasks("deferred"))
        progress(tasks("success"))
    lines = [line.split("  ")[-1] for line in output.getvalue().splitlines()]
    assert lines == [
        "submit 1/1 · wait 0/1 (1 waiting) · at the gateway 1 running",
        "submit 1/1 · wait 1/1 · at the gateway 1 running",
    ]


def test_on_a_terminal_the_same_table_is_drawn_again() -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=100)
    with Progress(console, dict) as progress:
        progress(tasks("deferred"))
    assert "1 waiting" in output.getvalue()
    assert "\x1b[" in output.getvalue()


def test_the_table_says_what_became_of_each_prompt(tmp_path: Path) -> None:
    rows = [
        row("a", make_picture(tmp_path / "a.png", (40, 30)), make_picture(tmp_path / "b.png", (50, 30))),
        row("[b]", outcome="refused", error="content policy"),
    ]
    output = io.StringIO()
    Console(file=output, width=160).print(demo.table_of(rows))
    text = output.getvalue()
    for word in (
        "A picture of a",
        "A picture of [b]",
        "flux/dev",
        "succeeded",
        "1.2 s",
        "3.0 s",
        "a.png",
        "40 × 30",
        "50 × 30",
        "refused",
    ):
        assert word in text


# The prompts


def test_the_prompts_show_several_models_and_one_video_from_a_local_picture() -> None:
    prompts = [json.loads(line) for line in PROMPTS.read_text(encoding="utf-8").splitlines()]
    assert len(prompts) >= 60
    assert len(set(read_keys(PROMPTS))) == len(prompts)
    assert len({prompt["model"] for prompt in prompts}) >= 5
    assert any(prompt["arguments"].get("num_images", 1) > 1 for prompt in prompts)
    assert sum("video" in prompt["model"] for prompt in prompts) >= 3
    (video,) = [prompt for prompt in prompts if "image_url" in prompt["arguments"]]
    picture = PROMPTS.parent / video["arguments"]["image_url"]
    assert picture.stat().st_size < 100_000
    with Image.open(picture) as image:
        assert image.format == "JPEG"


# The command


def test_a_folder_that_is_in_use_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "something").touch()
    handlers = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}
    try:
        assert demo.main(["--folder", str(tmp_path)]) == 1
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)
    assert "is not empty" in capsys.readouterr().out


def test_runs_without_a_folder_are_kept_side_by_side(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "RUNS", tmp_path / "runs")
    first, second = demo.make_folder(None), demo.make_folder(None)
    assert first != second
    assert first.is_dir()
    assert (tmp_path / "runs" / "latest").resolve() == second


def test_the_command_explains_itself() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "demo", "--help"], capture_output=True, text=True, cwd=demo.PROJECT, check=True
    )
    assert "--folder" in done.stdout


def test_an_emulator_that_does_not_start_is_an_error_with_its_log(tmp_path: Path) -> None:
    with Processes() as processes, pytest.raises(demo.DemoError, match="--no-such-option"):
        demo.start_emulator(processes, tmp_path, ["--no-such-option"])
