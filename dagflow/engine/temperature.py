"""Whether samples come in proportion to exp(beta * reward), measured.

For a trajectory that the policy sampled, w = log p_0 + sum of (log p - log q) is an estimate of the
log-density of its terminal state (by importance, with q as the proposal), here in nats and summed
over the D latent values. In balance w = beta * reward - log Z(prompt), with beta on that scale.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

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
    scale = first[0].numel() if density == "mean" else 1
    result = result + scale * trajectories.log_pf.sum(1)
    for i in range(path.steps):
        step = gaussian.step_from(path, torch.full((len(first),), i, device=first.device))
        result = result - gaussian.log_pb(step, latents[:, i], latents[:, i + 1], "sum")
    return result


def base_log_weights(trajectories: Trajectories, density: LogDensity) -> Tensor:
    """sum of (log p - log p_base), (B,), in nats: the same against the base model."""
    assert trajectories.log_p_base is not None
    scale = trajectories.latents[0, 0].numel() if density == "mean" else 1
    return scale * (trajectories.log_pf - trajectories.log_p_base).sum(1)


def temperature(
    weights: Tensor, rewards: Tensor, prompts: Sequence[Prompt], beta: float
) -> dict[str, float]:
    """Slope of w against reward within prompts, mean log Z, and effective sample size.

    weights, rewards: (B,); beta on the scale of summed log-densities. `slope` approaches beta as
    training succeeds, `log_z` is the mean over prompts of log mean exp(beta * reward - w), and
    `ess` of the same importance weights is a share of B, 0 to 1, averaged likewise. The slope is
    absent where no prompt has two images or rewards do not vary.
    """
    texts = [prompt.text for prompt in prompts]
    groups = [
        torch.tensor([k for k, other in enumerate(texts) if other == text])
        for text in dict.fromkeys(texts)
    ]
    x, y = torch.empty(len(rewards)), torch.empty(len(rewards))
    log_z, ess = [], []
    for rows in groups:
        w, r = weights[rows].double().cpu(), rewards[rows].double().cpu()
        x[rows], y[rows] = (r - r.mean()).float(), (w - w.mean()).float()
        gaps = beta * r - w
        log_z.append(float(gaps.logsumexp(0)) - math.log(len(rows)))
        ess.append(float(1 / (gaps.softmax(0) ** 2).sum()) / len(rows))
    numbers = {"log_z": sum(log_z) / len(log_z), "ess": sum(ess) / len(ess)}
    spread = float((x**2).sum())
    return {"slope": float((x * y).sum()) / spread, **numbers} if spread > 0 else numbers


def beta_for_divergence(rewards: Tensor, divergence: float) -> float:
    """The beta whose target p_base exp(beta r) / Z has KL(target || base) = `divergence`, in nats.

    rewards: (N,) of images of the base model. KL is beta E_target[r] - log E_base[exp(beta r)], and
    grows with beta. Raises UserError if N samples cannot show so large a divergence: at most
    log N, less as many as are alike.
    """
    values = rewards.double().cpu()

    def kl(beta: float) -> float:
        log_probability = (beta * values).log_softmax(0)
        return float((log_probability.exp() * log_probability).sum()) + math.log(len(values))

    spread = float(values.max() - values.min())
    highest = 50 / spread if spread else 0.0
    if not kl(highest) > divergence:
        raise UserError(
            f"beta = 'auto:KL={divergence:g}': the {len(values)} images of the first epoch can "
            f"show a divergence of {kl(highest):.2f} at most; ask for less, or raise "
            f"rollout.samples_per_epoch."
        )
    low = 0.0
    for _ in range(STEPS):
        middle = (low + highest) / 2
        low, highest = (middle, highest) if kl(middle) < divergence else (low, middle)
    return low
