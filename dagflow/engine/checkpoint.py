"""Save and restore everything that a run needs to go on, without pickles."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dagflow import __version__
from dagflow.engine.learner import Learner
from dagflow.engine.levels import Levels
from dagflow.engine.normalise import Statistics
from dagflow.errors import NotSaved, UserError

STATE = "state.json"
TENSORS = "training_state.safetensors"


@dataclass(frozen=True)
class Position:
    """How far a run has come. Noise and prompts follow from it, so no generator is saved."""

    epoch: int = 0  # whole epochs done
    window: int = 0  # optimizer steps done in the epoch after those
    warm_up: int = 0  # steps of the flow warm-up done
    update: int = 0  # optimizer steps done in all; decides beta
    reward_calls: int = 0  # images that the rewards were asked about, in whole epochs
    gain_baseline: tuple[float, float] | None = None  # mean and deviation of the reward
    levels: Levels | None = None  # of log F and log Z, from the first epoch
    beta: float | None = None  # found from the first epoch, where it was to be found
    metrics_bytes: int = 0  # length of metrics.jsonl
    timings_bytes: int = 0  # length of timings.jsonl
    statistics: Mapping[str, Statistics] = field(default_factory=dict)  # of rewards, before `epoch`
    version: str = field(default=__version__)  # of dagflow

    @property
    def name(self) -> str:
        """Sorts in the order of time: epoch-0000-flow-0007, epoch-0000-update-0003, epoch-0001."""
        name = f"epoch-{self.epoch:04d}"
        if self.window:
            return f"{name}-update-{self.window:04d}"
        return f"{name}-flow-{self.warm_up:04d}" if self.warm_up and not self.update else name


def save(
    folder: Path,
    learner: Learner,
    position: Position,
    rollout_weights: Mapping[str, Tensor],
    replay: Mapping[str, Tensor],
    keep: int,
) -> Path:
    """Write `folder/epoch-NNNN[-update-MMMM]` atomically, then drop all but the newest `keep`.

    Within an epoch the weights that sampled its trajectories are kept too: a resumed run samples
    them again, rather than storing them. `replay` is the buffer as it was before the epoch. Raises
    NotSaved if the disk is full or cannot be written.
    """
    target = folder / position.name
    partial = folder / f".{target.name}.partial"
    if not target.exists():
        try:
            _write(partial, learner, position, rollout_weights, replay)
            partial.rename(target)
            _sync(folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise NotSaved(f"the checkpoint {target} cannot be written: {error}") from error
    for old in checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def _write(
    partial: Path,
    learner: Learner,
    position: Position,
    rollout_weights: Mapping[str, Tensor],
    replay: Mapping[str, Tensor],
) -> None:
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    learner.policy.save_weights(partial)
    tensors = _tensors(learner) | {f"replay.{name}": tensor for name, tensor in replay.items()}
    if position.window:
        tensors |= {f"rollout.{name}": tensor for name, tensor in rollout_weights.items()}
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, partial / TENSORS)
    (partial / STATE).write_text(json.dumps(asdict(position), indent=1), encoding="utf-8")
    for path in [*partial.iterdir(), partial]:
        _sync(path)


def checkpoints(folder: Path) -> list[Path]:
    """All complete checkpoints, oldest first."""
    return sorted(path.parent for path in folder.glob(f"epoch-*/{STATE}"))


@dataclass(frozen=True)
class Restored:
    """What a checkpoint says beside the learner's state."""

    position: Position
    rollout_weights: dict[str, Tensor]
    replay: dict[str, Tensor]


def restore(checkpoint: Path, learner: Learner) -> Restored:
    """Load a checkpoint into the learner.

    Raises UserError if the files are damaged or belong to another configuration.
    """
    try:
        position = _position(json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
        tensors = load_file(checkpoint / TENSORS)
        current = learner.policy.read_weights(checkpoint)
        _load_module(learner.objective, _part(tensors, "objective."))
        _load_optimizer(learner.optimizer, _part(tensors, "optimizer."))
        learner.policy.set_weights(current)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"the checkpoint {checkpoint} cannot be restored: {error}") from error
    return Restored(position, _part(tensors, "rollout.") or current, _part(tensors, "replay."))


def _position(saved: dict[str, Any]) -> Position:
    statistics = saved.pop("statistics", {})
    read = {label: Statistics(*numbers) for label, numbers in statistics.items()}
    baseline, levels = saved.pop("gain_baseline", None), saved.pop("levels", None)
    return Position(
        **saved,
        statistics=read,
        gain_baseline=tuple(baseline) if baseline else None,
        levels=Levels(**{name: tuple(values) for name, values in levels.items()})
        if levels
        else None,
    )


def _tensors(learner: Learner) -> dict[str, Tensor]:
    tensors = {}
    if isinstance(learner.objective, nn.Module):
        for name, tensor in learner.objective.state_dict().items():
            tensors[f"objective.{name}"] = tensor
    for index, values in learner.optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"optimizer.{index}.{name}"] = value
    return tensors


def _load_module(module: object, state: dict[str, Tensor]) -> None:
    if isinstance(module, nn.Module):
        module.load_state_dict(state)


def _load_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Tensor]) -> None:
    values: dict[int, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        index, name = key.split(".")
        values.setdefault(int(index), {})[name] = tensor
    optimizer.load_state_dict({**optimizer.state_dict(), "state": values})


def _part(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
