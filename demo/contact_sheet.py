"""Lay out all pictures of a run on one sheet."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from airflow_provider_uniapi_fal.emulator.captions import text_width, write_text
from demo.account import BrokenMedia, MediaFile, Row, picture_of

TILE_WIDTH, PICTURE_HEIGHT, CAPTION_HEIGHT = 320, 240, 66
MARGIN, GAP, HEADER = 36, 20, 74
CORNER = 10
PAPER, PANEL, INK, FAINT = (18, 19, 24), (30, 32, 40), (238, 238, 242), (150, 154, 168)
FAILED_PANEL, FAILED_INK = (58, 24, 30), (255, 176, 170)


def draw_contact_sheet(rows: Sequence[Row], title: str, path: Path) -> None:
    """Write a PNG with a tile for every file, and one for every prompt that gave none, with the reason."""
    tiles = [tile for row in rows for tile in _tiles(row)]
    columns = _columns(len(tiles))
    lines = math.ceil(len(tiles) / columns)
    step_x, step_y = TILE_WIDTH + GAP, PICTURE_HEIGHT + CAPTION_HEIGHT + GAP
    width = 2 * MARGIN + columns * step_x - GAP
    sheet = Image.new("RGB", (width, HEADER + lines * step_y - GAP + MARGIN), PAPER)
    _write(ImageDraw.Draw(sheet), (MARGIN, 26), title, 26, INK, width - 2 * MARGIN)
    for number, tile in enumerate(tiles):
        sheet.paste(tile, (MARGIN + number % columns * step_x, HEADER + number // columns * step_y))
    sheet.save(path)


def _columns(tiles: int) -> int:
    """Choose a number of columns, about as many as lines, that leaves the fewest gaps in the last line."""
    about = max(1, math.ceil(math.sqrt(tiles)))
    return min(range(about, about + 3), key=lambda columns: -tiles % columns)


def _tiles(row: Row) -> list[Image.Image]:
    if not row.files:
        return [_failed_tile(row, f"{row.outcome}: {row.error}" if row.error else row.outcome)]
    return [_tile(row, number) for number in range(len(row.files))]


def _tile(row: Row, number: int) -> Image.Image:
    file = row.files[number]
    try:
        picture = picture_of(file)
    except BrokenMedia as error:
        return _failed_tile(row, str(error))
    # The font that comes with the library has no multiplication sign.
    size = f"{picture.width} x {picture.height}"
    picture.thumbnail((TILE_WIDTH, PICTURE_HEIGHT), Image.Resampling.LANCZOS)
    tile, draw = _blank(PANEL)
    corner = ((TILE_WIDTH - picture.width) // 2, (PICTURE_HEIGHT - picture.height) // 2)
    # Only a picture that reaches the panel's edge shares its round corners.
    shape = Image.new("L", tile.size, 0)
    ImageDraw.Draw(shape).rounded_rectangle((0, 0, TILE_WIDTH - 1, PICTURE_HEIGHT - 1), CORNER, fill=255)
    shape = shape.crop((*corner, corner[0] + picture.width, corner[1] + picture.height))
    tile.paste(picture, corner, shape)
    if file.is_video:
        _draw_play_sign(draw)
    name = row.key if len(row.files) == 1 else f"{row.key}  {number + 1}/{len(row.files)}"
    _caption(draw, name, row.model, f"{size} · {_kind(file)} · {in_units(file.size)}")
    return tile


def _failed_tile(row: Row, reason: str) -> Image.Image:
    tile, draw = _blank(FAILED_PANEL)
    font = ImageFont.load_default(16)
    lines = _wrapped(reason, font, TILE_WIDTH - 40)[:9]
    draw.multiline_text((20, 20), "\n".join(lines), font=font, fill=FAILED_INK, spacing=8)
    _caption(draw, row.key, row.model, row.outcome)
    return tile


def _blank(panel: tuple[int, int, int]) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    tile = Image.new("RGB", (TILE_WIDTH, PICTURE_HEIGHT + CAPTION_HEIGHT), PAPER)
    draw = ImageDraw.Draw(tile)
    draw.rounded_rectangle((0, 0, TILE_WIDTH - 1, PICTURE_HEIGHT - 1), CORNER, fill=panel)
    return tile, draw


def _draw_play_sign(draw: ImageDraw.ImageDraw) -> None:
    x, y, radius = TILE_WIDTH // 2, PICTURE_HEIGHT // 2, 26
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=PAPER, outline=INK, width=2)
    draw.polygon([(x - 8, y - 13), (x - 8, y + 13), (x + 15, y)], fill=INK)


def _caption(draw: ImageDraw.ImageDraw, name: str, model: str, details: str) -> None:
    for line, size, colour, y in ((name, 17, INK, 8), (model, 13, FAINT, 30), (details, 13, FAINT, 47)):
        _write(draw, (2, PICTURE_HEIGHT + y), line, size, colour, TILE_WIDTH - 4)


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[int, int],
    text: str,
    size: int,
    colour: tuple[int, int, int],
    width: int,
) -> None:
    """Write one line, cut where the room ends."""
    shown = text
    while shown and text_width(shown, size) > width:
        shown = shown.rstrip("…")[:-1] + "…" if len(shown) > 1 else ""
    write_text(draw, at, shown, size, colour)


def _wrapped(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> list[str]:
    """Break a text into lines, between words where there are any (there are none in an id or in Chinese)."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".lstrip()
        if font.getlength(longer) <= width:
            lines[-1] = longer
            continue
        lines.append("")
        for character in word:
            if font.getlength(lines[-1] + character) > width:
                lines.append("")
            lines[-1] += character
    return [line for line in lines if line]


def _kind(file: MediaFile) -> str:
    return file.content_type.rpartition("/")[2] or file.path.suffix.lstrip(".")


def in_units(size: int) -> str:
    """Write a number of bytes for a reader: `812 kB`."""
    if size < 1000:
        return f"{size} B"
    return f"{size / 1000:.0f} kB" if size < 1_000_000 else f"{size / 1_000_000:.1f} MB"
