"""How far the trained network is from the frozen one, on paths that it samples itself."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from dagflow.diffusion import path as gaussian
from dagflow.diffusion.path import GaussianPath
from dagflow.policies.policy import Policy
from dagflow.types import Trajectories

STEPS = 5  # that are evaluated in each trajectory
GOLDEN = 5**0.5 / 2 - 0.5  # any number of its multiples, modulo 1, covers [0, 1) evenly


class Drift(NamedTuple):
    """The drift of B trajectories, (B,) each."""

    kl: Tensor  # nats, over the whole path
    noise_pred: Tensor  # mean squared difference of guided predictions


@torch.no_grad()
def drift(policy: Policy, path: GaussianPath, trajectories: Trajectories) -> Drift:
    """An estimate from five steps of each trajectory; its `index` determines which ones.

    KL(p || p_base) of a path is the expected sum over steps of |mean - mean_base|^2 / (2 variance)
    along the paths of p. Each step is weighted by one over its probability of being chosen (Horvitz
    and Thompson, 1952; systematic sampling). `trajectories` are the policy's own.
    """
    count = len(trajectories.prompts)
    places, counts = (values.to(policy.device) for values in looked_at(path, trajectories.index))
    rows = torch.arange(count, device=policy.device)
    kl, squares = torch.zeros(2, count, device=policy.device)
    for place, times_counted in zip(places, counts, strict=True):
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
        kl += times_counted * (apart**2 / (2 * step.variance)).flatten(1).sum(1)
        squares += times_counted * ((now - base) ** 2).flatten(1).mean(1) / path.steps
    return Drift(kl, squares)


def looked_at(path: GaussianPath, index: Tensor) -> tuple[Tensor, Tensor]:
    """The chosen steps of the trajectories `index` (B,), and their weights, (5, B) each.

    On the CPU, where sums are deterministic.
    """
    chance = chances(path)
    begin = (index.cpu().double() + 0.5) * GOLDEN % 1
    points = begin + torch.arange(min(STEPS, path.steps))[:, None]
    places = torch.searchsorted(chance.cumsum(0), points, right=True).clamp(max=path.steps - 1)
    return places, 1 / chance[places].float()


def chances(path: GaussianPath) -> Tensor:
    """The probability of choosing each step, (T,) float64 in (0, 1]; they sum to the number chosen.

    One half is even; the other follows what an error of x0hat in proportion to sigma adds to the
    KL at that step, most of which is often in one step near the end.
    """
    step = gaussian.step_from(path.on(torch.device("cpu")), torch.arange(path.steps))
    weight = ((step.mean_x0 * step.state.sigma) ** 2 / step.variance).double().flatten()
    share = 1 / path.steps + weight / weight.sum()
    certain = torch.zeros_like(share, dtype=torch.bool)
    few = min(STEPS, path.steps)
    while True:
        left = few - int(certain.sum())
        result = torch.where(certain, 1.0, share * left / share[~certain].sum().clamp(min=1e-9))
        if not (result > 1).any():
            return result
        certain |= result > 1
