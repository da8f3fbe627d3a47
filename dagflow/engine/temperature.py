"""Measure whether samples come in proportion to exp(beta * reward).

For a trajectory that the policy sampled, w = log p_0 + sum of (log p - log q) is an estimate of the
log-density of its terminal state, here in nats and summed over the D latent values. On average it
is too high by KL(p || q) of the ways to that state, which is zero in balance. There
w = beta * reward - log Z(prompt), with beta on that scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from dagflow.diffusion import path as gaussian
from dagflow.diffusion.path import GaussianPath
from dagflow.errors import UserError
from dagflow.types import LogDensity, Prompt, Trajectories

STEPS = 100  # of a bisection


def log_weights(trajectories: Trajectories, path: GaussianPath, density: LogDensity) -> Tensor:
    """w = log p_0 + sum of (log p - log q), (B,), in nats."""
    latents = trajectories.latents
    first = latents[:, 0]
    one = torch.ones((), device=first.device)
    result = gaussian.log_normal(first, torch.zeros_like(first), one, "sum")
    scale = prod(first.shape[1:]) if density == "mean" else 1
    result = result + scale * trajectories.log_pf.sum(1)
    for i in range(path.steps):
        step = gaussian.step_from(path, torch.full((len(first),), i, device=first.device))
        result = result - gaussian.log_pb(step, latents[:, i], latents[:, i + 1], "sum")
    return result


def base_log_weights(trajectories: Trajectories, density: LogDensity) -> Tensor:
    """The same relative to the base model: sum of (log p - log p_base), (B,), in nats."""
    assert trajectories.log_p_base is not None
    scale = prod(trajectories.latents.shape[2:]) if density == "mean" else 1
    return scale * (trajectories.log_pf - trajectories.log_p_base).sum(1)


def temperature(
    weights: Tensor, rewards: Tensor, prompts: Sequence[Prompt], beta: float
) -> dict[str, float]:
    """Slope of w against reward within prompts, mean log Z, and effective sample size.

    weights, rewards: (B,); beta on the scale of summed log-densities. `slope` approaches beta as
    training succeeds. `log_z` is the mean over images of their prompt's log mean
    exp(beta * reward - w). `ess` of the same importance weights is a share, averaged likewise:
    1 at best, and one over the number of a prompt's images at worst. Prompts with one image do not
    count; the result is empty if there are no others, and has no slope if rewards do not vary.
    """
    groups = [rows for rows in _by_prompt(prompts) if len(rows) > 1]
    products = squares = log_z = ess = 0.0
    for rows in groups:
        w, r = weights[rows].double().cpu(), rewards[rows].double().cpu()
        products += float(((r - r.mean()) * (w - w.mean())).sum())
        squares += float(((r - r.mean()) ** 2).sum())
        gaps = beta * r - w
        log_z += len(rows) * (float(gaps.logsumexp(0)) - math.log(len(rows)))
        ess += float(1 / (gaps.softmax(0) ** 2).sum())
    count = sum(len(rows) for rows in groups)
    if not count:
        return {}
    numbers = {"log_z": log_z / count, "ess": ess / count}
    return {"slope": products / squares, **numbers} if squares > 0 else numbers


def _by_prompt(prompts: Sequence[Prompt]) -> list[Tensor]:
    """The places of each text."""
    places: dict[str, list[int]] = {}
    for k, prompt in enumerate(prompts):
        places.setdefault(prompt.text, []).append(k)
    return [torch.tensor(rows) for rows in places.values()]


def beta_for_divergence(rewards: Tensor, prompts: Sequence[Prompt], divergence: float) -> float:
    """The beta whose target p_base exp(beta r) / Z has KL(target || base) = `divergence`, in nats.

    rewards: (N,) of images of the base model. KL is beta E_target[r] - log E_base[exp(beta r)] for
    each prompt, here the mean over prompts, and grows with beta. Raises UserError if these images
    cannot show so large a divergence: n images of a prompt show log n at most, and less if several
    tie for the best.
    """
    groups = [rewards[rows].double().cpu() for rows in _by_prompt(prompts)]

    def kl(beta: float) -> float:
        total = 0.0
        for values in groups:
            log_probability = (beta * values).log_softmax(0)
            information = float((log_probability.exp() * log_probability).sum())
            total += information + math.log(len(values))
        return total / len(groups)

    tops = [values.unique()[-2:] for values in groups]
    gaps = [float(pair[1] - pair[0]) for pair in tops if len(pair) > 1]
    highest = 50 / min(gaps) if gaps else 0.0  # there only the best images have weight
    if not kl(highest) > divergence:
        raise UserError(
            f"beta = 'auto:KL={divergence:g}': the rewards of the first epoch's {len(rewards)} "
            f"images show a divergence of {kl(highest):.2f} at most. Begin a new run with a "
            f"smaller one, or with more images per prompt."
        )
    low = 0.0
    for _ in range(STEPS):
        middle = (low + highest) / 2
        low, highest = (middle, highest) if kl(middle) < divergence else (low, middle)
    return low
