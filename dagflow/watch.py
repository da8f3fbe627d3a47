"""Watches the model as it learns, against the base model, on the same prompts and noise."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL.Image import Image

from dagflow.alarms import Alarm, find_alarms
from dagflow.engine import pictures
from dagflow.engine.normalise import Statistics, normalised
from dagflow.evaluate import (
    Drawn,
    Measured,
    Sampler,
    cycle,
    drift_from,
    measure,
    side,
    standard_error,
    win_rate,
)
from dagflow.files import whole
from dagflow.prepare import Run

PREFIX = "held_out."  # of a look's numbers in the metrics
COLUMNS = 8  # of a grid
PROMPTS = "prompts.json"  # the prompts of a grid, beside the grids


@dataclass(frozen=True)
class Watched:
    """The two models after an epoch, and the numbers to log."""

    base: Measured
    now: Measured
    numbers: dict[str, float]
    alarms: tuple[Alarm, ...]


class Watch:
    """Draws the grid of an epoch and measures what it drew. All processes do the same."""

    def __init__(self, run: Run) -> None:
        table = run.config.evaluate
        few = -(-table.watched // table.images_per_prompt)
        self.prompts = cycle(run.heldout[: few or None], max(table.watched, table.grid))
        self._base: Drawn | None = None

    def look(self, run: Run, epoch: int, statistics: Mapping[str, Statistics]) -> Watched | None:
        """Look after an epoch (0: before the first). None if nothing is to be measured.

        `statistics` decide how rewards are weighted.
        """
        if not self.prompts:
            return None
        measures = run.config.evaluate.watched > 0
        asked = [*run.rewards, *run.measured] if measures else []
        draws = (self._base is None) + (epoch > 0)
        own = len(run.processes.own(len(self.prompts)))
        run.watcher.phase("watch", draws * own * run.path.steps, max(epoch, 1))
        sampler = sampler_of(run, run.watcher.advance)
        if self._base is None:
            with run.policy.base():
                self._base = sampler.draw(self.prompts, asked)
        base = now = self._base
        if epoch:
            now = sampler.draw(self.prompts, asked, from_base=measures)

        def looked() -> Watched | None:
            self._draw_grid(run, epoch, now)
            watched = self._measured(run, base, now, statistics) if measures else None
            if watched and epoch < max(item.normalise_epochs for item in run.rewards):
                for name in ("reward_mean", "reward_std"):  # their scale still moves
                    del watched.numbers[PREFIX + name]
            return watched

        watched = run.processes.from_main(looked)
        if shown := run.config.evaluate.grid:
            run.watcher.pictures(now.images[:shown], epoch)
        return watched

    def _draw_grid(self, run: Run, epoch: int, now: Drawn) -> None:
        shown = run.config.evaluate.grid
        if not shown:
            return
        captions = [prompt.text for prompt in self.prompts[:shown]]
        folder = run.folder / "samples"
        picture = pictures.grid(now.images[:shown], COLUMNS, captions)
        show_picture(run, picture, folder / f"epoch-{epoch:04d}.png", "samples")
        if not epoch or not (folder / PROMPTS).exists():
            with whole(folder / PROMPTS) as file:
                file.write_text(json.dumps(captions), encoding="utf-8")

    def _measured(
        self, run: Run, base: Drawn, now: Drawn, statistics: Mapping[str, Statistics]
    ) -> Watched:
        rewards = normalised(run.rewards, statistics)
        before, after = (
            measure(side(drawn, rewards, run.measured), self.prompts, run.features)
            for drawn in (base, now)
        )
        numbers = _numbers(before, after, drift_from(base, now))
        alarms = find_alarms(before, after, run.config.alarms)
        return Watched(before, after, numbers, tuple(alarms))


def _numbers(base: Measured, now: Measured, drift: Mapping[str, float]) -> dict[str, float]:
    """The numbers under their names in the metrics."""
    change = now.rewards - base.rewards
    numbers = {
        "reward_mean": float(now.rewards.mean()),
        "reward_std": float(now.rewards.std(correction=0)),
        "reward_change": float(change.mean()),
        "reward_change_error": standard_error(change),
        "win_rate": win_rate(base.rewards, now.rewards),
        **{f"rewards.{label}": float(values.mean()) for label, values in now.scores.items()},
        **{name: float(values.mean()) for name, values in now.looks.items()},
        **{f"drift.{name}": value for name, value in drift.items()},
    }
    if now.diversity is not None and now.vendi is not None:
        numbers |= {"diversity": now.diversity, "vendi": now.vendi}
    return {PREFIX + name: value for name, value in numbers.items()}


def show_picture(run: Run, picture: Image, file: Path, name: str) -> None:
    """Save a picture in the run's folder, and send it to trackers under a name."""
    pictures.save(picture, file)
    run.trackers.picture(name, file)


def sampler_of(run: Run, progress: Callable[[int], None]) -> Sampler:
    """A sampler of held-out noise."""
    size, seed = run.config.rollout.batch_size, run.config.seed
    return Sampler(run.policy, run.path, size, seed, progress=progress, processes=run.processes)
