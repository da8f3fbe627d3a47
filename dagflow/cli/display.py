"""What a person sees of a run: a live view on a terminal, a line for each epoch elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console, Group, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table
from rich.text import Text
from torch import Tensor

from dagflow.cli.steady import SteadyLive
from dagflow.cli.view import View, is_live
from dagflow.profiling import Profile

REFRESHES = 4  # a second
BESIDE_THE_BAR = 50  # columns


class Silent:
    """Shows nothing: for the processes other than the main one."""

    def phase(self, name: str, total: int, epoch: int) -> None: ...
    def advance(self, units: int) -> None: ...
    def show(self, metrics: Mapping[str, float]) -> None: ...
    def say(self, text: str) -> None: ...
    def pictures(self, images: Tensor, epoch: int) -> None: ...
    def epoch_done(self, epoch: int, epochs: int) -> None: ...


class Display:
    """Shows epoch, phase, reward, loss and time left. A `dagflow.prepare.Watcher`."""

    def __init__(
        self, console: Console, may_stop: bool = False, pictures: bool | None = None
    ) -> None:
        """`may_stop`: the run may end before its last epoch; `pictures`: as for `View`."""
        self._console = console
        self._most = "at most " if may_stop else ""
        self._numbers: dict[str, float] = {}
        self._epochs_timed: list[float] = []
        self._epoch_start = time.monotonic()
        self._epochs_left = 0
        self._view = View(console, pictures)
        self._bar = BarColumn()
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("epoch {task.fields[epoch]}  {task.description:<8}"),
            self._bar,
            MofNCompleteColumn(),
            TextColumn("{task.fields[left]}"),
            console=console,
        )
        self._live = SteadyLive(console, self._shown, REFRESHES)
        self._task = self._bars.add_task("loading", total=None, epoch="-", left="")

    def __enter__(self) -> Display:
        if is_live(self._console):
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._live.stop()

    def phase(self, name: str, total: int, epoch: int) -> None:
        # reset drops the fields that it is not given
        self._bars.reset(self._task, description=name, total=total, epoch=epoch, left="")
        self._bars.update(self._task, left=self._time_left())
        self._live.show_now()  # some stages are over before the next refresh

    def advance(self, units: int) -> None:
        self._bars.update(self._task, advance=units, left=self._time_left())

    def show(self, metrics: Mapping[str, float]) -> None:
        self._numbers.update(metrics)
        self._view.show(metrics)

    def say(self, text: str) -> None:
        alarm = text.lower().startswith("alarm")
        self._console.print(Text(text, "bold red" if alarm else ""))
        if alarm:
            self._view.alarm(text)

    def pictures(self, images: Tensor, epoch: int) -> None:
        self._view.pictures(images, epoch)

    def epoch_done(self, epoch: int, epochs: int) -> None:
        now = time.monotonic()
        self._epochs_timed.append(now - self._epoch_start)
        self._epoch_start = now
        self._epochs_left = epochs - epoch
        self._view.epoch_done()
        self._console.print(f"epoch {epoch}/{epochs}  {self._line()}")

    def _shown(self) -> RenderableType:
        """On a terminal: the current stage's bar, as wide as there is room, and the view."""
        self._bar.bar_width = max(5, min(30, self._console.width - BESIDE_THE_BAR))
        return Group(self._bars, *self._view.parts())

    def _line(self) -> str:
        numbers = self._numbers
        parts = []
        if "reward_mean" in numbers:
            parts.append(f"reward {numbers['reward_mean']:.4f} (sd {numbers['reward_std']:.4f})")
        if "loss" in numbers:
            parts.append(f"loss {numbers['loss']:.4g}")
        if self._epochs_left:
            parts.append(self._time_left())
        return "  ".join(parts)

    def _time_left(self) -> str:
        """Estimated from the mean duration of the epochs so far; after the last, from the stage."""
        if not self._epochs_timed:
            return ""
        if not self._epochs_left:
            seconds = self._bars.tasks[0].time_remaining
            return "" if seconds is None else f"{_clock(seconds)} left"
        mean = sum(self._epochs_timed) / len(self._epochs_timed)
        spent = time.monotonic() - self._epoch_start
        seconds = mean * self._epochs_left - spent
        return f"{self._most}{_clock(max(0.0, seconds))} left"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def profile_table(profile: Profile) -> Table:
    """Where the time went, the longest first, with the peak of memory in each part."""
    table = Table("", "seconds", "share", "calls", "memory, MB", box=None)
    spans = profile.longest()
    total = sum(span.seconds for span in spans.values()) or 1.0
    for name, span in spans.items():
        cells = (f"{span.seconds:.1f}", f"{span.seconds / total:.0%}", str(span.calls))
        table.add_row(name, *cells, f"{span.megabytes:.0f}")
    return table
