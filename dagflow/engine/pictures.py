"""Pictures of pictures: grids, and before-and-after sheets."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor

from dagflow.files import whole

GAP = 4
LEAST_SIDE = 96  # smaller pictures are magnified, so that people can see them
CAPTION = 16
LONGEST = 1000  # characters of a caption that are considered; no picture is that wide


def to_pil(image: Tensor) -> Image.Image:
    """A float image (3, height, width) in [0, 1] as a PIL image of the same size."""
    pixels = (image * 255).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.permute(1, 2, 0).cpu().numpy())


def grid(images: Tensor, columns: int, captions: Sequence[str] = ()) -> Image.Image:
    """Images (B, 3, height, width) in rows of `columns`, small ones magnified by a whole factor.

    Captions, if given, stand under the images.
    """
    tiles = [_magnified(to_pil(image)) for image in images]
    width, height = tiles[0].size
    under = CAPTION if captions else 0
    rows = -(-len(tiles) // columns)
    size = (columns * (width + GAP) + GAP, rows * (height + under + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=11)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, columns)
        corner = (GAP + column * (width + GAP), GAP + row * (height + under + GAP))
        sheet.paste(tile, corner)
        if captions:
            text = _fitting(draw, captions[place], font, width)
            draw.text((corner[0], corner[1] + height + 1), text, "black", font)
    return sheet


def tiles(sheet: Image.Image, count: int, columns: int) -> list[Image.Image]:
    """The `count` pictures of a captioned `grid`, at their size there.

    Raises ValueError if the sheet is not a grid of that many.
    """
    rows = -(-count // columns)
    wide, high = sheet.width - GAP, sheet.height - GAP
    width, height = wide // columns - GAP, high // rows - CAPTION - GAP if rows else 0
    if min(width, height) < 1 or wide % columns or high % rows:
        raise ValueError(f"{sheet.width} x {sheet.height} pixels: not a grid of {count} pictures")
    corners = [
        (GAP + (k % columns) * (width + GAP), GAP + k // columns * (height + CAPTION + GAP))
        for k in range(count)
    ]
    return [sheet.crop((x, y, x + width, y + height)) for x, y in corners]


def before_after(before: Tensor, after: Tensor, captions: Sequence[str]) -> Image.Image:
    """Columns of pairs: the base model's image above the trained model's, from the same noise."""
    blanks = [""] * len(before)
    both = torch.cat([before, after])
    return grid(both, columns=len(before), captions=[*blanks, *captions])


def save(picture: Image.Image, path: Path) -> None:
    """Write a PNG; the file appears whole or not at all."""
    with whole(path) as file:
        picture.save(file, format="PNG")


def upright(picture: Image.Image) -> Image.Image:
    """The picture in RGB, rotated according to its EXIF data if they can be read."""
    with suppress(Exception):  # whatever Pillow raises for bad EXIF data
        picture = ImageOps.exif_transpose(picture)
    return picture.convert("RGB")


def _magnified(image: Image.Image) -> Image.Image:
    factor = -(-LEAST_SIDE // min(image.size))
    return image.resize((image.width * factor, image.height * factor), Image.Resampling.NEAREST)


def _fitting(
    draw: ImageDraw.ImageDraw,
    text: str,
    font: ImageFont.ImageFont | ImageFont.FreeTypeFont,
    width: int,
) -> str:
    text = " ".join(text[:LONGEST].split())
    if draw.textlength(text, font) <= width:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if draw.textlength(text[:middle] + "…", font) <= width:
            fits = middle
        else:
            too_long = middle
    return text[:fits] + "…"
