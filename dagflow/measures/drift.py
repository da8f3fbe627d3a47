"""How far the trained network has gone from the frozen one, on paths that it samples itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dagflow.diffusion import path as gaussian
from dagflow.diffusion.path import GaussianPath
from dagflow.policies.policy import Policy
from dagflow.types import Trajectories

STEPS = 5  # of each trajectory that are looked at


class Drift(NamedTuple):
    """Of B trajectories, (B,) each."""

    kl: Tensor  # nats, of the whole path
    noise_pred: Tensor  # mean squared difference of guided predictions


@torch.no_grad()
def drift(policy: Policy, path: GaussianPath, trajectories: Trajectories) -> Drift:
    """An estimate from five steps of each trajectory, other ones for the next.

    KL(p || p_base) of a path is the expected sum over steps of |mean - mean_base|^2 / (2 variance)
    along the paths of p; the steps looked at stand for all. `trajectories` are the policy's own.
    """
    count, few = len(trajectories.prompts), min(STEPS, path.steps)
    rows = torch.arange(count, device=policy.device)
    kl, squares = torch.zeros(2, count, device=policy.device)
    for k in range(few):
        place = (rows + k * path.steps // few) % path.steps
        step = gaussian.step_from(path, place)
        x = trajectories.latents[rows, place]
        now = trajectories.noise_pred[rows, place]
        times = path.times(place)
        with policy.base():
            base = policy.predict(x, times, trajectories.prompt_embeds).guided.to(now.dtype)
        now, base = now.float(), base.float()
        apart = step.mean_x0 * (
            policy.predicted_x0(step.state, x, now) - policy.predicted_x0(step.state, x, base)
        )
        kl += (apart**2 / (2 * step.variance)).flatten(1).sum(1) * path.steps / few
        squares += ((now - base) ** 2).flatten(1).mean(1) / few
    return Drift(kl, squares)
