"""A run as a person sees it: bars on a terminal, a line for each epoch elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.table import Table

from dagflow.profiling import Profile


class Silent:
    """Shows nothing: for processes beside the one that does."""

    def phase(self, name: str, total: int, epoch: int) -> None: ...
    def advance(self, units: int) -> None: ...
    def show(self, metrics: Mapping[str, float]) -> None: ...
    def say(self, text: str) -> None: ...
    def epoch_done(self, epoch: int, epochs: int) -> None: ...


class Display:
    """Shows epoch, phase, reward, loss and time left. A `dagflow.prepare.Watcher`."""

    def __init__(self, console: Console, may_stop: bool = False) -> None:
        """`may_stop`: a run that may end before its last epoch."""
        self._console = console
        self._most = "at most " if may_stop else ""
        self._numbers: dict[str, float] = {}
        self._epochs_timed: list[float] = []
        self._epoch_start = time.monotonic()
        self._epochs = 0
        self._bars = Progress(
            SpinnerColumn(),
            TextColumn("epoch {task.fields[epoch]}  {task.description:<8}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._task = self._bars.add_task("loading", total=None, epoch="-", numbers="")

    def __enter__(self) -> Display:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def stop(self) -> None:
        self._bars.stop()

    def phase(self, name: str, total: int, epoch: int) -> None:
        # reset forgets the fields that it is not given
        self._bars.reset(
            self._task, description=name, total=total, epoch=epoch, numbers=self._line()
        )

    def advance(self, units: int) -> None:
        self._bars.update(self._task, advance=units, numbers=self._line())

    def show(self, metrics: Mapping[str, float]) -> None:
        self._numbers.update(metrics)
        self._bars.update(self._task, numbers=self._line())

    def say(self, text: str) -> None:
        self._console.print(text)

    def epoch_done(self, epoch: int, epochs: int) -> None:
        now = time.monotonic()
        self._epochs_timed.append(now - self._epoch_start)
        self._epoch_start = now
        self._epochs = epochs
        self._console.print(f"epoch {epoch}/{epochs}  {self._line()}")

    def _line(self) -> str:
        numbers = self._numbers
        parts = []
        if "reward_mean" in numbers:
            parts.append(f"reward {numbers['reward_mean']:.4f} +- {numbers['reward_std']:.4f}")
        if "loss" in numbers:
            parts.append(f"loss {numbers['loss']:.4g}")
        if self._epochs_timed:
            parts.append(f"{self._most}{_clock(self._left())} left")
        return "  ".join(parts)

    def _left(self) -> float:
        """Seconds, from the mean epoch so far."""
        mean = sum(self._epochs_timed) / len(self._epochs_timed)
        spent = time.monotonic() - self._epoch_start
        return max(0.0, mean * (self._epochs - len(self._epochs_timed)) - spent)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def profile_table(profile: Profile) -> Table:
    """Where the time went, the longest first, and the peak of memory meanwhile."""
    table = Table("", "seconds", "share", "calls", "memory, MB", box=None)
    spans = profile.longest()
    total = sum(span.seconds for span in spans.values()) or 1.0
    for name, span in spans.items():
        cells = (f"{span.seconds:.1f}", f"{span.seconds / total:.0%}", str(span.calls))
        table.add_row(name, *cells, f"{span.megabytes:.0f}")
    return table
