"""A live display that writes only the lines that have changed, so that pictures stand still."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment

Lines = list[list[Segment]]
ERASE, UP = (ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)


class SteadyLive(Live):
    """rich's, which erases and writes all that it shows at each refresh. Gone in the end."""

    def __init__(
        self, console: Console, renderable: Callable[[], RenderableType], per_second: float
    ) -> None:
        super().__init__(
            console=console,
            get_renderable=renderable,
            refresh_per_second=per_second,
            transient=True,
        )
        self._written: Lines = []
        self._width = 0  # of the terminal, when they were written

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What is to be written: these, and what is shown under them."""
        if not self.console.is_interactive:
            return renderables
        with self._lock:
            width = self.console.width
            narrower = width < self._width
            stays = not narrower and all(isinstance(item, Control) for item in renderables)
            self._live_render.vertical_overflow = self.vertical_overflow
            up = max(0, len(self._written) - 1) + (self._folds(width) if narrower else 0)
            to_the_top = (UP,) * up if stays else (ERASE, *(UP, ERASE) * up)
            return [
                Control(ControlType.CARRIAGE_RETURN, *to_the_top),
                *renderables,
                _Changes(self, self._written if stays else []),
            ]

    def _folds(self, width: int) -> int:
        """Lines that a terminal has added, by folding those that no longer fit its `width`."""
        return sum(max(0, Segment.get_line_length(line) - 1) // width for line in self._written)

    def lines(self, console: Console, options: ConsoleOptions) -> Lines:
        """What is to be seen now; the next time it is what stands there."""
        shown = self._live_render.__rich_console__(console, options)
        self._written = list(Segment.split_lines(cast(Iterable[Segment], shown)))
        self._width = console.width
        return self._written


class _Changes:
    """What makes the lines of a display out of those that `stand` there."""

    def __init__(self, display: SteadyLive, stand: Lines) -> None:
        self._display, self._stand = display, stand

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines, stand = self._display.lines(console, options), self._stand
        for k in range(max(len(lines), len(stand))):
            if k:
                yield Segment.line()
            line = lines[k] if k < len(lines) else []
            if k >= len(stand):
                yield from line
            elif line != stand[k]:
                yield Control(ERASE)
                yield from line
        yield Control(*(UP,) * (len(stand) - len(lines)))
