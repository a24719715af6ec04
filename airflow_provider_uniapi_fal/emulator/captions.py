"""The prompt, written on a picture in whatever script it is."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib import metadata
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw, ImageFont

if TYPE_CHECKING:
    Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

MOST_LINES = 4
MOST_LETTERS = 600
BAND_COLOUR = (8, 10, 16)
TEXT_COLOUR = (250, 250, 250)
NOTE_COLOUR = (196, 200, 210)
SMALLEST_LETTERS = 9
# Parts of file names of fonts that hold Chinese, Japanese and Korean, or many scripts; the first found is the first
# asked. Pillow's own font holds Latin only.
WIDE_FONTS = (
    "notosanscjk-regular",
    "notosanssc",
    "notosanscjk",
    "sourcehansans",
    "wqy-microhei",
    "wqy-zenhei",
    "droidsansfallback",
    "pingfang",
    "hiragino sans gb",
    "stheiti",
    "msyh",
    "simhei",
    "uming",
    "unifont",
    "arial unicode",
    "dejavusans.ttf",
)


class Caption:
    """A dark band with the prompt and a note, made once and put on as many pictures of one size as needed."""

    def __init__(self, size: tuple[int, int], prompt: str, note: str) -> None:
        width, height = size
        letters = max(SMALLEST_LETTERS, round(min(width, height * 1.6) / 26))
        small = max(SMALLEST_LETTERS - 2, round(letters * 0.6))
        margin, step = round(letters * 0.8), round(letters * 1.35)
        text = " ".join(
            "".join(each if each.isprintable() else " " for each in prompt[:MOST_LETTERS]).split()
        )
        missing = sum(_font_number(each) is None for each in text)
        if missing:
            note += f"  ·  {missing} characters without a font"
        lines = _wrap(text, letters, width - 2 * margin)
        band = min(height, len(lines) * step + round(small * 1.5) + 2 * margin)
        self._place = (0, height - band)
        self._band = Image.new("RGB", (width, band), BAND_COLOUR)
        pen = ImageDraw.Draw(self._band)
        for number, line in enumerate(lines):
            write_text(pen, (margin, margin + number * step), line, letters, TEXT_COLOUR)
        write_text(pen, (margin, margin + len(lines) * step + round(small * 0.2)), note, small, NOTE_COLOUR)
        # What is brighter than the band itself is text, and covers the picture; the band only darkens it.
        self._mask = self._band.convert("L").point(
            lambda level: round(205 + 50 * min(1.0, max(0, level - 12) / 160))
        )

    def put_on(self, picture: Image.Image) -> None:
        """Write the caption at the foot of a picture."""
        picture.paste(self._band, self._place, self._mask)


def _wrap(text: str, letters: int, width: int) -> list[str]:
    """Break a text into lines; scripts without spaces break anywhere, long texts end in an ellipsis."""
    lines = [""]
    for piece in _pieces(text):
        if lines[-1] and text_width(lines[-1] + piece.rstrip(), letters) > width:
            if len(lines) == MOST_LINES:
                return [*lines[:-1], _shortened(lines[-1], letters, width)]
            lines.append("")
        lines[-1] += piece
    return lines


def _pieces(text: str) -> Iterator[str]:
    """Split a text where a line may end: after a space, and around every wide character."""
    word = ""
    for each in text:
        if each > "\u2e7f":
            if word:
                yield word
            yield each
            word = ""
            continue
        word += each
        # A word longer than any line is broken too.
        if each == " " or len(word) >= 24:
            yield word
            word = ""
    if word:
        yield word


def _shortened(line: str, letters: int, width: int) -> str:
    while line and text_width(line + "…", letters) > width:
        line = line[:-1]
    return line.rstrip() + "…"


def _runs(text: str) -> Iterator[tuple[int, str]]:
    for number, run in groupby(text, key=lambda each: _font_number(each) or 0):
        yield number, "".join(run)


def text_width(text: str, letters: int) -> float:
    """Return the pixels that a line takes, in whatever scripts it is written."""
    return sum(_font(number, letters).getlength(run) for number, run in _runs(text))


def write_text(
    pen: ImageDraw.ImageDraw,
    place: tuple[float, float],
    text: str,
    letters: int,
    colour: tuple[int, int, int],
) -> None:
    """Write one line, each script in a font that has it."""
    x, y = place
    baseline = y + letters
    for number, run in _runs(text):
        font = _font(number, letters)
        pen.text((x, baseline), run, font=font, fill=colour, anchor="ls")
        x += font.getlength(run)


@lru_cache(maxsize=64)
def _font(number: int, letters: int) -> ImageFont.FreeTypeFont:
    """Return a font of this machine in a size; number 0 is Pillow's own."""
    if number:
        return ImageFont.truetype(_wide_fonts()[number - 1], letters)
    font = ImageFont.load_default(size=letters)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError("Pillow was built without FreeType and cannot write in a chosen size.")
    return font


@lru_cache(maxsize=65536)
def _font_number(character: str) -> int | None:
    """Return the first font that has a character, None if none has; only rare characters make it look for fonts."""
    if character.isspace() or _has(0, character):
        return 0
    return next((number for number in range(1, len(_wide_fonts()) + 1) if _has(number, character)), None)


def _has(number: int, character: str) -> bool:
    # A font draws every character it lacks as the same box, as it does for this one, which is none.
    font = _font(number, 24)
    return bytes(font.getmask(character)) != bytes(font.getmask("\U0010fffe"))


@lru_cache(maxsize=1)
def _wide_fonts() -> list[Path]:
    if sys.platform == "win32":
        places = [Path(os.environ.get("WINDIR", "C:/Windows")) / "Fonts"]
    elif sys.platform == "darwin":
        places = [Path("/System/Library/Fonts"), Path("/Library/Fonts"), Path.home() / "Library/Fonts"]
    else:
        places = [
            Path("/usr/share/fonts"),
            Path("/usr/local/share/fonts"),
            Path.home() / ".local/share/fonts",
        ]
    files = [*_packaged_files(), *(file for place in places for file in place.rglob("*"))]
    files = sorted(file for file in files if file.suffix.lower() in (".ttf", ".ttc", ".otf"))
    found: list[Path] = []
    for part in WIDE_FONTS:
        file = next((each for each in files if part in each.name.lower()), None)
        if file is not None and file not in found and _opens(file):
            found.append(file)
    return found


def _packaged_files() -> Iterator[Path]:
    """Return the files of installed Python packages that carry fonts, going by their names."""
    for distribution in metadata.distributions():
        if "font" in (distribution.name or "").lower():
            for file in distribution.files or []:
                yield Path(str(distribution.locate_file(file)))


def _opens(file: Path) -> bool:
    try:
        ImageFont.truetype(file, 24)
    except OSError:
        return False
    return True
