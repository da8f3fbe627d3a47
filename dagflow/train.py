"""The training run, top to bottom: prompts, rollout, score, cut, update, checkpoint, report."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

import torch
from torch import Tensor

from dagflow import charts, report
from dagflow import config as configuration
from dagflow.collect import Epoch, collect
from dagflow.config import Config
from dagflow.engine import checkpoint as checkpoints
from dagflow.engine import pictures
from dagflow.engine.checkpoint import Position, Restored
from dagflow.engine.learner import set_rates
from dagflow.engine.levels import first_levels, zero_levels
from dagflow.engine.metrics import Clock, JsonLines
from dagflow.engine.normalise import SMALLEST, mean_and_deviation, moments, normalised, summary
from dagflow.engine.potentials import CurrentPotentials
from dagflow.engine.replay import Buffer
from dagflow.engine.temperature import (
    base_log_weights,
    beta_for_divergence,
    log_weights,
    temperature,
)
from dagflow.engine.transitions import cut
from dagflow.engine.update import update, warm_up
from dagflow.engine.window import Window
from dagflow.errors import NotSaved, RunError, UserError
from dagflow.evaluate import Comparison, Sampler, compare, cycle
from dagflow.prepare import Run
from dagflow.recipe import read_recipe
from dagflow.truth import Truth, against_truth
from dagflow.worlds.rewards import Density, Ratio


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
    truth: Truth | None = None
    beta: float = 0.0  # the final one; on the scale of the configuration
    stopped: Stopped | None = None


def start(run: Run) -> Outcome:
    """Begin in a directory that does not exist or is empty, and train to the end."""
    require_free(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    write_config(run.config, run.folder)
    if run.config.evaluate.grid:
        _draw_grid(run, epoch=0)
    with closing(run):
        return _train(run, Restored(Position(), run.policy.weights(), {}))


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
    restored = Restored(Position(), run.policy.weights(), {})
    if found:
        restored = checkpoints.restore(found[-1], run.learner)
    if (restored.position.epoch, restored.position.window) > (run.config.epochs, 0):
        raise UserError(f"the run is past epochs = {run.config.epochs} already.")
    write_config(run.config, run.folder)
    with closing(run):
        return _train(run, restored)


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


def _train(run: Run, restored: Restored) -> Outcome:
    _open_logs(run)
    session = _Session(run, restored)
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
    comparison, truth = None, None
    if run.config.evaluate.images:
        comparison, truth = _evaluate(run, session)
    return Outcome(checkpoint, comparison, truth, session.config.final_beta, stopped)


def _open_logs(run: Run) -> None:
    """Show rewards that keep a log (those with `open_log`) where the run keeps its files."""
    for item in (*run.rewards, *run.measured):
        open_log = getattr(item.reward, "open_log", None)
        if callable(open_log):
            open_log(run.folder)


class _Session:
    """A run under way: the chain, and how far it has come."""

    def __init__(self, run: Run, restored: Restored) -> None:
        self.run, self.config, self.position = run, run.config, restored.position
        position, replay = restored.position, run.config.replay
        if position.beta is not None:
            self.config = run.config.with_beta(position.beta)
        self._rollout_weights = restored.rollout_weights  # that the epoch began with
        empty = Buffer(replay.capacity, replay.per_prompt)
        self._buffer = empty.restored(restored.replay, run.prompts)  # before the epoch
        self._metrics = JsonLines(run.folder / "metrics.jsonl", position.metrics_bytes)
        self._timings = JsonLines(run.folder / "timings.jsonl", position.timings_bytes)

    def train(self) -> Stopped | None:
        """All epochs that remain."""
        for epoch in range(self.position.epoch, self.config.epochs):
            clock = Clock()
            before = self.position.statistics
            data = collect(self.run, epoch, before, self._rollout_weights, self._buffer, clock)
            self._find_beta(data)
            gain = self._gain(epoch, data.final)
            if not self.position.window and 0 < self.config.stop_at_gain <= gain:
                return Stopped(epoch, gain)
            if self.position.update == 0:
                begin = self._with_all_potentials(data)
                self._find_levels(begin)
                self._warm_up(begin)
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
        replay = self._buffer.tensors(self.run.prompts)
        return checkpoints.save(folder, self.run.learner, here, self._rollout_weights, replay, keep)

    def _find_beta(self, data: Epoch) -> None:
        """From the base model's images, where beta is a divergence to be kept from it."""
        divergence = self.config.objective.divergence
        if divergence is None:
            return
        beta = beta_for_divergence(data.final, data.sampled.prompts, divergence)
        if self.run.learner.density == "mean":
            beta /= self._values
        self.position = replace(self.position, beta=beta)
        self.config = self.config.with_beta(beta)

    def _find_levels(self, data: Epoch) -> None:
        """Of log F and log Z, from the base model's trajectories."""
        needs, sampled = self.run.learner.objective.needs, data.sampled
        learned = needs.log_flow or needs.log_z
        if self.position.levels or not learned or not self.config.update.flow_from_data:
            return
        potentials = data.potentials[: len(sampled.prompts)]
        levels = first_levels(self.run.learner, self.run.path, sampled, potentials)
        self.position = replace(self.position, levels=levels)

    def _with_all_potentials(self, data: Epoch) -> Epoch:
        """The same with those of the current network, which is the one that sampled.

        For the levels and the warm-up; where there is neither any more, as it is.
        """
        update, position = self.config.update, self.position
        found = position.levels or not update.flow_from_data
        if found and position.warm_up >= update.flow_warmup:
            return data
        count, steps = data.trajectories.log_pf.shape
        values = data.potentials.clone()
        parts = torch.arange(count).split(self.config.rollout.batch_size)
        for part in parts:
            rows = torch.cartesian_prod(part, torch.arange(steps))
            device = self.run.policy.device
            current = self._current(data, self._window(data, rows, beta=0.0).on(device))
            if not current:
                return data
            if part is parts[0]:
                self.run.watcher.phase("previews", count, 1)
            current.complete(current.window)
            values[part] = current.window.potentials
            self.run.advance(len(part))
        return replace(data, potentials=values)

    @property
    def beta_in_nats(self) -> float:
        """The final beta on the scale of summed log-densities."""
        return self.config.final_beta * (self._values if self.run.learner.density == "mean" else 1)

    @property
    def _values(self) -> int:
        """D."""
        return prod(self.run.policy.latent_shape)

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
        windows = self._windows(0)
        beta = config.beta(0, len(windows)) or config.beta(1, len(windows))
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
        windows = self._windows(self.position.epoch)
        done = self.position.window
        self.run.watcher.phase("update", len(windows) - done, self.position.epoch + 1)
        for rows in windows[done:]:
            self.run.stop_if_asked()
            beta = self.config.beta(self.position.update, len(windows))
            set_rates(self.run.learner, self.config.rate(self.position.update, len(windows)))
            chosen = self._window(data, rows, beta)
            numbers = update(self.run.learner, self._current(data, chosen) or chosen)
            window, count = self.position.window + 1, self.position.update + 1
            self.position = replace(self.position, window=window, update=count)
            record = {"epoch": self.position.epoch + 1, "update": count, "beta": beta}
            self._metrics.write({**record, **numbers})
            self.run.watcher.show(numbers)
            self.run.watcher.advance(1)

    def _temperature(self, data: Epoch) -> dict[str, float]:
        """How near the trajectories that were sampled are to the promise of the final beta."""
        sampled, density = data.sampled, self.run.learner.density
        weights = (
            base_log_weights(sampled, density)
            if self.run.learner.keeps_base
            else log_weights(sampled, self.run.path, density)
        )
        found = temperature(weights, data.final, sampled.prompts, self.beta_in_nats)
        return {f"temperature.{name}": value for name, value in found.items()}

    def _windows(self, epoch: int) -> list[Tensor]:
        return cut(self.config, epoch, self.run.path.steps, self.run.learner.objective.needs)

    def _window(self, data: Epoch, rows: Tensor, beta: float) -> Window:
        run, final_beta = self.run, self.config.final_beta
        levels = self.position.levels or zero_levels(run.path.steps)
        window = Window(
            data.trajectories, data.potentials, run.path, rows, beta, final_beta, levels
        )
        return window.on(run.policy.device) if self.config.machine.offload else window

    def _current(self, data: Epoch, window: Window) -> CurrentPotentials | None:
        """Potentials of the current network, to be filled in, where the run wants those."""
        if self.config.rollout.potential != "current" or not self.run.potential_states:
            return None
        states = self.run.potential_states
        return CurrentPotentials(self.run.learner, window, data.rewards, states)

    def _end_epoch(self, data: Epoch, gain: float, clock: Clock) -> None:
        """Log, draw and save."""
        epoch, config = self.position.epoch + 1, self.config
        self.position = replace(
            self.position,
            epoch=epoch,
            window=0,
            statistics=data.statistics,
            reward_calls=self.position.reward_calls + data.reward_calls,
        )
        self._rollout_weights = self.run.policy.weights()
        if config.replay.share or (config.replay.backward and not self.run.given):
            self._buffer = self._buffer.with_more(data.sampled, data.final)
        numbers = mean_and_deviation("reward", data.final, "_")
        beta = config.beta(self.position.update - 1, len(self._windows(0)))
        numbers |= summary(data.rewards, data.raw, beta)
        for item, values in zip(self.run.measured, data.measured, strict=True):
            numbers |= mean_and_deviation(f"eval_rewards.{item.label}", values)
        numbers |= self._temperature(data)
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
    sampler = Sampler(run.policy, run.path, size, run.config.seed, progress=run.watcher.advance)
    images = sampler.images(prompts)
    picture = pictures.grid(images, columns=8, captions=[prompt.text for prompt in prompts])
    pictures.save(picture, run.folder / "samples" / f"epoch-{epoch:04d}.png")


def _evaluate(run: Run, session: _Session) -> tuple[Comparison, Truth | None]:
    """Base against trained on held-out seeds; a picture of the first of them, and a report."""
    config, count = session.config, session.config.evaluate.images
    prompts = cycle(run.heldout, count)
    run.watcher.phase("evaluate", 2 * count * run.path.steps, config.epochs)
    sampler = Sampler(
        run.policy, run.path, config.rollout.batch_size, config.seed, progress=run.advance
    )
    comparison = compare(
        sampler,
        prompts,
        normalised(run.rewards, session.position.statistics),
        run.measured,
        session.beta_in_nats,
        run.learner.keeps_base,
    )
    truth = against_truth(sampler, comparison) if _aims_at_the_truth(run, session) else None
    _draw_comparison(run, comparison)
    if truth:
        charts.save(charts.truth_chart(truth), run.folder / "samples" / "truth.png")
    numbers = report.report(config, comparison, truth, session.position.reward_calls)
    report.write(numbers, run.folder / "report.json")
    return comparison, truth


def _aims_at_the_truth(run: Run, session: _Session) -> bool:
    """Whether reward, beta and prior make a world's own target the one of this run."""
    due = Ratio if run.learner.keeps_base else Density
    exact = len(run.rewards) == 1 and type(run.rewards[0].reward) is due
    return exact and run.rewards[0].weight == session.beta_in_nats == 1


def _draw_comparison(run: Run, comparison: Comparison) -> None:
    shown = min(len(comparison.prompts), 12)
    picture = pictures.before_after(
        comparison.base_images[:shown],
        comparison.images[:shown],
        [prompt.text for prompt in comparison.prompts[:shown]],
    )
    pictures.save(picture, run.folder / "samples" / "before-after.png")
