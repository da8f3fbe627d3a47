"""A live display that rewrites only lines that have changed, so that pictures do not flicker."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from threading import Thread
from typing import cast

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderableType, RenderResult
from rich.control import Control
from rich.live import Live
from rich.segment import ControlType, Segment

Lines = list[list[Segment]]
ERASE, UP = (ControlType.ERASE_IN_LINE, 2), (ControlType.CURSOR_UP, 1)


class SteadyLive(Live):
    """rich's Live erases and rewrites everything at each refresh; this one does not.

    It disappears at the end. What others print meanwhile waits for the next refresh. The main
    thread writes nothing: its signal handlers, which print, could otherwise interrupt a half
    written line.
    """

    def __init__(
        self, console: Console, renderable: Callable[[], RenderableType], per_second: float
    ) -> None:
        super().__init__(
            console=console,
            get_renderable=renderable,
            refresh_per_second=per_second,
            transient=True,
        )
        self._said: list[ConsoleRenderable] = []
        self._written: Lines = []
        self._width = 0  # of the terminal when the lines were written

    def show_now(self) -> None:
        """Refresh, if the display has started, and wait until that is done."""
        if self.is_started:
            writer = Thread(target=self.refresh)
            writer.start()
            writer.join()

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        """What to write: at a refresh, the held-back prints and the changes; otherwise nothing."""
        if not self.console.is_interactive:
            return renderables
        if not all(isinstance(item, Control) for item in renderables):
            self._said.extend(renderables)
            return []
        said, self._said = self._said, []
        width = self.console.width
        narrower = width < self._width
        stays = not narrower and not said
        self._live_render.vertical_overflow = self.vertical_overflow
        up = max(0, len(self._written) - 1) + (self._folds(width) if narrower else 0)
        to_the_top = (UP,) * up if stays else (ERASE, *(UP, ERASE) * up)
        return [
            Control(ControlType.CARRIAGE_RETURN, *to_the_top),
            *said,
            _Changes(self, self._written if stays else []),
        ]

    def _folds(self, width: int) -> int:
        """How many lines a terminal has added by folding those that no longer fit its `width`."""
        return sum(max(0, Segment.get_line_length(line) - 1) // width for line in self._written)

    def lines(self, console: Console, options: ConsoleOptions) -> Lines:
        """The lines to show now, kept as those that stand there at the next refresh."""
        shown = self._live_render.__rich_console__(console, options)
        self._written = list(Segment.split_lines(cast(Iterable[Segment], shown)))
        self._width = console.width
        return self._written


class _Changes:
    """What turns the lines that `stand` there into those of a display."""

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
