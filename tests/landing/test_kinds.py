"""What a file is, whether it is all there, and what it measures: told from its bytes."""

from __future__ import annotations

import asyncio
import builtins
import io
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import pytest
from airflow.sdk import ObjectStoragePath
from PIL import Image

from airflow_provider_uniapi_fal.hooks.fal import FalHook
from airflow_provider_uniapi_fal.landing import measuring
from airflow_provider_uniapi_fal.landing.kinds import binary_media_type, checked_kind, is_cut_off, suffix_of
from airflow_provider_uniapi_fal.landing.measuring import Measures, TooManyPixels, measure
from airflow_provider_uniapi_fal.landing.media import Lander
from airflow_provider_uniapi_fal.landing.names import Names
from tests.landing.test_hostile import png_that_says

if TYPE_CHECKING:
    from tests.fakes import Start

VIDEO_MODEL = "kling-video/v2.1/standard/text-to-video"


def picture(file_format: str) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((80, 60), 50).convert("RGB").save(buffer, file_format)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def video() -> bytes:
    import av
    import numpy as np

    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as film:
        stream: Any = film.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), number * 10, np.uint8), format="rgb24")
            film.mux(stream.encode(frame))
        film.mux(stream.encode())
    return buffer.getvalue()


FORMATS = {"jpeg": "image/jpeg", "png": "image/png", "webp": "image/webp"}


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_picture_that_ends_in_the_middle_is_known_by_its_bytes(tmp_path: Path, file_format: str) -> None:
    whole, path, kind = picture(file_format), tmp_path / "a", FORMATS[file_format]
    assert binary_media_type(whole) == kind
    path.write_bytes(whole)
    assert not is_cut_off(path, kind)
    path.write_bytes(whole + b"\nsomething that a tool wrote after it")
    assert not is_cut_off(path, kind)
    for length in (len(whole) // 2, len(whole) - 12):
        path.write_bytes(whole[:length])
        assert is_cut_off(path, kind)


def test_a_video_that_ends_in_the_middle_is_known_by_its_boxes(tmp_path: Path, video: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(video)
    assert not is_cut_off(path, "video/mp4")
    for length in (len(video) // 2, len(video) - 1):
        path.write_bytes(video[:length])
        assert is_cut_off(path, "video/mp4")


def test_a_box_of_unknown_or_large_length_is_no_reason_to_refuse(tmp_path: Path) -> None:
    path = tmp_path / "a"
    start = struct.pack(">I4s8x", 16, b"ftyp")
    for box, cut_off in (
        (struct.pack(">I4s", 0, b"mdat") + bytes(100), False),
        (struct.pack(">I4sQ", 1, b"mdat", 116) + bytes(100), False),
        (struct.pack(">I4sQ", 1, b"mdat", 1 << 40) + bytes(100), True),
        (struct.pack(">I4s", 3, b"oops"), False),
    ):
        path.write_bytes(start + box)
        assert is_cut_off(path, "video/mp4") is cut_off


def test_a_file_of_another_format_is_never_called_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"\0glTF whatever")
    assert not is_cut_off(path, None)


PAGES = [
    b"<!doctype html><title>x</title>",
    b"  \n<HTML><body>",
    b"<?xml version='1.0'?><!DOCTYPE html><html>",
    b"<!-- cached --><html><svg></svg></html>",
    b"\xef\xbb\xbf<!DOCTYPE HTML>",
]


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("called", ["image/png", "text/html", "image/svg+xml", None])
def test_a_page_is_never_media(page: bytes, called: str | None) -> None:
    with pytest.raises(ValueError, match="HTML page"):
        checked_kind(page, served=called, promised=called)


@pytest.mark.parametrize(
    ("head", "served", "promised", "kind"),
    [
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml", None, "image/svg+xml"),
        (b"<?xml version='1.0'?>\n<!-- made -->\n<svg/>", "image/svg+xml", None, "image/svg+xml"),
        (b'{"words": []}', "application/json", "application/json", "application/json"),
        (b"1\n00:00:01 --> 00:00:02\nHello", "text/plain", "text/plain", "text/plain"),
        (b"solid mesh\nfacet", "application/octet-stream", "model/stl", "model/stl"),
        (b"\0\1\2", "text/html", None, None),
        (b"\0\1\2", "text/html", "model/gltf-binary", "model/gltf-binary"),
        (b"\0\1\2", "application/octet-stream", "audio/L16; rate=24000", "audio/L16; rate=24000"),
        (b"\0\1\2", "image/vnd.radiance", None, "image/vnd.radiance"),
        (b"\0\1\2", None, None, None),
        (picture("png"), "text/html", "image/jpeg", "image/png"),
        (picture("png"), "video/mp4", None, "image/png"),
        (picture("png"), "image/png", "audio/pcm", "audio/pcm"),
        (b"\xff\xfb\x90\x64" + b"\xaa" * 400, "audio/mpeg", "audio/mpeg", "audio/mpeg"),
    ],
)
def test_what_is_no_page_is_called_by_its_bytes_then_its_server_then_its_result(
    head: bytes, served: str | None, promised: str | None, kind: str | None
) -> None:
    assert checked_kind(head, served=served, promised=promised) == kind


ELF = b"\x7fELF\2\1\1\0" + bytes(range(1, 200))


@pytest.mark.parametrize(
    "bytes_", [ELF, b"PK\3\4\x14\0\0\0" + bytes(9), b"%PDF-1.7\n\0\xff", b"\0" * 500, b"\xff\0\1"]
)
@pytest.mark.parametrize(
    ("served", "promised"),
    [
        ("application/x-executable", "image/png"),
        ("image/png", None),
        ("video/mp4", "application/octet-stream"),
        (None, "video/mp4"),
        (None, "audio/mpeg"),
    ],
)
def test_what_is_no_media_is_refused_where_media_were_promised(
    bytes_: bytes, served: str | None, promised: str | None
) -> None:
    with pytest.raises(ValueError, match="no picture, video or sound, although it is called"):
        checked_kind(bytes_, served=served, promised=promised)


@pytest.mark.parametrize(
    ("made", "promised", "refused"),
    [
        ("png", "video/mp4", True),
        ("mp4", "image/png", True),
        ("png", "audio/mpeg", True),
        ("mp4", "audio/mp4", False),
        ("webp", "image/png", False),
    ],
)
def test_media_of_another_class_than_was_promised_are_refused(
    video: bytes, made: str, promised: str, refused: bool
) -> None:
    content = video if made == "mp4" else picture(made)
    if not refused:
        assert checked_kind(content, served=None, promised=promised) == binary_media_type(content)
        return
    with pytest.raises(
        ValueError, match=f"its bytes are (image|video)/{made}, although it is called {promised}"
    ):
        checked_kind(content, served=promised, promised=promised)


def containers() -> Iterator[tuple[str, str, str]]:
    for container, codec in (
        *(("mp4", "mpeg4"), ("mov", "mpeg4"), ("webm", "libvpx"), ("matroska", "mpeg4"), ("avi", "mpeg4")),
        *(("flv", "flv"), ("mpeg", "mpeg1video"), ("3gp", "mpeg4"), ("gif", "gif")),
    ):
        yield container, codec, "image/gif" if container == "gif" else "video/x"
    for container, codec in (
        *(("mp3", "mp3"), ("wav", "pcm_s16le"), ("flac", "flac"), ("ogg", "libopus"), ("adts", "aac")),
        *(
            ("ipod", "aac"),
            ("aiff", "pcm_s16be"),
            ("webm", "libopus"),
            ("au", "pcm_s16be"),
            ("caf", "pcm_s16le"),
        ),
    ):
        yield container, codec, "audio/x"


@pytest.mark.parametrize(("container", "codec", "promised"), list(containers()))
def test_whatever_a_model_may_make_of_video_and_sound_is_known_as_such(
    container: str, codec: str, promised: str
) -> None:
    import av
    import numpy as np

    buffer = io.BytesIO()
    with av.open(buffer, "w", format=container) as film:
        stream: Any = film.add_stream(codec, rate=48000 if promised == "audio/x" else 25)
        if promised == "audio/x":
            stream.layout = "mono"
            noise = np.random.default_rng(1).integers(-9000, 9000, (1, 48000), np.int16)
            sound = av.AudioFrame.from_ndarray(noise, format="s16", layout="mono")
            sound.rate = 48000
            resampler = av.AudioResampler(
                stream.format.name, "mono", 48000, stream.codec_context.frame_size or None
            )
            frames: Any = resampler.resample(sound)
        else:
            stream.width, stream.height, stream.pix_fmt = 64, 48, "rgb8" if codec == "gif" else "yuv420p"
            pixels = np.zeros((48, 64, 3), np.uint8)
            frames = [av.VideoFrame.from_ndarray(pixels, format="rgb24") for _ in range(20)]
        for frame in (*frames, None):
            film.mux(stream.encode(frame))
    assert checked_kind(buffer.getvalue()[:8192], served=None, promised=promised)


@pytest.mark.parametrize(
    "file_format", ["png", "jpeg", "gif", "webp", "bmp", "tiff", "avif", "ico", "jpeg2000", "ppm"]
)
def test_whatever_a_model_may_make_of_pictures_is_known_as_such(file_format: str) -> None:
    found = checked_kind(picture(file_format), served=None, promised="image/x")
    assert found is not None
    assert found.startswith("image/")


@pytest.mark.parametrize(
    ("kind", "names", "suffix"),
    [
        ("image/jpeg", ["a.png"], ".jpg"),
        ("video/mp4", [], ".mp4"),
        ("application/octet-stream", [None, "/x/scene.GLB"], ".glb"),
        (None, ["a.tar.b/../c.d?e", "b.verylong"], ".bin"),
        (None, ["a.\N{CYRILLIC SMALL LETTER ZHE}"], ".bin"),
        ("no/such-type", ["a.obj"], ".obj"),
    ],
)
def test_the_suffix_is_plain_whatever_names_say(
    kind: str | None, names: list[str | None], suffix: str
) -> None:
    assert suffix_of(kind, *names) == suffix


def test_pictures_and_videos_are_measured(tmp_path: Path, video: bytes) -> None:
    path = tmp_path / "a"
    for file_format, kind in FORMATS.items():
        path.write_bytes(picture(file_format))
        assert measure(path, kind) == Measures(80, 60, None)
    path.write_bytes(video)
    assert measure(path, "video/mp4") == Measures(64, 48, 2.0)


def test_what_the_emulator_makes_is_measured_as_it_says(start: Start, tmp_path: Path) -> None:
    start()
    hook = FalHook()
    job = hook.submit(VIDEO_MODEL, {"prompt": "waves", "duration": "5"}).handle  # type: ignore[union-attr]

    async def run() -> Any:
        async with Lander(hook.account) as lander:
            return await lander.land(
                hook.result(job), ObjectStoragePath(tmp_path.as_uri()), Names(key="waves")
            )

    [file] = asyncio.run(run())
    assert file.content_type == "video/mp4"
    assert file.duration > 1
    assert file.width > 0
    assert file.height > 0


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 100, picture("png")[:30], b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", b"GIF89a"],
)
@pytest.mark.parametrize("kind", ["image/png", "video/mp4", "audio/mpeg", "text/plain", None])
def test_what_cannot_be_measured_has_no_measures(tmp_path: Path, content: bytes, kind: str | None) -> None:
    path = tmp_path / "a"
    path.write_bytes(content)
    found = measure(path, kind)
    assert (found.width, found.height) == (None, None)


@pytest.mark.parametrize("container", ["hls", "concat"])
def test_a_film_opens_no_other_file_even_if_its_container_could(
    tmp_path: Path, video: bytes, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No container on the list refers to others; one that did would be refused what it asks for."""
    (tmp_path / "other.mp4").write_bytes(video)
    texts = {
        "hls": "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nother.mp4\n#EXT-X-ENDLIST\n",
        "concat": "ffconcat version 1.0\nfile other.mp4\n",
    }
    path = tmp_path / "a.m3u8"
    path.write_text(texts[container])
    with av.open(str(path), format=container) as film:
        assert film.streams.video[0].width == 64  # so it is when nobody refuses
    monkeypatch.setitem(measuring._CONTAINERS, "video/mp4", container)
    assert measure(path, "video/mp4") == Measures()


def test_a_bomb_is_told_from_its_header(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(png_that_says(100_000, 100_000))
    with pytest.raises(TooManyPixels):
        measure(path, "image/png")


@pytest.mark.parametrize("kind", ["image/png", "video/mp4"])
def test_without_the_extra_nothing_is_measured_and_nothing_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    path = tmp_path / "a"
    path.write_bytes(picture("png"))
    found = builtins.__import__

    def missing(name: str, *args: Any) -> Any:
        if name in ("PIL", "av"):
            raise ImportError(name)
        return found(name, *args)

    monkeypatch.setattr(builtins, "__import__", missing)
    assert measure(path, kind) == Measures()
