"""The training run, top to bottom: prompts, rollout, score, cut, update, checkpoint, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from dagflow import config as configuration
from dagflow.config import Config
from dagflow.diffusion.noise import Stream, trajectory_noise
from dagflow.engine import checkpoint as checkpoints
from dagflow.engine import pictures
from dagflow.engine.checkpoint import Position
from dagflow.engine.metrics import JsonLines
from dagflow.engine.normalise import learn, mean_and_deviation, normalised, summary
from dagflow.engine.prompts import draw_prompts
from dagflow.engine.rollout import concatenate, rollout, split
from dagflow.engine.scoring import WeightedReward, potentials, raw_scores, total
from dagflow.engine.transitions import cut
from dagflow.engine.update import (
    Window,
    current_potentials,
    update,
    warm_up,
)
from dagflow.errors import NotSaved, RunError, UserError
from dagflow.evaluate import Comparison, compare, cycle, sample
from dagflow.prepare import Run
from dagflow.types import Trajectories


class Interrupted(Exception):
    """The user asked the run to stop; everything is saved."""


@dataclass(frozen=True)
class Outcome:
    """What a finished run leaves behind."""

    checkpoint: Path
    comparison: Comparison | None


def start(run: Run) -> Outcome:
    """Begin in a directory that does not exist or is empty, and train to the end."""
    require_free(run.folder)
    run.folder.mkdir(parents=True, exist_ok=True)
    write_config(run.config, run.folder)
    if run.config.evaluate.grid:
        _draw_grid(run, epoch=0)
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
    return _train(run, position, rollout_lora)


def read_config(folder: Path) -> Config:
    """The configuration of an existing run. Raises UserError if the folder is no run."""
    file = folder / "config.toml"
    if not file.is_file():
        raise UserError(f"'{folder}' is not a run directory: it has no config.toml.")
    tree = configuration.read_recipe(str(file))
    return configuration.resolve({**tree, "output": str(folder)})


def write_config(config: Config, folder: Path) -> None:
    partial = folder / ".config.toml.partial"
    partial.write_text(configuration.dump(config), encoding="utf-8")
    partial.rename(folder / "config.toml")


def _train(run: Run, position: Position, rollout_lora: dict[str, Tensor]) -> Outcome:
    config = run.config
    _open_logs(run)
    metrics = JsonLines(run.folder / "metrics.jsonl", position.metrics_bytes)
    timings = JsonLines(run.folder / "timings.jsonl", position.timings_bytes)

    def save() -> Path:
        here = replace(position, metrics_bytes=metrics.length, timings_bytes=timings.length)
        folder = run.folder / "checkpoints"
        return checkpoints.save(folder, run.learner, here, rollout_lora, config.checkpoint.keep)

    try:
        for epoch in range(position.epoch, config.epochs):
            clock = Clock()
            trajectories = _collect(run, epoch, position, rollout_lora)
            clock.lap("rollout")
            raw = _raw_scores(run, run.rewards, trajectories)
            statistics = learn(run.rewards, position.statistics, raw, epoch)
            rewards = normalised(run.rewards, statistics)
            values = _score(run, rewards, trajectories, total(rewards, raw), epoch)
            measured = _raw_scores(run, run.measured, trajectories)
            clock.lap("score")
            if position.update == 0:
                for numbers in _warm_up(run, rewards, trajectories, values, position.warm_up):
                    position = replace(position, warm_up=position.warm_up + 1)
                    metrics.write({"warm_up": position.warm_up, **numbers})
                clock.lap("warm_up")

            windows = cut(config, epoch, run.path.steps)
            run.watcher.phase("update", len(windows) - position.window, epoch + 1)
            for rows in windows[position.window :]:
                _stop_if_asked(run)
                beta = config.beta(position.update)
                window = _window(run, rewards, trajectories, values, rows, beta)
                numbers = update(run.learner, window)
                position = replace(position, window=position.window + 1, update=position.update + 1)
                record = {"epoch": epoch + 1, "update": position.update, "beta": beta}
                metrics.write({**record, **numbers})
                run.watcher.show(numbers)
                run.watcher.advance(1)
            clock.lap("update")

            position = replace(position, epoch=epoch + 1, window=0, statistics=statistics)
            rollout_lora = run.policy.lora_state()
            metrics.write(
                {
                    "epoch": epoch + 1,
                    **_reward_summary(values[:, -1]),
                    **summary(rewards, raw, config.beta(position.update - 1)),
                    **_measured_summary(run, measured),
                }
            )
            if config.evaluate.grid:
                _draw_grid(run, epoch + 1)
                clock.lap("grid")
            timings.write({"epoch": epoch + 1, **clock.laps})
            if position.epoch % config.checkpoint.every == 0 or position.epoch == config.epochs:
                save()
            run.watcher.epoch_done(epoch + 1, config.epochs)
    except NotSaved:
        raise
    except torch.OutOfMemoryError as error:
        save()
        raise RunError(
            "the device is out of memory: lower update.microbatch_size and rollout.batch_size"
        ) from error
    except Exception:
        save()
        raise
    return Outcome(save(), _evaluate(run, normalised(run.rewards, position.statistics)))


def _open_logs(run: Run) -> None:
    """Show rewards that keep a log (those with `open_log`) where the run keeps its files."""
    for item in (*run.rewards, *run.measured):
        open_log = getattr(item.reward, "open_log", None)
        if callable(open_log):
            open_log(run.folder)


def _collect(
    run: Run, epoch: int, position: Position, rollout_lora: dict[str, Tensor]
) -> Trajectories:
    """The epoch's trajectories, from the weights that it began with."""
    settings = run.config.rollout
    prompts = draw_prompts(
        run.prompts, run.config.seed, epoch, settings.samples_per_epoch, settings.images_per_prompt
    )
    run.watcher.phase("rollout", len(prompts) * run.path.steps, epoch + 1)
    latest = run.policy.lora_state()
    run.policy.set_lora_state(rollout_lora if position.window else latest)
    parts = []
    try:
        for start in range(0, len(prompts), settings.batch_size):
            batch = prompts[start : start + settings.batch_size]
            noise = trajectory_noise(
                Stream.ROLLOUT,
                run.config.seed,
                epoch,
                range(start, start + len(batch)),
                run.path.steps,
                run.policy.latent_shape,
            )
            density = run.learner.density
            parts.append(rollout(run.policy, run.path, batch, noise, density, _watching(run)))
    finally:
        run.policy.set_lora_state(latest)
    return concatenate(parts)


def _raw_scores(run: Run, rewards: Sequence[WeightedReward], trajectories: Trajectories) -> Tensor:
    """What R rewards say of the epoch's images, (R, B)."""
    raw = []
    for part in split(trajectories, run.config.rollout.batch_size):
        _stop_if_asked(run)
        raw.append(raw_scores(rewards, part.images, part.prompts))
    return torch.cat(raw, 1)


def _score(
    run: Run,
    rewards: Sequence[WeightedReward],
    trajectories: Trajectories,
    final: Tensor,
    epoch: int,
) -> Tensor:
    """Rewards at every state (B, T+1), of which `final` (B,) are known; see `potentials`."""
    kind = run.config.rollout.potential if run.learner.objective.needs.potentials else "none"
    states = trajectories.log_pf.numel()
    run.watcher.phase("score", states if kind == "rollout" else 0, epoch + 1)
    size = run.config.rollout.batch_size
    parts = zip(split(trajectories, size), final.split(size), strict=True)
    values = torch.cat(
        [potentials(run.policy, rewards, *part, kind, _watching(run)) for part in parts]
    )
    run.watcher.show(_reward_summary(values[:, -1]))
    return values


def _warm_up(
    run: Run,
    rewards: Sequence[WeightedReward],
    trajectories: Trajectories,
    values: Tensor,
    done: int,
) -> Iterator[dict[str, float]]:
    """Train the objective's own parameters alone, at the first beta above zero."""
    count = run.config.update.flow_warmup if run.learner.objective_parameters else 0
    windows = cut(run.config, 0, run.path.steps)
    beta = run.config.beta(0) or run.config.beta(1)
    run.watcher.phase("warm-up", count - done, 1)
    for k in range(done, count):
        _stop_if_asked(run)
        rows = windows[k % len(windows)]
        window = _window(run, rewards, trajectories, values, rows, beta)
        yield warm_up(run.learner, window)
        run.watcher.advance(1)


def _window(
    run: Run,
    rewards: Sequence[WeightedReward],
    trajectories: Trajectories,
    values: Tensor,
    rows: Tensor,
    beta: float,
) -> Window:
    window = Window(trajectories, values, run.path, rows, beta, run.config.objective.beta)
    if run.learner.objective.needs.potentials and run.config.rollout.potential == "current":
        values = current_potentials(run.learner, window, rewards)
        window = replace(window, potentials=values)
    return window


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
        _watching(run),
    )
    shown = min(count, 12)
    picture = pictures.before_after(
        comparison.base_images[:shown],
        comparison.images[:shown],
        [prompt.text for prompt in prompts[:shown]],
    )
    pictures.save(picture, run.folder / "samples" / "before-after.png")
    return comparison


def _reward_summary(rewards: Tensor) -> dict[str, float]:
    spread = float(rewards.std()) if len(rewards) > 1 else 0.0
    return {"reward_mean": float(rewards.mean()), "reward_std": spread}


def _measured_summary(run: Run, measured: Tensor) -> dict[str, float]:
    numbers: dict[str, float] = {}
    for item, values in zip(run.measured, measured, strict=True):
        numbers |= mean_and_deviation(f"eval_rewards.{item.label}", values)
    return numbers


def _watching(run: Run) -> Callable[[int], None]:
    def progress(units: int) -> None:
        run.watcher.advance(units)
        _stop_if_asked(run)

    return progress


def _stop_if_asked(run: Run) -> None:
    if run.stop_asked():
        raise Interrupted


class Clock:
    """Seconds spent in each stage."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[f"{name}_seconds"] = round(now - self._last, 3)
        self._last = now
