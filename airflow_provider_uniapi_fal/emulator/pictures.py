"""
Pictures: a landscape that follows from the prompt and the seed, with the prompt written on it.

The same recipe gives the same picture; another prompt or seed gives another sky, another light and another land.
"""

from __future__ import annotations

import base64
import binascii
import colorsys
import hashlib
import io
import math
import random
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont, ImageOps

from airflow_provider_uniapi_fal.emulator.captions import Caption

if TYPE_CHECKING:
    from airflow_provider_uniapi_fal.emulator.inputs import Recipe

Colour = tuple[int, int, int]
# Drawn larger and then reduced, edges come out smooth; very large pictures do without.
SMOOTH = 2
MOST_DRAWN_PIXELS = 8_000_000
SKY_SIDE = 400
STAND_IN_SIDE = 768
# Formats that are read in pure code; Pillow knows others, for which it starts programs.
_READ = ("PNG", "JPEG", "WEBP", "GIF", "BMP")
WATERMARK_COLOUR = (255, 0, 200)
# The outline of a dress, in shares of its width and height.
DRESS = ((0.3, 0), (0.7, 0), (1, 0.25), (0.8, 0.4), (0.95, 1), (0.05, 1), (0.2, 0.4), (0, 0.25))


class UnreadablePictureError(Exception):
    """A data URI that holds no picture."""


def paint(recipe: Recipe) -> bytes:
    """Return the file of a picture."""
    picture = scene(recipe, recipe.width, recipe.height)
    if not recipe.black:
        note = f"seed {recipe.seed}  ·  {recipe.width} × {recipe.height}"
        Caption(picture.size, recipe.prompt, note).put_on(picture)
    if recipe.watermark:
        stamp(picture, recipe.watermark)
    target = io.BytesIO()
    options = {"jpeg": {"quality": 88}, "png": {"compress_level": 3}, "webp": {"quality": 85, "method": 2}}
    picture.save(target, recipe.file_format.upper(), **options[recipe.file_format])
    return target.getvalue()


def measure(data: bytes) -> tuple[str, int, int] | None:
    """Return the format, width and height of a picture, None if it is none."""
    try:
        with Image.open(io.BytesIO(data), formats=_READ) as picture:
            return picture.format or "", picture.width, picture.height
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def open_source(source: str) -> Image.Image:
    """Return a picture that was given: the one in a data URI, or one that stands in for an address."""
    if source.startswith("data:"):
        return read_data_uri(source)
    mark = hashlib.sha256(source.encode("utf-8", "surrogatepass")).digest()
    return _Landscape(random.Random(mark), STAND_IN_SIDE, STAND_IN_SIDE).draw()


def stamp(picture: Image.Image, word: str) -> None:
    """Put a watermark in the upper left corner: a word on a field of one colour."""
    letters = max(9, round(min(picture.size) / 12))
    font = ImageFont.load_default(size=letters)
    pen = ImageDraw.Draw(picture)
    width = min(picture.width, round(pen.textlength(word, font=font)) + letters)
    pen.rectangle((0, 0, width, round(letters * 1.6)), fill=WATERMARK_COLOUR)
    pen.text((letters / 2, letters * 1.2), word, font=font, fill=(255, 255, 255), anchor="ls")


def scene(recipe: Recipe, width: int, height: int) -> Image.Image:
    """Return the picture without its caption, in any size."""
    if recipe.black:
        return Image.new("RGB", (width, height))
    if recipe.source:
        given = ImageOps.fit(open_source(recipe.source), (width, height))
        return _wearing(given, recipe.second) if recipe.second else _in_the_light_of(given, recipe)
    smooth = SMOOTH if width * height * SMOOTH**2 <= MOST_DRAWN_PIXELS else 1
    mark = hashlib.sha256(f"{recipe.seed}\0{recipe.prompt}".encode("utf-8", "surrogatepass")).digest()
    picture = _Landscape(random.Random(mark), width * smooth, height * smooth).draw()
    return picture if smooth == 1 else picture.reduce(smooth)


def read_data_uri(uri: str) -> Image.Image:
    """Return the picture in a data URI."""
    head, _, data = uri.partition(",")
    try:
        if not head.endswith(";base64"):
            raise ValueError("not base64")
        picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=_READ)
        return ImageOps.exif_transpose(picture).convert("RGB")
    except (OSError, ValueError, SyntaxError, binascii.Error, Image.DecompressionBombError) as error:
        raise UnreadablePictureError("Failed to load the image from the data URI.") from error


def _wearing(person: Image.Image, cloth: str) -> Image.Image:
    """Return the first picture with the second one where a dress would be."""
    width, height = person.size
    dress = ImageOps.fit(open_source(cloth), (width // 2, height // 2))
    shape = Image.new("L", dress.size)
    ImageDraw.Draw(shape).polygon([(dress.width * x, dress.height * y) for x, y in DRESS], fill=255)
    person.paste(dress, (width // 4, round(height * 0.4)), shape)
    return person


def _in_the_light_of(given: Image.Image, recipe: Recipe) -> Image.Image:
    """Return a given picture, changed by a prompt: as if seen in its landscape's light."""
    land = scene(replace(recipe, source="", second=""), *given.size)
    return Image.blend(given, land, 0.4)


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, min(1.0, saturation), min(1.0, value))
    return round(red * 255), round(green * 255), round(blue * 255)


def _mix(one: Colour, other: Colour, share: float) -> Colour:
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(one, other, strict=True))
    return red, green, blue


class _Landscape:
    """A sky, a light in it, and one of several lands below."""

    def __init__(self, chance: random.Random, width: int, height: int) -> None:
        self.chance = chance
        self.width, self.height = width, height
        self.unit = math.sqrt(width * height)
        self.night = chance.random() < 0.35
        hue = chance.random()
        # Neighbouring hues are calm together; the light takes a warmer, far one.
        self.top = _hsv(hue, 0.75 if self.night else 0.55, 0.16 if self.night else chance.uniform(0.45, 0.8))
        self.low = _hsv(
            hue + chance.uniform(0.08, 0.22) * chance.choice((-1, 1)),
            chance.uniform(0.4, 0.65),
            0.5 if self.night else 0.97,
        )
        self.light = _hsv(chance.uniform(0.03, 0.16), 0.1 if self.night else 0.35, 1.0)
        self.ground = _hsv(hue + chance.uniform(-0.1, 0.25), chance.uniform(0.45, 0.75), 0.14)
        self.horizon = round(height * chance.uniform(0.46, 0.62))
        self.sun = (round(width * chance.uniform(0.18, 0.82)), round(self.horizon * chance.uniform(0.3, 0.8)))
        self.sun_radius = self.unit * chance.uniform(0.045, 0.1)

    def draw(self) -> Image.Image:
        self.picture = self._sky()
        if self.night:
            self._stars()
        self._sun()
        lands: tuple[Callable[[], None], ...] = (
            self._hills,
            self._sea,
            self._dunes,
            self._city,
            self._forest,
        )
        self.chance.choice(lands)()
        return self.picture

    def _sky(self) -> Image.Image:
        # All of the sky is soft: drawn small and then enlarged, it looks the same and costs a tenth.
        shrink = max(1.0, max(self.width, self.height) / SKY_SIDE)
        size = (max(1, round(self.width / shrink)), max(1, round(self.height / shrink)))
        sky = self._glow(self._gradient(self.top, self.low, size, bend=1.4), shrink)
        self._clouds(sky, shrink)
        return sky.resize((self.width, self.height), Image.Resampling.BILINEAR)

    def _gradient(self, top: Colour, low: Colour, size: tuple[int, int], *, bend: float = 1.0) -> Image.Image:
        column = Image.new("RGB", (1, 128))
        column.putdata([_mix(top, low, (row / 127) ** bend) for row in range(128)])
        return column.resize(size, Image.Resampling.BILINEAR)

    def _glow(self, sky: Image.Image, shrink: float) -> Image.Image:
        light = Image.new("RGB", sky.size)
        x, y, radius = self.sun[0] / shrink, self.sun[1] / shrink, self.sun_radius * 2.2 / shrink
        disc = (x - radius, y - radius, x + radius, y + radius)
        ImageDraw.Draw(light).ellipse(disc, fill=_mix((0, 0, 0), self.light, 0.55))
        return ImageChops.screen(sky, light.filter(ImageFilter.GaussianBlur(max(1.0, radius * 0.9))))

    def _clouds(self, sky: Image.Image, shrink: float) -> None:
        veil = Image.new("L", sky.size)
        pen = ImageDraw.Draw(veil)
        for _ in range(self.chance.randint(2, 6)):
            x, y = self.chance.random() * veil.width, self.chance.uniform(0.08, 0.85) * self.horizon / shrink
            for _ in range(7):
                wide = self.unit / shrink * self.chance.uniform(0.05, 0.16)
                high = wide * self.chance.uniform(0.10, 0.22)
                left = x + self.chance.uniform(-1.6, 1.0) * wide
                pen.ellipse((left, y - high, left + wide, y + high), fill=self.chance.randint(50, 120))
                y += self.chance.uniform(-0.4, 0.4) * high
        mask = veil.filter(ImageFilter.GaussianBlur(max(1.0, veil.width / 110)))
        sky.paste(_mix(self.low, (255, 255, 255), 0.1 if self.night else 0.6), (0, 0), mask)

    def _sun(self) -> None:
        x, y, radius = *self.sun, self.sun_radius
        ImageDraw.Draw(self.picture).ellipse(
            (x - radius, y - radius, x + radius, y + radius), fill=self.light
        )

    def _stars(self) -> None:
        pen = ImageDraw.Draw(self.picture)
        for _ in range(140):
            x, y = self.chance.random() * self.width, self.chance.random() ** 1.5 * self.horizon
            size = self.unit * self.chance.choice((0.0008, 0.001, 0.0018))
            colour = _mix(self.top, (255, 255, 255), self.chance.uniform(0.4, 1.0))
            pen.ellipse((x - size, y - size, x + size, y + size), fill=colour)

    def _ridge(self, base: float, swing: float, roughness: float) -> list[tuple[float, float]]:
        waves = [
            (
                swing / octave**roughness,
                octave * self.chance.uniform(0.7, 1.3),
                self.chance.uniform(0, math.tau),
            )
            for octave in (1, 2, 3, 5, 9, 17)
        ]
        steps = 160
        stretch = self.width / self.unit * 4.5
        points = []
        for step in range(steps + 1):
            along = step / steps
            rise = sum(size * math.sin(along * stretch * pace + shift) for size, pace, shift in waves)
            points.append((along * self.width, base - rise))
        return points

    def _land(self, ridge: list[tuple[float, float]], colour: Colour) -> None:
        outline = [(0.0, float(self.height)), *ridge, (float(self.width), float(self.height))]
        ImageDraw.Draw(self.picture).polygon(outline, fill=colour)

    def _layers(self, roughness: float, swing: float) -> None:
        count = self.chance.randint(4, 6)
        for layer in range(count):
            depth = layer / (count - 1)
            base = self.horizon + (self.height - self.horizon) * 0.75 * depth**1.2
            # Far land takes the colour of the air before it.
            colour = _mix(_mix(self.low, self.ground, 0.35), self.ground, depth)
            self._land(self._ridge(base, self.unit * swing * (1.1 - 0.5 * depth), roughness), colour)

    def _hills(self) -> None:
        self._layers(roughness=1.1, swing=0.075)

    def _dunes(self) -> None:
        self.ground = _hsv(self.chance.uniform(0.02, 0.11), 0.65, 0.34)
        self._layers(roughness=2.2, swing=0.06)

    def _sea(self) -> None:
        far = _mix(self.low, self.ground, 0.25)
        water = self._gradient(
            far, _mix(self.top, self.ground, 0.6), (self.width, self.height - self.horizon)
        )
        self.picture.paste(water, (0, self.horizon))
        self._land_strip(far)
        pen = ImageDraw.Draw(self.picture)
        depth = self.height - self.horizon
        for _ in range(260):
            share = self.chance.random() ** 1.6
            y = self.horizon + share * depth
            spread = self.sun_radius * (0.7 + 3.2 * share)
            x = self.chance.gauss(self.sun[0], spread * 0.6)
            wide = self.unit * (0.006 + 0.035 * share) * self.chance.uniform(0.5, 1.4)
            thick = max(1.0, self.unit * (0.0006 + 0.0022 * share))
            colour = _mix(_mix(far, self.top, share), self.light, self.chance.uniform(0.25, 0.8))
            pen.rounded_rectangle((x - wide, y, x + wide, y + thick), radius=thick / 2, fill=colour)

    def _land_strip(self, far: Colour) -> None:
        ridge = self._ridge(self.horizon + self.unit * 0.004, self.unit * 0.028, 1.2)
        shore = [(x, min(y, float(self.horizon))) for x, y in ridge]
        outline = [(0.0, float(self.horizon)), *shore, (float(self.width), float(self.horizon))]
        ImageDraw.Draw(self.picture).polygon(outline, fill=_mix(far, self.ground, 0.45))

    def _city(self) -> None:
        pen = ImageDraw.Draw(self.picture)
        for layer in range(3):
            depth = layer / 2
            colour = _mix(_mix(self.low, self.ground, 0.5), self.ground, depth)
            floor = self.horizon + (self.height - self.horizon) * 0.35 * (1 + depth)
            lamp = _mix(colour, _hsv(0.12, 0.5, 1.0), 0.85 if self.night else 0.4)
            x = -self.unit * 0.05
            while x < self.width:
                wide = self.unit * self.chance.uniform(0.035, 0.085) * (0.8 + 0.5 * depth)
                high = self.unit * self.chance.uniform(0.1, 0.38) * (1.1 - 0.35 * depth)
                pen.rectangle((x, floor - high, x + wide, self.height), fill=colour)
                if self.chance.random() < 0.3:
                    pen.line(
                        (x + wide / 2, floor - high * 1.2, x + wide / 2, floor - high), fill=colour, width=3
                    )
                self._windows(pen, (x, floor - high, wide), lamp)
                x += wide * self.chance.uniform(1.0, 1.35)

    def _windows(self, pen: ImageDraw.ImageDraw, house: tuple[float, float, float], lamp: Colour) -> None:
        x, top, wide = house
        pane = self.unit * 0.0065
        for row in range(int((self.height - top) / pane / 2.4)):
            for column in range(1, int(wide / pane / 1.9)):
                if self.chance.random() < 0.28:
                    left, upper = x + column * pane * 1.9, top + (row + 0.7) * pane * 2.4
                    if left + pane < x + wide - pane * 0.5:
                        pen.rectangle((left, upper, left + pane, upper + pane * 1.3), fill=lamp)

    def _forest(self) -> None:
        count = 4
        for layer in range(count):
            depth = layer / (count - 1)
            base = self.horizon + (self.height - self.horizon) * 0.62 * depth
            colour = _mix(_mix(self.low, self.ground, 0.4), self.ground, depth)
            ridge = self._ridge(base, self.unit * 0.03, 1.4)
            self._land(ridge, colour)
            pen = ImageDraw.Draw(self.picture)
            for x, y in ridge[:: 3 if layer == 0 else 2]:
                if self.chance.random() < 0.75:
                    self._tree(pen, x + self.chance.uniform(-1, 1) * self.unit * 0.01, y, depth, colour)

    def _tree(self, pen: ImageDraw.ImageDraw, x: float, y: float, depth: float, colour: Colour) -> None:
        high = self.unit * (0.03 + 0.1 * depth) * self.chance.uniform(0.6, 1.3)
        wide = high * self.chance.uniform(0.18, 0.26)
        for tier in range(3):
            top, low = y - high * (1 - tier * 0.25), y - high * (0.5 - tier * 0.25)
            reach = wide * (0.55 + 0.25 * tier)
            pen.polygon([(x, top), (x - reach, low), (x + reach, low)], fill=colour)
        pen.rectangle((x - wide * 0.12, y - high * 0.1, x + wide * 0.12, y + high * 0.15), fill=colour)
