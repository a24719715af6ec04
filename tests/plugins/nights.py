"""Nights to look at: media from the emulator's studio, and the manifests that account for them."""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from airflow.sdk import ObjectStoragePath
from PIL import Image

from airflow_provider_uniapi_fal.emulator.inputs import Recipe
from airflow_provider_uniapi_fal.emulator.pictures import paint
from airflow_provider_uniapi_fal.emulator.videos import film
from airflow_provider_uniapi_fal.landing.files import LandedFile
from airflow_provider_uniapi_fal.landing.manifest import Manifest, ManifestRow, RowError, write_manifest

PROMPTS = (
    "A lighthouse above a stormy sea at dusk",
    "Rolling green hills in the morning mist",
    "A city skyline at night, all windows lit",
    "A pine forest under the first snow",
    "Red dunes below a violet evening sky",
    "A quiet harbour before sunrise",
    "Mountains behind a frozen lake",
    "Old town roofs after the rain",
)


def landed(path: Path, content_type: str, **fields: Any) -> LandedFile:
    """Return what a manifest says of a file."""
    content = path.read_bytes()
    told: dict[str, Any] = {"width": None, "height": None, "flagged": False, **fields}
    return LandedFile(
        where="images[0]",
        path=path.as_uri().replace("%20", " "),
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        content_type=content_type,
        **told,
    )


def row(key: str, index: int, outcome: str = "succeeded", **fields: Any) -> ManifestRow:
    """Return a row as a batch writes it."""
    common: dict[str, Any] = {
        "model": "flux/dev",
        "dialect": "fal",
        "fal_conn_id": "fal_default",
        "arguments_sha256": "cd" * 32,
        "request_id": f"req-{index:05}",
        "submitted_at": 1_790_000_000.0 + index,
        "seconds_queued": 1.0 + index % 7,
        "seconds_running": 4.0 + index % 5,
        "billable_units": "1.0",
        "posts": 1,
        "tries": 1,
    }
    return ManifestRow(key=key, index=index, outcome=outcome, **{**common, **fields})


def write(path: Path, rows: list[ManifestRow], dag_id: str = "open_night", **fields: Any) -> str:
    """Write a manifest and return its address."""
    address = f"file://{path}"
    manifest = Manifest(tuple(rows), dag_id=dag_id, run_id="a run", task_id="land", **fields)
    write_manifest(manifest, ObjectStoragePath(address))
    return address


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the rows of a manifest as no writer of ours would, and its summary so that both fit."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    text = "".join(json.dumps(change(row)) + "\n" for row in rows).encode()
    path.write_bytes(text)
    summary = path.with_suffix(".summary.json")
    told = {**json.loads(summary.read_text()), "rows_sha256": hashlib.sha256(text).hexdigest()}
    summary.write_text(json.dumps(told))


def picture(path: Path, prompt: str, seed: int, width: int = 768, height: int = 576) -> LandedFile:
    """Paint a picture."""
    path.write_bytes(paint(Recipe("image", prompt, seed, width, height, "jpeg")))
    return landed(path, "image/jpeg", width=width, height=height)


def video(path: Path, prompt: str, seed: int, seconds: float = 3.0) -> LandedFile:
    """Film a video."""
    path.write_bytes(film(Recipe("video", prompt, seed, 640, 360, "mp4", seconds=seconds)))
    return landed(path, "video/mp4", width=640, height=360, duration=seconds)


def hostile_films(folder: Path, secret: Path, web: str) -> list[Path]:
    """Write what FFmpeg would follow if it were to guess: to a file elsewhere, to the web, and to the network."""
    playlist = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{}\n#EXT-X-ENDLIST\n"
    session = (
        "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\n"
        "m=video 5004 RTP/AVP 96\na=rtpmap:96 H264/90000\n"
    )
    films = {
        "elsewhere.m3u8": playlist.format(os.path.relpath(secret, folder)),
        "web.m3u8": playlist.format(f"{web}/segment.ts"),
        "session.mp4": session,
    }
    for name, text in films.items():
        (folder / name).write_text(text)
    return [folder / name for name in films]


def good_night(folder: Path, dag_id: str = "open_night") -> str:
    """Write a night of pictures and videos in which something also went wrong."""
    folder.mkdir(parents=True, exist_ok=True)
    chance = random.Random(7)
    rows = []
    for index in range(22):
        prompt, key = PROMPTS[index % len(PROMPTS)], f"scene-{index:02}"
        seed = chance.randrange(10**6)
        arguments = {"prompt": prompt, "seed": seed, "image_size": {"width": 768, "height": 576}}
        fields: dict[str, Any] = {"arguments": arguments, "seed": seed, "metadata": {"campaign": "autumn"}}
        if index in (4, 13):
            error = RowError(
                "content_refused",
                "The model refused the content of this request. It may be billed. A retry will not be made: change the prompt.",
                "maybe",
                False,
                "content_policy_violation",
            )
            rows.append(row(key, index, "refused", error=error, **fields))
        elif index == 9:
            error = RowError(
                "timeout",
                "The job did not end within 3600 s and was removed from the queue. It is not billed, and a retry submits again.",
                "no",
                False,
            )
            rows.append(row(key, index, "timed_out", error=error, **fields))
        elif index == 17:
            error = RowError(
                "submit_outcome_unknown",
                "The reply to the submit was lost (ReadTimeout): a job may be running and be billed. Nothing is submitted again by itself.",
                "maybe",
                True,
            )
            rows.append(row(key, index, "unknown", error=error, request_id=None, **fields))
        elif index == 6:
            black = folder / f"{key}.jpg"
            Image.new("RGB", (768, 576)).save(black)
            file = landed(black, "image/jpeg", width=768, height=576, flagged=True)
            rows.append(row(key, index, "flagged", files=(file,), flagged=True, **fields))
        elif index in (2, 11, 15):
            file = video(folder / f"{key}.mp4", prompt, seed)
            rows.append(row(key, index, files=(file,), **{**fields, "model": "kling-video/v2/master"}))
        else:
            rows.append(row(key, index, files=(picture(folder / f"{key}.jpg", prompt, seed),), **fields))
    return write(folder / "manifest.jsonl", rows, dag_id, written_at=1_790_003_600.0)


def small_night(folder: Path, dag_id: str = "open_night") -> str:
    """Write a night of one small picture."""
    folder.mkdir(parents=True, exist_ok=True)
    file = picture(folder / "scene-00.jpg", PROMPTS[0], 1, 64, 48)
    return write(folder / "manifest.jsonl", [row("scene-00", 0, files=(file,))], dag_id)


def long_night(folder: Path, count: int = 5000, dag_id: str = "open_night") -> str:
    """Write a night of very many small pictures; every 250th is the same."""
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for index in range(min(count, 250)):
        path = folder / f"dot-{index:05}.png"
        Image.new("RGB", (40, 30), (index, 255 - index, 128)).save(path, compress_level=1)
        files.append(landed(path, "image/png", width=40, height=30))
    rows = []
    for index in range(count):
        prompt = f"A dot of colour number {index}"
        file = files[index % len(files)]
        rows.append(row(f"dot-{index:05}", index, files=(file,), seed=index, arguments={"prompt": prompt}))
    return write(folder / "manifest.jsonl", rows, dag_id)
