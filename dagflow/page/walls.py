"""Pictures of a run as data URIs: the wall of its epochs, its best and worst, a world's truth."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from dagflow.engine import pictures
from dagflow.page.plot import evenly, shown
from dagflow.page.read import RunData, at, number

EPOCHS = 24  # at most, on a page
COLUMNS = 8  # of the grids of a run
LOSSLESS = 128  # sides up to which pictures are kept to the last bit
LARGEST = 256
PIXELS = 10_000_000  # of all pictures of a wall
SHEET = re.compile(r"epoch-(\d+)\.png")


@dataclass(frozen=True)
class Tile:
    """One prompt and noise, drawn after each of a wall's epochs."""

    prompt: str
    frames: tuple[str, ...]  # data URIs


@dataclass(frozen=True)
class Wall:
    epochs: tuple[int, ...]
    tiles: tuple[Tile, ...]
    left_out: int  # epochs that have a grid but are not shown
    size: tuple[int, int]  # width and height of a picture


@dataclass(frozen=True)
class Ranked:
    """Pictures of one model, such as its best, with their captions."""

    title: str
    pictures: tuple[tuple[str, str, str], ...]  # data URI, prompt, reward


def wall(run: RunData) -> Wall | None:
    """The pictures of at most EPOCHS epochs, evenly chosen; None where there are no grids."""
    sheets = {
        int(found[1]): path
        for path in (run.folder / "samples").glob("epoch-*.png")
        if (found := SHEET.fullmatch(path.name))
    }
    count = len(run.prompts) or int(at(run.config, "evaluate", "grid") or 0)
    if not sheets or not count:
        return None
    chosen = evenly(sorted(sheets), EPOCHS)
    side = min(LARGEST, int((PIXELS / (count * len(chosen))) ** 0.5))
    frames = {}
    for epoch in chosen:
        if cut := _cut(sheets[epoch], count, COLUMNS, side):
            frames[epoch] = cut
    if not frames:
        return None
    prompts = run.prompts or [f"picture {k + 1} of the grid" for k in range(count)]
    tiles = tuple(
        Tile(prompts[k], tuple(found[0][k] for found in frames.values())) for k in range(count)
    )
    return Wall(tuple(frames), tiles, len(sheets) - len(frames), next(iter(frames.values()))[1])


def ranked(run: RunData) -> list[tuple[str, list[Ranked]]]:
    """Best, median and worst images of the base and of the trained model."""
    found = []
    for model in ("base", "trained"):
        places = at(run.report, "ranked", model)
        file = run.folder / "samples" / f"ranked-{model}.png"
        if not isinstance(places, list) or not file.is_file():
            continue
        every = [k for row in places for k in row]
        if not every or not (cut := _cut(file, len(every), len(places[0]), LARGEST)):
            continue
        images = iter(cut[0])
        rows = [
            Ranked(title, tuple((next(images), *_caption(run, model, k)) for k in row))
            for title, row in zip(("Best", "Median", "Worst"), places, strict=False)
        ]
        found.append((model, rows))
    return found


def picture(file: Path) -> tuple[str, int, int] | None:
    """A whole picture as a data URI, with its size; None if there is none."""
    try:
        with Image.open(file) as image:
            whole = image.convert("RGB")
    except OSError:
        return None
    return _uri(whole, lossless=True), whole.width, whole.height


def _caption(run: RunData, model: str, place: int) -> tuple[str, str]:
    """Prompt and reward of a held-out image."""
    prompts = run.report.get("prompts") or []
    rewards = at(run.report, "per_image", model) or []
    reward = number(rewards[place]) if place < len(rewards) else None
    return (str(prompts[place]) if place < len(prompts) else "", shown(reward))


def _cut(
    file: Path, count: int, columns: int, side: int
) -> tuple[tuple[str, ...], tuple[int, int]] | None:
    """The pictures of a grid, no larger than `side`; None if the file is no such grid."""
    try:
        stat = file.stat()
        return _cut_and_kept(file, stat.st_mtime_ns, stat.st_size, count, columns, side)
    except (OSError, ValueError):
        return None


@lru_cache(maxsize=256)  # a served page is rebuilt again and again
def _cut_and_kept(
    file: Path, changed: int, length: int, count: int, columns: int, side: int
) -> tuple[tuple[str, ...], tuple[int, int]]:
    with Image.open(file) as sheet:
        tiles = pictures.tiles(sheet.convert("RGB"), count, columns)
    small = [_reduced(tile, side) for tile in tiles]
    return tuple(_uri(tile, max(tile.size) <= LOSSLESS) for tile in small), small[0].size


def _reduced(tile: Image.Image, side: int) -> Image.Image:
    if max(tile.size) <= max(side, LOSSLESS):
        return tile
    copy = tile.copy()
    copy.thumbnail((side, side), Image.Resampling.LANCZOS)
    return copy


def _uri(image: Image.Image, lossless: bool) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", lossless=lossless, quality=80, method=4)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def is_pixel_art(size: Sequence[int]) -> bool:
    """Whether to show pictures with hard pixels: small ones were magnified that way."""
    return min(size) <= pictures.LEAST_SIDE
