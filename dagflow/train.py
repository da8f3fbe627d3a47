"""The training run, top to bottom: prompts, rollout, score, cut, update, checkpoint, report."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dagflow import config as configuration
from dagflow.collect import Epoch, collect
from dagflow.config import Config
from dagflow.engine import checkpoint as checkpoints
from dagflow.engine import pictures
from dagflow.engine.checkpoint import Position
from dagflow.engine.metrics import Clock, JsonLines
from dagflow.engine.normalise import SMALLEST, mean_and_deviation, moments, normalised, summary
from dagflow.engine.scoring import WeightedReward
from dagflow.engine.transitions import cut
from dagflow.engine.update import Window, current_potentials, update, warm_up
from dagflow.errors import NotSaved, RunError, UserError
from dagflow.evaluate import Comparison, compare, cycle, sample
from dagflow.prepare import Run
from dagflow.recipe import read_recipe


@dataclass(frozen=True)
class Stopped:
    """A run that has gained enough (`stop_at_gain`)."""

    epochs: int  # that were done
    gain: float  # in deviations of the first epoch's rewards


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves behind."""

    checkpoint: Path
    comparison: Comparison | None
    stopped: Stopped | None = None


def start(run: Run) -> Outcome:
    """Begin in a directory that does not exist or is empty, and train to the end."""
    require_free(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    write_config(run.config, run.folder)
    if run.config.evaluate.grid:
        _draw_grid(run, epoch=0)
    with closing(run):
        return _train(run, Position(), run.policy.lora_state())


def require_free(folder: Path) -> None:
    """Raise UserError unless a run can begin in this folder: it does not exist or is empty."""
    if (folder / "config.toml").is_file():
        raise UserError(
            f"'{folder}' holds a run already. Go on with `dagflow train --resume {folder}`, or "
            f"give another --output."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"'{folder}' exists and is not empty. Give another --output.")


def resume(run: Run) -> Outcome:
    """Go on from the newest checkpoint of the directory, to the same end as without the break.

    A run that stopped before its first checkpoint begins again.
    """
    found = checkpoints.checkpoints(run.folder / "checkpoints")
    position, rollout_lora = Position(), run.policy.lora_state()
    if found:
        position, rollout_lora = checkpoints.restore(found[-1], run.learner)
    if (position.epoch, position.window) > (run.config.epochs, 0):
        raise UserError(f"the run is past epochs = {run.config.epochs} already.")
    write_config(run.config, run.folder)
    with closing(run):
        return _train(run, position, rollout_lora)


def read_config(folder: Path) -> Config:
    """The configuration of an existing run. Raises UserError if the folder is no run."""
    file = folder / "config.toml"
    if not file.is_file():
        raise UserError(f"'{folder}' is not a run directory: it has no config.toml.")
    tree = read_recipe(str(file))
    return configuration.resolve({**tree, "output": str(folder)})


def write_config(config: Config, folder: Path) -> None:
    partial = folder / ".config.toml.partial"
    partial.write_text(configuration.dump(config), encoding="utf-8")
    partial.rename(folder / "config.toml")


def _train(run: Run, position: Position, rollout_lora: dict[str, Tensor]) -> Outcome:
    _open_logs(run)
    session = _Session(run, position, rollout_lora)
    try:
        stopped = session.train()
    except NotSaved:
        raise
    except torch.OutOfMemoryError as error:
        session.save()
        raise RunError(
            "the device is out of memory: lower update.microbatch_size and rollout.batch_size"
        ) from error
    except Exception:
        session.save()
        raise
    checkpoint = session.save()
    comparison = _evaluate(run, normalised(run.rewards, session.position.statistics))
    return Outcome(checkpoint, comparison, stopped)


def _open_logs(run: Run) -> None:
    """Show rewards that keep a log (those with `open_log`) where the run keeps its files."""
    for item in (*run.rewards, *run.measured):
        open_log = getattr(item.reward, "open_log", None)
        if callable(open_log):
            open_log(run.folder)


class _Session:
    """A run under way: the chain, and how far it has come."""

    def __init__(self, run: Run, position: Position, rollout_lora: dict[str, Tensor]) -> None:
        self.run, self.config, self.position = run, run.config, position
        self._rollout_lora = rollout_lora  # the weights that the epoch began with
        self._metrics = JsonLines(run.folder / "metrics.jsonl", position.metrics_bytes)
        self._timings = JsonLines(run.folder / "timings.jsonl", position.timings_bytes)

    def train(self) -> Stopped | None:
        """All epochs that remain."""
        for epoch in range(self.position.epoch, self.config.epochs):
            clock = Clock()
            data = collect(self.run, epoch, self.position.statistics, self._rollout_lora, clock)
            gain = self._gain(epoch, data.final)
            if not self.position.window and 0 < self.config.stop_at_gain <= gain:
                return Stopped(epoch, gain)
            if self.position.update == 0:
                self._warm_up(data)
                clock.lap("warm_up")
            self._update(data)
            clock.lap("update")
            self._end_epoch(data, gain, clock)
        return None

    def save(self) -> Path:
        """Write a checkpoint, unless there is one of this position."""
        here = replace(
            self.position,
            metrics_bytes=self._metrics.length,
            timings_bytes=self._timings.length,
        )
        folder, keep = self.run.folder / "checkpoints", self.config.checkpoint.keep
        return checkpoints.save(folder, self.run.learner, here, self._rollout_lora, keep)

    def _gain(self, epoch: int, rewards: Tensor) -> float:
        """Of the mean reward over that of the first epoch, in its deviations.

        "First" is the first whose rewards are weighed as all later ones are; 0 until then.
        """
        if epoch < max(item.normalise_epochs for item in self.run.rewards) - 1:
            return 0.0
        mean, deviation = self.position.gain_baseline or moments(rewards)
        self.position = replace(self.position, gain_baseline=(mean, deviation))
        return (float(rewards.mean()) - mean) / deviation if deviation > SMALLEST else 0.0

    def _warm_up(self, data: Epoch) -> None:
        """Train the objective's own parameters alone, at the first beta above zero."""
        config, done = self.config, self.position.warm_up
        count = config.update.flow_warmup if self.run.learner.objective_parameters else 0
        windows = cut(config, 0, self.run.path.steps)
        beta = config.beta(0) or config.beta(1)
        self.run.watcher.phase("warm-up", count - done, 1)
        for k in range(done, count):
            self.run.stop_if_asked()
            window = self._window(data, windows[k % len(windows)], beta)
            numbers = warm_up(self.run.learner, window)
            self.position = replace(self.position, warm_up=k + 1)
            self._metrics.write({"warm_up": k + 1, **numbers})
            self.run.watcher.advance(1)

    def _update(self, data: Epoch) -> None:
        """The epoch's optimizer steps."""
        windows = cut(self.config, self.position.epoch, self.run.path.steps)
        done = self.position.window
        self.run.watcher.phase("update", len(windows) - done, self.position.epoch + 1)
        for rows in windows[done:]:
            self.run.stop_if_asked()
            beta = self.config.beta(self.position.update)
            numbers = update(self.run.learner, self._window(data, rows, beta))
            window, count = self.position.window + 1, self.position.update + 1
            self.position = replace(self.position, window=window, update=count)
            record = {"epoch": self.position.epoch + 1, "update": count, "beta": beta}
            self._metrics.write({**record, **numbers})
            self.run.watcher.show(numbers)
            self.run.watcher.advance(1)

    def _window(self, data: Epoch, rows: Tensor, beta: float) -> Window:
        run, final_beta = self.run, self.config.objective.beta
        window = Window(data.trajectories, data.potentials, run.path, rows, beta, final_beta)
        if run.learner.objective.needs.potentials and run.config.rollout.potential == "current":
            values = current_potentials(run.learner, window, data.rewards)
            window = replace(window, potentials=values)
        return window

    def _end_epoch(self, data: Epoch, gain: float, clock: Clock) -> None:
        """Log, draw and save."""
        epoch, config = self.position.epoch + 1, self.config
        self.position = replace(self.position, epoch=epoch, window=0, statistics=data.statistics)
        self._rollout_lora = self.run.policy.lora_state()
        numbers = mean_and_deviation("reward", data.final, "_")
        numbers |= summary(data.rewards, data.raw, config.beta(self.position.update - 1))
        for item, values in zip(self.run.measured, data.measured, strict=True):
            numbers |= mean_and_deviation(f"eval_rewards.{item.label}", values)
        self._metrics.write({"epoch": epoch, **numbers, "gain": gain})
        if config.evaluate.grid:
            _draw_grid(self.run, epoch)
            clock.lap("grid")
        self._timings.write({"epoch": epoch, **clock.laps})
        if epoch % config.checkpoint.every == 0 or epoch == config.epochs:
            self.save()
        self.run.watcher.epoch_done(epoch, config.epochs)


def _draw_grid(run: Run, epoch: int) -> None:
    """The same prompts and noise every time, so that what changes is the model."""
    prompts = cycle(run.heldout, run.config.evaluate.grid)
    run.watcher.phase("grid", len(prompts) * run.path.steps, max(epoch, 1))
    size = run.config.rollout.batch_size
    images = sample(
        run.policy, run.path, prompts, run.config.seed, size, progress=run.watcher.advance
    )
    picture = pictures.grid(images, columns=8, captions=[prompt.text for prompt in prompts])
    pictures.save(picture, run.folder / "samples" / f"epoch-{epoch:04d}.png")


def _evaluate(run: Run, rewards: Sequence[WeightedReward]) -> Comparison | None:
    """Base against trained on held-out seeds, and a picture of the first of them."""
    count = run.config.evaluate.images
    if not count:
        return None
    prompts = cycle(run.heldout, count)
    run.watcher.phase("evaluate", 2 * count * run.path.steps, run.config.epochs)
    comparison = compare(
        run.policy,
        run.path,
        prompts,
        rewards,
        run.measured,
        run.config.seed,
        run.config.rollout.batch_size,
        run.advance,
    )
    shown = min(count, 12)
    picture = pictures.before_after(
        comparison.base_images[:shown],
        comparison.images[:shown],
        [prompt.text for prompt in prompts[:shown]],
    )
    pictures.save(picture, run.folder / "samples" / "before-after.png")
    return comparison
