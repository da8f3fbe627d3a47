"""What a terminal shows under the bar: curves over the epochs, the last alarm, pictures."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from PIL import Image
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text
from rich_pixels import Pixels
from torch import Tensor

from dagflow.engine.pictures import to_pil

CURVES = {
    "reward_mean": "reward",
    "held_out.reward_mean": "held-out",
    "held_out.diversity": "diversity",
    "loss": "loss",
}
BLOCKS = "▁▂▃▄▅▆▇█"
LABEL, NUMBER = 9, 9  # columns of a name, and of a number
LONGEST = 40  # columns of a curve
SIDES = (16, 12, 10, 8)  # columns of a picture; a row has at least four
OTHER_LINES = 8  # lines that pictures leave free


class View:
    """Curves if the console is a person's terminal, and pictures if that shows colours."""

    def __init__(self, console: Console, pictures: bool | None = None) -> None:
        """`pictures`: by default only in true colour; never where there are no colours."""
        self._console = console
        self._shown = _is_watched(console)
        can = console.color_system is not None and not console.no_color
        wanted = console.color_system == "truecolor" if pictures is None else pictures
        self._pictures_shown = self._shown and can and wanted
        self._curves: dict[str, list[float]] = {key: [] for key in CURVES}
        self._losses: list[float] = []  # of the epoch's updates so far
        self._alarm = ""
        self._rows: dict[int, list[Image.Image]] = {}  # the first grid and the newest, by epoch
        self._drawn: tuple[tuple[int, ...], list[RenderableType]] | None = None

    def show(self, metrics: Mapping[str, float]) -> None:
        """Take new numbers; losses count as their mean over the epoch."""
        for key, curve in self._curves.items():
            value = metrics.get(key, math.nan)
            if not math.isfinite(value):
                continue
            if key == "loss":
                if self._losses:
                    curve.pop()
                self._losses.append(value)
                value = sum(self._losses) / len(self._losses)
            curve.append(value)

    def epoch_done(self) -> None:
        self._losses = []

    def alarm(self, text: str) -> None:
        self._alarm = text

    def pictures(self, images: Tensor, epoch: int) -> None:
        """Take a grid (B, 3, height, width), of the same prompts and noise as all others."""
        if not self._pictures_shown:
            return
        tiles = [to_pil(image) for image in images[:LONGEST]]
        first = min(self._rows, default=epoch)
        self._rows = {first: self._rows.get(first, tiles), epoch: tiles}
        self._drawn = None

    def parts(self) -> Iterator[RenderableType]:
        """The parts to show now, one below the other."""
        if not self._shown:
            return
        width, height = self._console.size
        yield curves(self._curves, width)
        if self._alarm:
            yield Text(self._alarm, "bold red", overflow="ellipsis", no_wrap=True)
        if self._rows:
            size = (width, height - OTHER_LINES)
            if not self._drawn or self._drawn[0] != size:
                self._drawn = size, list(_rows(self._rows, *size))
            yield from self._drawn[1]


def is_live(console: Console) -> bool:
    """Whether lines may change after they are shown: on a terminal, but not where CI is set."""
    return console.is_terminal and "CI" not in os.environ


def _is_watched(console: Console) -> bool:
    """Whether a person is at the terminal, and it can show the characters."""
    watched = is_live(console) and not console.is_dumb_terminal
    return watched and console.file.isatty() and not console.options.ascii_only


def curves(values: Mapping[str, Sequence[float]], width: int) -> Table:
    """A line for each key with values: its curve, the latest value, the change since the first."""
    table = Table.grid(padding=(0, 1))
    room = min(LONGEST, width - LABEL - 2 * NUMBER - 4)
    for key, found in values.items():
        if found and room > 0:
            numbers = (f"{found[-1]:{NUMBER}.4g}", f"{found[-1] - found[0]:+{NUMBER}.3g}")
            table.add_row(f"{CURVES[key]:<{LABEL}}", Text(curve(found, room), "cyan"), *numbers)
    return table


def curve(values: Sequence[float], width: int) -> str:
    """Values as at most `width` blocks, each the mean of equally many values, give or take one."""
    count = min(width, len(values))
    ends = [k * len(values) // count for k in range(count + 1)]
    means = [sum(values[a:b]) / (b - a) for a, b in pairwise(ends)]
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((mean - low) * scale)] for mean in means)


def _rows(rows: Mapping[int, list[Image.Image]], width: int, height: int) -> Iterable[Table]:
    """A row of pictures for each grid, as large as fits; none if there is too little room."""
    room = width - LABEL - 1
    for side in SIDES:
        count = min(room // (side + 1), *(len(tiles) for tiles in rows.values()))
        fits = len(rows) * side // 2 <= height
        if fits and room // (side + 1) >= 4:
            return [_row(epoch, tiles[:count], side) for epoch, tiles in rows.items()]
    return []


def _row(epoch: int, tiles: Sequence[Image.Image], side: int) -> Table:
    """Draw with half-blocks: two pixels in each character, one above the other."""
    sheet = Image.new("RGBA", ((side + 1) * len(tiles), side))
    for place, tile in enumerate(tiles):
        sheet.paste(tile.resize((side, side), Image.Resampling.BOX), (place * (side + 1), 0))
    table = Table.grid()
    table.add_column(width=LABEL + 1)
    table.add_column(width=sheet.width)
    name = f"epoch {epoch}" if epoch else "base"
    table.add_row(name, Pixels.from_image(sheet))
    return table
