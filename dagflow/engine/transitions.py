"""Cut an epoch's trajectories into the batches of its optimizer steps."""

from __future__ import annotations

import torch
from torch import Tensor

from dagflow.config import Config
from dagflow.diffusion.noise import Stream, generator


def cut(config: Config, epoch: int, steps: int) -> list[Tensor]:
    """One window of transitions for each optimizer step, (M, 2) int64: trajectory, step.

    From each trajectory of T = `steps` steps, timestep_fraction of them are drawn; the whole is
    shuffled and split evenly into at most `updates_per_epoch` windows.
    """
    source = generator(Stream.TRANSITIONS, config.seed, epoch)
    count = min(config.steps_per_trajectory, steps)
    chosen = [
        torch.stack([torch.full((count,), b), torch.randperm(steps, generator=source)[:count]], 1)
        for b in range(config.rollout.samples_per_epoch)
    ]
    transitions = torch.cat(chosen)
    order = torch.randperm(len(transitions), generator=source)
    return list(transitions[order].tensor_split(config.updates_per_epoch))


def cut_whole(config: Config, epoch: int, steps: int) -> list[Tensor]:
    """The same for objectives on whole trajectories: all steps of one after those of another.

    All steps count, whatever timestep_fraction. Trajectories of one prompt that were drawn together
    stay together.
    """
    source = generator(Stream.TRANSITIONS, config.seed, epoch)
    together = config.rollout.images_per_prompt
    groups = config.rollout.samples_per_epoch // together
    order = torch.randperm(groups, generator=source)
    transitions = config.rollout.samples_per_epoch * steps
    count = max(1, min(groups, transitions // config.update.batch_size))
    offsets, every = torch.arange(together), torch.arange(steps)
    return [
        torch.cartesian_prod((window[:, None] * together + offsets).flatten(), every)
        for window in order.tensor_split(count)
    ]
