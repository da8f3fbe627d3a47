from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFont

from dagflow.engine import pictures


@pytest.mark.parametrize(
    ("count", "shape"), [(2, (32, 32)), (8, (32, 48)), (11, (128, 96)), (16, (100, 100))]
)
def test_tiles_undo_a_grid(count: int, shape: tuple[int, int]) -> None:
    images = torch.rand(count, 3, *shape, generator=torch.Generator().manual_seed(count))
    sheet = pictures.grid(images, columns=8, captions=["a cat"] * count)
    tiles = pictures.tiles(sheet, count, columns=8)
    assert len(tiles) == count
    for tile, image in zip(tiles, images, strict=True):
        whole = pictures.to_pil(image)
        assert tile.width % whole.width == tile.height % whole.height == 0
        factor = tile.width // whole.width
        assert (np.asarray(tile)[::factor, ::factor] == np.asarray(whole)).all()


def test_a_caption_is_as_long_as_there_is_room() -> None:
    draw = ImageDraw.Draw(Image.new("RGB", (96, 20)))
    font = ImageFont.load_default(size=12)
    shown = [pictures._fitting(draw, text, font, 90) for text in ("a cat", 9000 * "a cat\n ")]
    assert shown[0] == "a cat"
    assert shown[1].endswith("…")
    assert draw.textlength(shown[1], font) <= 90 < draw.textlength("a " + shown[1], font)


@pytest.mark.parametrize(("size", "count"), [((804, 121), 16), ((800, 120), 8), ((10, 10), 8)])
def test_what_is_no_grid_is_refused(size: tuple[int, int], count: int) -> None:
    with pytest.raises(ValueError, match="not a grid of"):
        pictures.tiles(Image.new("RGB", size), count, columns=8)
