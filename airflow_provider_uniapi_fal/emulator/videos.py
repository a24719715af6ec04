"""Videos: a slow move over a picture, the prompt below it, as H.264 that every player plays."""

from __future__ import annotations

import io
from fractions import Fraction

import av
from PIL import Image, ImageOps

from airflow_provider_uniapi_fal.emulator.captions import Caption
from airflow_provider_uniapi_fal.emulator.inputs import Recipe, even
from airflow_provider_uniapi_fal.emulator.pictures import open_source, scene, stamp

FRAMES_PER_SECOND = 24
# The camera sees this share of the picture at its closest.
CLOSEST = 0.78


def film(recipe: Recipe) -> bytes:
    """Return the file of a video."""
    last = None
    if recipe.source:
        picture = open_source(recipe.source)
        shrink = max(recipe.width, recipe.height) / max(picture.size)
        width, height = even(picture.width * shrink), even(picture.height * shrink)
        if recipe.black:
            picture = Image.new("RGB", picture.size)
        elif recipe.second:
            last = ImageOps.fit(open_source(recipe.second), (width, height))
    else:
        width, height = recipe.width, recipe.height
        picture = scene(recipe, round(width / CLOSEST), round(height / CLOSEST))
    caption = Caption((width, height), recipe.prompt, f"seed {recipe.seed}  ·  {recipe.seconds:g} s")
    target = io.BytesIO()
    with av.open(target, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=FRAMES_PER_SECOND)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.time_base = Fraction(1, FRAMES_PER_SECOND)
        stream.options = {"preset": "veryfast", "crf": "24"}
        # One thread gives the same bytes on every machine.
        stream.codec_context.thread_count = 1
        count = max(1, round(recipe.seconds * FRAMES_PER_SECOND))
        for number in range(count):
            image = picture.resize(
                (width, height), Image.Resampling.BILINEAR, box=_view(picture, number / count)
            )
            if last is not None:
                image = Image.blend(image, last, number / max(1, count - 1))
            if not recipe.black:
                caption.put_on(image)
            if recipe.watermark:
                stamp(image, recipe.watermark)
            frame = av.VideoFrame.from_image(image)  # type: ignore[no-untyped-call]
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return target.getvalue()


def _view(picture: Image.Image, moment: float) -> tuple[float, float, float, float]:
    """Return the part of the picture the camera sees: it moves in from the left, softly at both ends."""
    eased = moment * moment * (3 - 2 * moment)
    share = 1 - (1 - CLOSEST) * (0.25 + 0.75 * eased)
    width, height = picture.width * share, picture.height * share
    left, top = (picture.width - width) * eased, (picture.height - height) * (0.6 - 0.3 * eased)
    return left, top, left + width, top + height
