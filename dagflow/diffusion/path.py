"""One Gaussian path, x_t = alpha_t x_0 + sigma_t noise, and the two densities of a step on it.

The policy p (denoising) and the noising process q follow Zhang et al., "Improving GFlowNets for
Text-to-Image Diffusion Alignment", TMLR 2025; for Stable Diffusion p is DDIM with eta = 1.
States are counted from the noise: state 0 is x_{t_0}, state T the terminal state, and step i leads
from state i (at t) to state i + 1 (at s < t).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from dagflow.types import LogDensity


@dataclass(frozen=True)
class GaussianPath:
    """The states that a sampler visits. The path has only steps with a density."""

    alpha: Tensor  # (T+1,) float64
    sigma: Tensor  # (T+1,) float64, positive
    timesteps: Tensor  # (T+1,) int64, the network's time input at each state
    noiseless_end: bool = False  # the sampler continues from the terminal state to x0hat itself

    @property
    def steps(self) -> int:
        """T."""
        return len(self.alpha) - 1

    def on(self, device: torch.device) -> GaussianPath:
        """The same path on a device, so that nothing there waits for its numbers."""
        alpha, sigma, timesteps = (x.to(device) for x in (self.alpha, self.sigma, self.timesteps))
        return replace(self, alpha=alpha, sigma=sigma, timesteps=timesteps)

    def times(self, index: Tensor) -> Tensor:
        """The network's time input at the states numbered `index` (B,) int64, on its device."""
        return self.timesteps.to(index.device)[index]

    @cached_property
    def scales(self) -> Tensor:
        """alpha and sigma of each state, (2, T+1) float32."""
        return torch.stack([self.alpha, self.sigma]).float()

    @cached_property
    def coefficients(self) -> Tensor:
        """The coefficients of each step, in the order of `Step`, (7, T) float32.

        With a = alpha_t / alpha_s and v = sigma_t^2 - a^2 sigma_s^2:
        p(x_s | x_t) = N((a sigma_s^2 x_t + alpha_s v x0hat) / sigma_t^2, v sigma_s^2 / sigma_t^2),
        q(x_t | x_s) = N(a x_s, v).
        """
        var, a = self.sigma**2, self.alpha[:-1] / self.alpha[1:]
        var_t, var_s, alpha_s = var[:-1], var[1:], self.alpha[1:]
        v = var_t - a**2 * var_s
        mean = (a * var_s / var_t, alpha_s * v / var_t)
        state = (self.alpha[:-1], self.sigma[:-1])
        return torch.stack([*state, *mean, v * var_s / var_t, a, v]).float()


class State(NamedTuple):
    """Coefficients of B states, each (B, 1, 1, 1) float32."""

    alpha: Tensor
    sigma: Tensor


class Step(NamedTuple):
    """Coefficients of B steps, each (B, 1, 1, 1) float32, from state x (at t) to x_next (at s)."""

    state: State  # of x
    mean_x: Tensor  # p's mean is mean_x * x + mean_x0 * x0hat
    mean_x0: Tensor
    variance: Tensor  # of p
    noising: Tensor  # a; q's mean is a * x_next
    noising_variance: Tensor  # v


def state_at(path: GaussianPath, index: Tensor) -> State:
    """Coefficients of the states numbered `index` (B,) int64 in [0, T], on its device."""
    return State(*_columns(path.scales, index))


def step_from(path: GaussianPath, index: Tensor) -> Step:
    """Coefficients of the steps numbered `index` (B,) int64 in [0, T), on the device of `index`."""
    alpha, sigma, *others = _columns(path.coefficients, index)
    return Step(State(alpha, sigma), *others)


def _columns(table: Tensor, index: Tensor) -> tuple[Tensor, ...]:
    """The columns `index` of each row, (B, 1, 1, 1) each."""
    return table.to(index.device)[:, index].view(len(table), -1, 1, 1, 1).unbind()


def predicted_x0(state: State, latents: Tensor, output: Tensor, prediction_type: str) -> Tensor:
    """x0hat (B, C, H, W) from a network's output, whatever it predicts.

    Raises ValueError for a prediction type other than epsilon, v_prediction and sample.
    """
    if prediction_type == "epsilon":
        return (latents - state.sigma * output) / state.alpha
    if prediction_type == "v_prediction":
        return state.alpha * latents - state.sigma * output
    if prediction_type == "sample":
        return output
    raise ValueError(f"unknown prediction type {prediction_type!r}")


def policy_mean(step: Step, latents: Tensor, x0: Tensor) -> Tensor:
    """Mean of p(x_next | x), (B, C, H, W)."""
    return step.mean_x * latents + step.mean_x0 * x0


def log_normal(x: Tensor, mean: Tensor, variance: Tensor, density: LogDensity) -> Tensor:
    """log N(x; mean, variance) of B states (B, C, H, W), in nats, (B,).

    `sum` is the log-density; `mean` is that divided by D, as in the paper's code.
    """
    values = -0.5 * ((x - mean) ** 2 / variance + torch.log(2 * math.pi * variance))
    flat = values.flatten(1)
    return flat.sum(1) if density == "sum" else flat.mean(1)


def log_pf(
    step: Step, latents: Tensor, latents_next: Tensor, x0: Tensor, density: LogDensity
) -> Tensor:
    """log p(x_next | x) of the policy whose prediction at x is x0, (B,)."""
    mean = policy_mean(step, latents, x0)
    return log_normal(latents_next, mean, step.variance, density)


def log_pb(step: Step, latents: Tensor, latents_next: Tensor, density: LogDensity) -> Tensor:
    """log q(x | x_next) of the noising process, (B,)."""
    return log_normal(latents, step.noising * latents_next, step.noising_variance, density)
