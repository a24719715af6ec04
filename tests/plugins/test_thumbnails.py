"""Small pictures: made once, kept by themselves, never at the cost of the API server."""

from __future__ import annotations

import io
import itertools
import socket
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import ObjectStoragePath
from PIL import Image

from airflow_provider_uniapi_fal.plugins.gallery import thumbnails as module
from airflow_provider_uniapi_fal.plugins.gallery.thumbnails import Thumbnails, ThumbnailsUnavailable
from tests.plugins import nights

SHA = "ab" * 32


@pytest.fixture
def kept(tmp_path: Path) -> Path:
    return tmp_path / "kept"


@pytest.fixture
def small(kept: Path) -> Thumbnails:
    return Thumbnails(kept, 10**9)


def picture(
    path: Path, size: tuple[int, int] = (900, 300), kind: str = "PNG"
) -> tuple[ObjectStoragePath, int]:
    Image.linear_gradient("L").resize(size).convert("RGB").save(path, kind)
    return ObjectStoragePath(path.as_uri()), path.stat().st_size


def test_a_picture_is_made_small_once(small: Thumbnails, kept: Path, tmp_path: Path) -> None:
    path, size = picture(tmp_path / "a.png")
    first = small.of(path, size, SHA, "image/png")
    assert first is not None
    with Image.open(io.BytesIO(first)) as image:
        assert image.size == (512, 171)
    (tmp_path / "a.png").unlink()  # the kept one needs no other
    assert small.of(path, size, SHA, "image/png") == first
    assert len(list(kept.rglob("*.webp"))) == 1
    assert kept.stat().st_mode & 0o077 == 0


def test_a_changed_file_has_a_new_thumbnail(small: Thumbnails, kept: Path, tmp_path: Path) -> None:
    path, size = picture(tmp_path / "a.png")
    small.of(path, size, SHA, "image/png")
    path, size = picture(tmp_path / "a.png", (300, 900))
    small.of(path, size, "cd" * 32, "image/png")
    assert len(list(kept.rglob("*.webp"))) == 2


def test_a_video_shows_one_of_its_frames(small: Thumbnails, tmp_path: Path) -> None:
    file = nights.video(tmp_path / "v.mp4", "A harbour", 3, 1.0)
    made = small.of(ObjectStoragePath(file.path), file.bytes, file.sha256, file.content_type)
    assert made is not None
    with Image.open(io.BytesIO(made)) as image:
        assert image.size == (512, 288)
        assert len(image.convert("RGB").resize((8, 8)).getcolors() or []) > 4


def test_a_wrong_type_in_one_manifest_does_not_spoil_the_same_file_in_another(
    small: Thumbnails, tmp_path: Path
) -> None:
    file = nights.video(tmp_path / "v.mp4", "A harbour", 3, 1.0)
    path = ObjectStoragePath(file.path)
    assert small.of(path, file.bytes, file.sha256, "video/webm") is None
    assert small.of(path, file.bytes, file.sha256, "video/mp4") is not None


@pytest.mark.parametrize("content_type", ["video/mp4", "Video/WebM; codecs=vp9", "video/quicktime"])
def test_a_text_that_calls_itself_a_video_opens_nothing_else(
    small: Thumbnails, tmp_path: Path, content_type: str
) -> None:
    secret, folder = tmp_path / "secret.mp4", tmp_path / "shown"
    folder.mkdir()
    nights.video(secret, "A secret", 1, 1.0)
    with socket.create_server(("127.0.0.1", 0)) as ear:
        ear.setblocking(False)
        for film in nights.hostile_films(folder, secret, f"http://127.0.0.1:{ear.getsockname()[1]}"):
            path = ObjectStoragePath(film.as_uri())
            assert small.of(path, film.stat().st_size, SHA, content_type) is None
        with pytest.raises(BlockingIOError):
            ear.accept()


def test_a_video_without_an_end_is_not_searched_for_ever(
    small: Thumbnails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Endless:
        duration = None

        def __enter__(self) -> Endless:
            return self

        def __exit__(self, *_: object) -> None: ...

        @property
        def streams(self) -> Any:
            return SimpleNamespace(video=[SimpleNamespace(codec_context=SimpleNamespace(width=1, height=1))])

        def demux(self, stream: object) -> Any:
            return itertools.repeat(SimpleNamespace(decode=list))

    monkeypatch.setattr(module, "open_film", lambda *_: Endless())
    monkeypatch.setattr(module, "MAX_SECONDS", 0.0)
    (tmp_path / "x").write_bytes(b"x")
    assert small.of(ObjectStoragePath((tmp_path / "x").as_uri()), 1, SHA, "video/mp4") is None


@pytest.mark.parametrize(
    ("content", "content_type"),
    [
        (b"<script>alert(1)</script>", "image/png"),
        (b"", "image/jpeg"),
        (b"\x89PNG\r\n\x1a\n" + b"\0" * 100, "image/png"),
        (b"not a video", "video/mp4"),
    ],
)
def test_a_broken_file_has_none_and_is_tried_once(
    small: Thumbnails, tmp_path: Path, content: bytes, content_type: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x").write_bytes(content)
    path = ObjectStoragePath((tmp_path / "x").as_uri())
    assert small.of(path, len(content), SHA, content_type) is None
    monkeypatch.setattr(module, "_made", lambda *_: pytest.fail("tried again"))
    assert small.of(path, len(content), SHA, content_type) is None


class NoAnswer(Exception):
    """A storage's own kind of error, such as botocore's."""


@pytest.mark.parametrize(
    "error", [TimeoutError("late"), PermissionError("denied"), FileNotFoundError("gone"), NoAnswer("down")]
)
@pytest.mark.parametrize("when", ["open", "read"])
def test_a_storage_that_fails_is_asked_again(
    small: Thumbnails, tmp_path: Path, error: Exception, when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, size = picture(tmp_path / "a.png")
    whole: Any = type(path).open

    class Cut(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            if self.tell():
                raise error
            return super().read(10)

    def failing(self: ObjectStoragePath, *args: Any, **kwargs: Any) -> Any:
        if when == "open":
            raise error
        with whole(self, *args, **kwargs) as reader:
            return Cut(reader.read())

    with monkeypatch.context() as patch:
        patch.setattr(type(path), "open", failing)
        with pytest.raises(OSError, match=str(error) if isinstance(error, OSError) else "NoAnswer"):
            small.of(path, size, SHA, "image/png")
    assert small.of(path, size, SHA, "image/png") is not None


def test_a_file_that_is_shorter_than_it_was_is_asked_for_again(small: Thumbnails, tmp_path: Path) -> None:
    path, size = picture(tmp_path / "a.png")
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[:50])
    with pytest.raises(OSError, match="shorter"):
        small.of(path, size, SHA, "image/png")
    (tmp_path / "a.png").write_bytes(whole)
    assert small.of(path, size, SHA, "image/png") is not None


def test_pictures_that_are_too_large_are_not_decoded(
    small: Thumbnails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, size = picture(tmp_path / "a.png")
    assert small.of(path, module.MAX_BYTES + 1, SHA, "image/png") is None
    monkeypatch.setattr(module, "MAX_PIXELS", 1000)
    assert small.of(path, size, SHA, "image/png") is None


def test_kinds_that_are_not_shown_are_not_opened(small: Thumbnails, tmp_path: Path) -> None:
    missing = ObjectStoragePath((tmp_path / "missing").as_uri())
    for content_type in ("image/svg+xml", "text/html", "audio/mpeg", None):
        assert small.of(missing, 5, SHA, content_type) is None


def test_without_pillow_it_says_what_is_missing(
    small: Thumbnails, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, size = picture(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ThumbnailsUnavailable, match="Pillow"):
        small.of(path, size, SHA, "image/png")


def test_a_folder_that_is_a_link_is_not_written_to(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (tmp_path / "kept").symlink_to(elsewhere)
    path, size = picture(tmp_path / "a.png")
    with pytest.raises(ThumbnailsUnavailable, match="somebody else"):
        Thumbnails(tmp_path / "kept", 10**9).of(path, size, SHA, "image/png")
    assert list(elsewhere.iterdir()) == []


def test_a_folder_of_somebody_else_is_not_read_either(
    small: Thumbnails, kept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, size = picture(tmp_path / "a.png")
    assert small.of(path, size, SHA, "image/png")
    owner = kept.stat().st_uid
    monkeypatch.setattr(module.os, "getuid", lambda: owner + 1)  # type: ignore[attr-defined]
    with pytest.raises(ThumbnailsUnavailable, match="somebody else"):
        small.of(path, size, SHA, "image/png")


def test_room_is_made_for_new_ones(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_PRUNE_EVERY", 1)
    path, size = picture(tmp_path / "a.png")
    one = Thumbnails(kept, 10**9).of(path, size, "0" * 64, "image/png")
    assert one is not None
    small = Thumbnails(kept, len(one) * 3)
    for number in range(1, 8):
        assert small.of(path, size, f"{number:064}", "image/png") == one
    assert len(list(kept.rglob("*.webp"))) == 3
