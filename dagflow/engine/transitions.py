"""Cut an epoch's trajectories into the windows of its optimizer steps."""

from __future__ import annotations

import torch
from torch import Tensor

from dagflow.config import Config
from dagflow.diffusion.noise import Stream, generator
from dagflow.types import Needs


def shares(windows: list[Tensor], size: int, sampled: int | None = None) -> list[list[int]]:
    """Which trajectories each of `size` processes has, in the order of their numbers.

    They are dealt out in the order in which windows use them, so that all processes have equally
    many in each window, +- 1, unless transitions are shuffled. Those below `sampled` come first, so
    that all have some to sample.
    """
    met = list(dict.fromkeys(torch.cat(windows)[:, 0].tolist()))
    if sampled is not None:
        met.sort(key=lambda number: number >= sampled)
    return [sorted(met[rank::size]) for rank in range(size)]


def cut(config: Config, epoch: int, steps: int, needs: Needs) -> list[Tensor]:
    """One window of transitions for each optimizer step, (M, 2) int64: trajectory, step.

    Trajectories are shuffled, and those drawn together for one prompt stay together. Each gives a
    stretch of timestep_fraction of its T = `steps` steps. The stretch begins anywhere and wraps
    around from the last step to the first, so that every step counts equally. Most states of a
    window then end one of its transitions and begin the next. If states are not evaluated by
    themselves (no log F), the transitions are shuffled, and every window has most trajectories.
    Windows have equal sizes, +- 1, no smaller than `update.batch_size` unless the epoch is.

    With `needs.trajectories` all steps count, and no window splits a trajectory or a group. There
    are as many windows as batches fit into all transitions, or as groups if those are fewer.
    """
    source = generator(Stream.TRANSITIONS, config.seed, epoch)
    together = config.rollout.images_per_prompt
    groups = torch.randperm(config.rollout.samples_per_epoch // together, generator=source)
    trajectories = (groups[:, None] * together + torch.arange(together)).flatten()
    count = steps if needs.trajectories else min(config.steps_per_trajectory, steps)
    begins = torch.randint(steps, (len(trajectories), 1), generator=source)
    stretches = ((begins + torch.arange(count)) % steps).sort(1).values
    rows = torch.stack([trajectories[:, None].expand_as(stretches), stretches], 2)
    if not needs.trajectories:
        flat = rows.flatten(0, 1)
        if not needs.log_flow:
            flat = flat[torch.randperm(len(flat), generator=source)]
        return list(flat.tensor_split(max(1, len(flat) // config.update.batch_size)))
    updates = max(1, min(len(groups), len(trajectories) * steps // config.update.batch_size))
    parts = rows.unflatten(0, (len(groups), together)).tensor_split(updates)
    return [part.flatten(0, 2) for part in parts]
