"""Save and restore everything that a run needs to resume, without pickles.

A checkpoint is a folder that appears complete, by one rename, with the checksums of its files.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
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
from dagflow.policies.policy import Policy

STATE = "state.json"
TENSORS = "training_state.safetensors"
SUMS = "SHA256SUMS"  # in the format of sha256sum -c
FORMAT = 3  # of state.json; 1 had no checksums, 2 did not record the prompts
NAME = re.compile(r"epoch-(\d+)(?:-(flow|update)-(\d+))?")
LATEST, BEST = "latest", "best"  # links to checkpoints


@dataclass(frozen=True)
class Position:
    """A run's position. It determines noise and prompts, so no generator is saved."""

    epoch: int = 0  # whole epochs done
    window: int = 0  # optimizer steps done in the epoch after those
    warm_up: int = 0  # steps of the flow warm-up done
    update: int = 0  # optimizer steps done in total; determines beta
    skipped: int = 0  # consecutive steps not taken because something was not finite
    reward_calls: int = 0  # images that rewards scored: in whole epochs, and in updates
    best_gain: float | None = None  # of the images that the best checkpoint samples
    gain_baseline: tuple[float, float] | None = None  # mean and deviation of the reward
    levels: Levels | None = None  # of log F and log Z, from the first epoch
    beta: float | None = None  # found from the first epoch, if it was given as a divergence
    metrics_bytes: int = 0  # length of metrics.jsonl
    timings_bytes: int = 0  # length of timings.jsonl
    statistics: Mapping[str, Statistics] = field(default_factory=dict)  # of rewards, before `epoch`
    prompts: str = ""  # a digest of the training prompts, see `engine.prompts.digest`
    version: str = field(default=__version__)  # of dagflow
    format: int = FORMAT

    @property
    def is_beginning(self) -> bool:
        """Whether nothing has been done yet."""
        return replace(self, prompts="") == Position()

    @property
    def name(self) -> str:
        """Names sort by time: epoch-0000-flow-0007, epoch-0000-update-0003, epoch-0001."""
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
    """Write the folder of `position` atomically, then delete all but the newest `keep`.

    `folder/latest` then points to it; the target of `folder/best` is never deleted.

    Within an epoch the weights that sampled its trajectories are saved too: a resumed run samples
    the trajectories again instead of storing them. `replay` is the buffer from before the epoch.
    Raises NotSaved if the disk is full or not writable.
    """
    target = folder / position.name
    partial = folder / f".{target.name}.partial"
    if not (target / STATE).exists():
        try:
            shutil.rmtree(target, ignore_errors=True)  # remains of one that lost its files
            _write(partial, learner, position, rollout_weights, replay)
            partial.rename(target)
            _sync(folder)
            point(folder / LATEST, target)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise NotSaved(f"the checkpoint {target} cannot be written: {error}") from error
    best = folder / BEST
    for old in checkpoints(folder)[:-keep]:
        if not (best.is_symlink() and best.resolve() == old.resolve()):
            _drop(old)
    return target


def point(link: Path, target: Path) -> None:
    """Make `link` point to its neighbour `target`, atomically.

    On a file system without links there is none; nothing depends on it.
    """
    if link.is_dir() and not link.is_symlink():
        return  # the run was copied with links followed
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    try:
        partial.symlink_to(target.name)
    except OSError:
        return
    partial.replace(link)


def _drop(checkpoint: Path) -> None:
    """Delete a checkpoint, hidden first so that a half-deleted one is never taken for a whole."""
    hidden = checkpoint.with_name(f".{checkpoint.name}.dropped")
    shutil.rmtree(hidden, ignore_errors=True)
    checkpoint.rename(hidden)
    shutil.rmtree(hidden)


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
    (partial / SUMS).write_text(_sums(partial), encoding="utf-8")
    for path in [*partial.iterdir(), partial]:
        _sync(path)


def checkpoints(folder: Path) -> list[Path]:
    """All complete checkpoints, oldest first."""
    return [path for path in folders(folder) if (path / STATE).is_file()]


def folders(folder: Path) -> list[Path]:
    """All complete checkpoints and the remains of others, oldest first."""
    found = (path for path in folder.glob("epoch-*") if NAME.fullmatch(path.name))
    return sorted((path for path in found if path.is_dir()), key=moment)


def moment(checkpoint: Path) -> tuple[int, str, int]:
    """A key that sorts checkpoints by time, however many digits their numbers have."""
    found = NAME.fullmatch(checkpoint.name)
    assert found
    return int(found[1]), found[2] or "", int(found[3] or 0)


def same(link: Path, found: Sequence[Path]) -> list[Path]:
    """The checkpoints in `found` with the same state as the one that `link` points to or copies."""
    due = link / STATE
    both = (path for path in found if due.is_file() and (path / STATE).is_file())
    return [path for path in both if (path / STATE).read_bytes() == due.read_bytes()]


def sweep(folder: Path) -> None:
    """Remove what a killed run had begun to write or to delete."""
    for name in (".epoch-*.partial", ".epoch-*.dropped"):
        for path in folder.glob(name):
            shutil.rmtree(path, ignore_errors=True)


def _sums(checkpoint: Path) -> str:
    """The SHA-256 of each file except this list itself."""
    files = sorted(path for path in checkpoint.iterdir() if path.name != SUMS)
    return "".join(f"{_digest(path)}  {path.name}\n" for path in files)


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(checkpoint: Path) -> str | None:
    """What is wrong with the files of a checkpoint, naming one; None if nothing is.

    For one without checksums, from an older dagflow, no damage can be found.
    """
    if not (checkpoint / SUMS).exists() and _older(checkpoint):
        return None
    sums = checkpoint / SUMS
    try:
        listed = sums.read_bytes().decode("utf-8", "replace")
        names = [line[66:] for line in listed.splitlines()]
        due = {STATE, *(path.name for path in checkpoint.glob("*.safetensors"))}
        if unlisted := sorted(due - set(names)):
            return f"{sums} does not list {unlisted[0]}"
        lines = {name: f"{_digest(checkpoint / name)}  {name}\n" for name in names}
    except (OSError, ValueError) as error:
        return f"{sums}: {error}"
    changed = [name for name, line in lines.items() if line not in listed]
    if changed:
        return f"{checkpoint / changed[0]} is not what was written"
    return None if "".join(lines.values()) == listed else f"{sums} is not what was written"


def _older(checkpoint: Path) -> bool:
    try:
        state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        return isinstance(state, dict) and "format" not in state
    except (OSError, ValueError):
        return False


def set_aside(folder: Path, chosen: Path) -> list[str]:
    """Rename checkpoints newer than the one that a run resumes from; returns their names."""
    point(folder / LATEST, chosen)
    newer = [path for path in folders(folder) if moment(path) > moment(chosen)]
    for path in newer:
        aside = path.with_name(f"aside-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
    if (folder / BEST).is_symlink() and not (folder / BEST).exists():
        (folder / BEST).unlink()
    return [path.name for path in newer]


@dataclass(frozen=True)
class Saved:
    """The contents of a checkpoint."""

    place: Path
    position: Position
    tensors: dict[str, Tensor]
    weights: dict[str, Tensor]  # of the policy


@dataclass(frozen=True)
class Restored:
    """What a checkpoint holds besides the learner's state."""

    position: Position
    rollout_weights: dict[str, Tensor]
    replay: dict[str, Tensor]


def read(checkpoint: Path, policy: Policy) -> Saved:
    """Read a checkpoint whose files are known to be intact.

    Raises UserError if it is in a format that this dagflow does not know, or cannot be read.
    """
    try:
        position = _position(json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
        tensors = load_file(checkpoint / TENSORS)
        weights = policy.read_weights(checkpoint)
    except (OSError, SafetensorError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"the checkpoint {checkpoint} cannot be restored: {error}") from error
    return Saved(checkpoint, position, tensors, weights)


def restore(saved: Saved, learner: Learner) -> Restored:
    """Load a checkpoint into the learner. Raises UserError if it is from another configuration."""
    tensors = saved.tensors
    try:
        _load_module(learner.objective, _part(tensors, "objective."))
        _load_optimizer(learner.optimizer, _part(tensors, "optimizer."))
        learner.policy.set_weights(saved.weights)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise UserError(f"the checkpoint {saved.place} cannot be restored: {error}") from error
    rollout = _part(tensors, "rollout.") or saved.weights
    return Restored(saved.position, rollout, _part(tensors, "replay."))


def _position(saved: dict[str, Any]) -> Position:
    known, writer = saved.pop("format", 1), saved.get("version", "an unknown version")
    if known > FORMAT:
        raise ValueError(
            f"dagflow {writer} wrote it in format {known}, and dagflow {__version__} reads "
            f"up to {FORMAT}: resume with dagflow {writer}"
        )
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
