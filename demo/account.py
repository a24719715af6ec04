"""The manifest that the nightly DAG leaves: what became of each prompt, and whether that is a success."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import av
import PIL.Image
from airflow.sdk import ObjectStoragePath

from airflow_provider_uniapi_fal.landing.manifest import ManifestRow, read_manifest

SUCCEEDED = "succeeded"


class BrokenMedia(Exception):
    """A media file is missing, or not what the account says, or cannot be decoded."""


@dataclass(frozen=True)
class MediaFile:
    """One file that a prompt gave."""

    path: Path
    size: int
    content_type: str

    @property
    def is_video(self) -> bool:
        """Say whether it is a video rather than a picture."""
        return self.content_type.startswith("video/")


@dataclass(frozen=True)
class Row:
    """What became of one prompt."""

    key: str
    model: str
    prompt: str
    outcome: str
    error: str | None
    seconds_queued: float | None
    seconds_running: float | None
    files: tuple[MediaFile, ...]


def read_account(path: Path) -> list[Row]:
    """Read the rows of a manifest that holds the arguments, too."""
    return [_row(row) for row in read_manifest(ObjectStoragePath(path.as_uri())).rows]


def _row(row: ManifestRow) -> Row:
    files = tuple(
        MediaFile(
            path=Path(file.path.removeprefix("file://")),
            size=file.bytes,
            content_type=file.content_type or "",
        )
        for file in row.files
    )
    return Row(
        key=row.key,
        model=row.model,
        prompt=str((row.arguments or {}).get("prompt", "")),
        outcome=row.outcome,
        error=None if row.error is None else row.error.message,
        seconds_queued=row.seconds_queued,
        seconds_running=row.seconds_running,
        files=files,
    )


def read_keys(prompts: Path) -> list[str]:
    """Return the keys of a prompts file, in order."""
    lines = prompts.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["key"] for line in lines if line.strip()]


def picture_of(file: MediaFile) -> PIL.Image.Image:
    """Decode a file: the picture, or the frame in the middle of a video; `BrokenMedia` if that fails."""
    try:
        if file.path.stat().st_size != file.size:
            raise BrokenMedia(f"{file.path.name} has {file.path.stat().st_size} bytes, not {file.size}")
        if file.is_video:
            return _middle_frame(file.path)
        with PIL.Image.open(file.path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError, av.FFmpegError) as error:
        raise BrokenMedia(f"{file.path.name} cannot be read: {error}") from error


def _middle_frame(path: Path) -> PIL.Image.Image:
    with av.open(str(path)) as container:
        frames = list(container.decode(video=0))
        if not frames:
            raise BrokenMedia(f"{path.name} has no frames")
        picture: PIL.Image.Image = frames[len(frames) // 2].to_image()  # type: ignore[no-untyped-call]
        return picture


def what_is_wrong(keys: Sequence[str], rows: Iterable[Row], posts_accepted: int, run_state: str) -> list[str]:
    """Name all that keeps a run from being a success; nothing, if it is one."""
    rows = list(rows)
    problems = []
    if run_state != "success":
        problems.append(f"the DAG run ended as {run_state}")
    accounted = [row.key for row in rows]
    problems += [f"{key}: not in the account" for key in keys if key not in accounted]
    problems += [f"{key}: in the account, but never asked for" for key in accounted if key not in keys]
    for row in rows:
        if row.outcome != SUCCEEDED:
            problems.append(f"{row.key}: {row.outcome}" + (f" ({row.error})" if row.error else ""))
        elif not row.files:
            problems.append(f"{row.key}: succeeded, but there is no file")
        for file in row.files:
            try:
                picture_of(file)
            except BrokenMedia as error:
                problems.append(f"{row.key}: {error}")
    if posts_accepted != len(keys):
        problems.append(f"{posts_accepted} submits were accepted for {len(keys)} prompts")
    return problems
