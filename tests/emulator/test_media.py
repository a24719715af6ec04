from __future__ import annotations

import asyncio
import base64
import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import av
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from airflow_provider_uniapi_fal.emulator import captions, media
from airflow_provider_uniapi_fal.emulator.inputs import ASPECT_RATIOS, IMAGE_SIZES, Recipe, order
from airflow_provider_uniapi_fal.emulator.media import Studio
from airflow_provider_uniapi_fal.emulator.pictures import (
    UnreadablePictureError,
    measure,
    paint,
    read_data_uri,
)
from tests.emulator.client import PICTURE, SMALL, VIDEO, Client

if TYPE_CHECKING:
    from pathlib import Path

    from tests.emulator.conftest import Start

RECIPE = Recipe("image", "a fox", seed=1, width=96, height=64, file_format="png")


def download(client: Client, about: dict[str, Any]) -> bytes:
    reply = client.call("GET", about["url"], key=None)
    assert reply.status_code == 200
    assert reply.headers["Content-Type"] == about["content_type"]
    assert int(reply.headers["Content-Length"]) == len(reply.content) == about["file_size"]
    return reply.content


def data_uri(picture: Image.Image, file_format: str = "PNG") -> str:
    target = io.BytesIO()
    picture.save(target, file_format)
    return f"data:image/{file_format.lower()};base64," + base64.b64encode(target.getvalue()).decode()


@pytest.mark.parametrize("file_format", ["jpeg", "png", "webp"])
def test_pictures_have_the_asked_size_format_and_number(start: Start, file_format: str) -> None:
    _, client = start()
    body = client.make("a red fox", num_images=3, seed=7, output_format=file_format).json()
    files = [download(client, about) for about in body["images"]]
    assert len(set(files)) == 3
    for about, data in zip(body["images"], files, strict=True):
        picture = Image.open(io.BytesIO(data))
        assert picture.format == file_format.upper()
        assert picture.size == (about["width"], about["height"]) == (SMALL["width"], SMALL["height"])
        assert about["file_name"].endswith(f".{file_format}")
    assert (body["prompt"], body["seed"]) == ("a red fox", 7)
    assert body["has_nsfw_concepts"] == [False] * 3
    assert "inference" in body["timings"]


@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_named_sizes_are_those_of_fal(size: str) -> None:
    [recipe] = order(
        PICTURE, {"prompt": "x", "image_size": size}, seed=0, black=False, video_seconds=1
    ).recipes
    assert (recipe.width, recipe.height) == IMAGE_SIZES[size]


@pytest.mark.parametrize("ratio", ASPECT_RATIOS)
def test_an_aspect_ratio_gives_about_a_megapixel(ratio: str) -> None:
    across, down = map(int, ratio.split(":"))
    [recipe] = order(
        PICTURE, {"prompt": "x", "aspect_ratio": ratio}, seed=0, black=False, video_seconds=1
    ).recipes
    assert recipe.width * recipe.height == pytest.approx(2**20, rel=0.05)
    assert recipe.width / recipe.height == pytest.approx(across / down, rel=0.03)


def test_another_prompt_or_seed_is_another_picture_and_the_same_recipe_the_same(start: Start) -> None:
    assert paint(RECIPE) == paint(RECIPE)
    others = [replace(RECIPE, prompt="a cat"), replace(RECIPE, seed=2), replace(RECIPE, prompt="")]
    assert len({paint(recipe) for recipe in (RECIPE, *others)}) == 4
    # Not only the writing differs: the upper half has none.
    tops = {Image.open(io.BytesIO(paint(each))).crop((0, 0, 96, 20)).tobytes() for each in (RECIPE, *others)}
    assert len(tops) == 4


def test_the_prompt_is_on_the_picture() -> None:
    tall = replace(RECIPE, prompt="a red fox in deep snow at night", width=400, height=300)
    bare = replace(tall, prompt=" ")
    with_text, without = (
        Image.open(io.BytesIO(paint(recipe))).convert("L").crop((0, 240, 400, 300)) for recipe in (tall, bare)
    )

    def bright(picture: Image.Image) -> int:
        return sum(picture.histogram()[225:])

    assert bright(with_text) > bright(without) + 100


@settings(max_examples=60)
@given(st.text(max_size=80))
@example("夜色中的城市天际线，霓虹灯倒映在水面上")
@example("مرحبا שלום ไทย हिन्दी \U0001f98a\u200d\U0001f31f")
@example("\ud800 half a pair \x00 \x1b[31m \n\r\t \ufeff \U0010ffff e\u0301\u0302")
@example("x" * 5000)
@example("")
def test_any_text_can_be_written(prompt: str) -> None:
    assert Image.open(io.BytesIO(paint(replace(RECIPE, prompt=prompt)))).size == (96, 64)


@pytest.fixture
def fresh_fonts() -> Iterator[None]:
    """Look for fonts anew, and again afterwards."""
    caches = (captions._wide_fonts, captions._font, captions._font_number)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


@pytest.mark.usefixtures("fresh_fonts")
def test_fonts_of_installed_packages_are_found_and_broken_ones_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    about = tmp_path / "some_fonts-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: some-fonts\nVersion: 1.0\n")
    (about / "RECORD").write_text("some_fonts/NotoSansSC-Regular.otf,,\n")
    font = tmp_path / "some_fonts" / "NotoSansSC-Regular.otf"
    font.parent.mkdir()
    font.write_bytes(b"no font")
    monkeypatch.syspath_prepend(tmp_path)
    assert font in list(captions._packaged_files())
    assert font not in captions._wide_fonts()
    assert Image.open(io.BytesIO(paint(replace(RECIPE, prompt="狐狸")))).size == (96, 64)


@pytest.mark.parametrize("size", [(16, 16), (16, 1500), (1500, 16), (2048, 2048)])
def test_any_size_can_be_painted(size: tuple[int, int]) -> None:
    for seed in range(6):
        recipe = replace(RECIPE, width=size[0], height=size[1], seed=seed, file_format="jpeg")
        assert Image.open(io.BytesIO(paint(recipe))).size == size
        if size == (2048, 2048):
            break


def test_a_prompt_with_any_unicode_goes_through_the_whole_wire(start: Start) -> None:
    _, client = start()
    reply = client.call(
        "POST",
        f"/fal-ai/{PICTURE}",
        data=b'{"prompt": "\\ud800 \\u0000", "image_size": {"width": 64, "height": 64}}',
    )
    assert client.result(reply.json()["request_id"]).status_code == 200
    assert client.make("狐狸").json()["prompt"] == "狐狸"


def test_sync_mode_gives_data_uris(start: Start) -> None:
    _, client = start()
    [about] = client.make(sync_mode=True, output_format="png").json()["images"]
    head, data = about["url"].split(",")
    assert head == "data:image/png;base64"
    assert Image.open(io.BytesIO(base64.b64decode(data))).size == (64, 48)


def frames_of(data: bytes) -> list[Image.Image]:
    with av.open(io.BytesIO(data), "r") as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        return [frame.to_image() for frame in container.decode(stream)]  # type: ignore[no-untyped-call]


def test_a_video_plays_and_moves(start: Start) -> None:
    _, client = start(video_seconds=0.5)
    body = client.make(
        "waves at dusk", model="kling-video/v2/text-to-video", image_size=None, aspect_ratio="16:9"
    ).json()
    about = body["video"]
    assert (about["content_type"], about["file_name"]) == ("video/mp4", "video-1.mp4")
    frames = frames_of(download(client, about))
    assert len(frames) == 12
    assert frames[0].width / frames[0].height == pytest.approx(16 / 9, rel=0.02)
    assert frames[0].tobytes() != frames[-1].tobytes()


def test_a_video_moves_over_the_picture_it_was_given(start: Start) -> None:
    _, client = start(video_seconds=0.2)
    source = data_uri(Image.new("RGBA", (121, 81), (200, 30, 40, 255)))
    body = client.make("a red wall", model=VIDEO, image_url=source, duration="5").json()
    frame = frames_of(download(client, body["video"]))[0]
    assert frame.width / frame.height == pytest.approx(121 / 81, rel=0.02)
    colour = frame.getpixel((frame.width // 2, 20))
    assert isinstance(colour, tuple)
    assert colour == pytest.approx((200, 30, 40), abs=12)


@pytest.mark.parametrize("file_format", ["PPM", "EPS", "TGA"])
def test_a_picture_of_an_uncommon_kind_is_not_opened(file_format: str) -> None:
    source = data_uri(Image.new("RGB", (64, 48)), file_format)
    with pytest.raises(UnreadablePictureError):
        read_data_uri(source)
    assert measure(base64.b64decode(source.partition(",")[2])) is None


def test_a_flagged_video_is_black(start: Start) -> None:
    _, client = start(video_seconds=0.1, flagged=True)
    for source in ("https://a.invalid/a.png", data_uri(Image.new("RGB", (64, 48), "white"))):
        about = client.make(model=VIDEO, image_url=source).json()["video"]
        assert frames_of(download(client, about))[0].convert("L").getextrema() == (0, 0)


def test_a_file_that_is_no_part_of_the_result_is_not_found(start: Start) -> None:
    _, client = start(run_seconds=0.0)
    request_id = client.submit()
    assert client.call("GET", f"/files/{request_id}/image-1.jpeg", key=None).status_code == 200
    assert client.call("HEAD", f"/files/{request_id}/image-1.jpeg", key=None).status_code == 200
    assert client.call("GET", f"/files/{request_id}/image-2.jpeg", key=None).status_code == 404
    assert client.call("GET", "/files/nope/image-1.jpeg", key=None).status_code == 404


def test_failed_and_unfinished_jobs_have_no_media(start: Start) -> None:
    _, client = start(faults=["job match=bad failure=refused", "job match=long run_seconds=60"])
    for prompt in ("bad", "long"):
        request_id = client.submit(prompt)
        assert client.call("GET", f"/files/{request_id}/image-1.jpeg", key=None).status_code == 404


def test_the_same_recipe_asked_for_at_once_is_rendered_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rendered = []

    def render(recipe: Recipe) -> media.MediaFile:
        rendered.append(recipe)
        return media.MediaFile(recipe, b"x" * 100)

    monkeypatch.setattr(media, "_render", render)
    monkeypatch.setattr(media, "KEPT_BYTES", 250)

    async def ask() -> None:
        studio = Studio(2)
        try:
            await asyncio.gather(*(studio.develop(RECIPE) for _ in range(20)))
            assert len(rendered) == 1
            for seed in (2, 3):  # together with the first, more than is kept
                await studio.develop(replace(RECIPE, seed=seed))
            await studio.develop(replace(RECIPE, seed=3))
            assert len(rendered) == 3
            await studio.develop(RECIPE)
            assert len(rendered) == 4
        finally:
            studio.close()

    asyncio.run(ask())


def test_many_clients_at_once_all_get_their_pictures(start: Start) -> None:
    emulator, client = start()

    def make(number: int) -> bytes:
        own = Client(client.url)
        try:
            return download(own, own.make(f"fox {number}").json()["images"][0])
        finally:
            own.close()

    with ThreadPoolExecutor(8) as pool:
        files = list(pool.map(make, range(24)))
    assert len(set(files)) == 24
    assert emulator.account()["totals"]["posts_accepted"] == 24
