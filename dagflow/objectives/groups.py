"""Statistics over the trajectories of one prompt."""

from __future__ import annotations

import torch
from torch import Tensor

from dagflow import Transitions

SMALLEST = 1e-6


def group_means(values: Tensor, groups: Tensor) -> Tensor:
    """For each of B values the mean over its group, (B,); `groups` (B,) int64 are the labels."""
    alike = (groups[:, None] == groups).float()
    return alike @ values / alike.sum(1)


def advantages(batch: Transitions, within_groups_only: bool) -> Tensor:
    """(log-reward - mean) / deviation over the trajectories of the same prompt in the window, (B,).

    Each trajectory counts once. If a prompt has only one in the window, the statistics are those
    of all trajectories; with `within_groups_only` the advantage is zero instead.
    """
    window = batch.window
    assert window is not None
    assert window.trajectory is not None
    assert window.prompt is not None
    assert window.log_reward is not None
    assert batch.prompt is not None
    assert batch.log_reward is not None
    numbers, order = window.trajectory.sort()
    first = torch.ones_like(window.log_reward)  # 1 at one row of each trajectory, else 0
    first[1:] = numbers[1:] != numbers[:-1]
    rewards = window.log_reward[order]
    alike = (batch.prompt[:, None] == window.prompt[order]) * first  # (B, M)
    alone = alike.sum(1, keepdim=True) < 2
    shares = alike if within_groups_only else torch.where(alone, first, alike)
    shares = shares / shares.sum(1, keepdim=True)
    mean = shares @ rewards
    deviation = (shares * (rewards - mean[:, None]) ** 2).sum(1).sqrt()
    return (batch.log_reward - mean) / (deviation + SMALLEST * (1 + mean.abs()))
