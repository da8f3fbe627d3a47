"""Sample trajectories from the policy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dagflow.diffusion import path as gaussian
from dagflow.diffusion.path import GaussianPath
from dagflow.policies.stable_diffusion import StableDiffusionPolicy
from dagflow.types import LogDensity, Prompt, Trajectories


def ignore(_: int) -> None:
    """A progress callback for those who do not watch."""


@torch.no_grad()
def rollout(
    policy: StableDiffusionPolicy,
    path: GaussianPath,
    prompts: Sequence[Prompt],
    noise: Tensor,
    density: LogDensity,
    progress: Callable[[int], None] = ignore,
    on_preview: Callable[[Tensor], None] | None = None,
) -> Trajectories:
    """One trajectory for each of B prompts, from noise (B, T+1, C, H, W).

    `progress` is called after each step with the number of trajectories that took it, and
    `on_preview` with x0hat (B, C, H, W) of the text branch at the state that the step began from.
    """
    noise = noise.to(policy.device)
    embeds = policy.encode([prompt.text for prompt in prompts])
    latents, log_pf, guided = [noise[:, 0]], [], []
    for i in range(path.steps):
        x = latents[-1]
        index = torch.full((len(x),), i, device=policy.device)
        step = gaussian.step_from(path, index)
        prediction = policy.predict(x, path.timesteps.to(policy.device)[index], embeds)
        x0 = gaussian.predicted_x0(step.state, x, prediction.guided, policy.prediction_type)
        mean = gaussian.policy_mean(step, x, x0)
        latents.append(mean + step.variance.sqrt() * noise[:, i + 1])
        log_pf.append(gaussian.log_normal(latents[-1], mean, step.variance, density))
        guided.append(prediction.guided)
        if on_preview:
            kind = policy.prediction_type
            on_preview(gaussian.predicted_x0(step.state, x, prediction.text, kind))
        progress(len(x))
    final = _noiseless(policy, path, latents[-1], embeds) if path.noiseless_end else latents[-1]
    return Trajectories(
        prompts=tuple(prompts),
        latents=torch.stack(latents, 1),
        log_pf=torch.stack(log_pf, 1),
        noise_pred=torch.stack(guided, 1),
        prompt_embeds=embeds,
        images=policy.decode(final),
    )


def _noiseless(
    policy: StableDiffusionPolicy, path: GaussianPath, latents: Tensor, embeds: Tensor
) -> Tensor:
    """x0hat of the terminal state by the frozen base network: the sampler's last step."""
    index = torch.full((len(latents),), path.steps, device=policy.device)
    state = gaussian.state_at(path, index)
    with policy.base():
        prediction = policy.predict(latents, path.timesteps.to(policy.device)[index], embeds)
    return gaussian.predicted_x0(state, latents, prediction.guided, policy.prediction_type)


TENSORS = ("latents", "log_pf", "noise_pred", "prompt_embeds", "images")


def concatenate(parts: Sequence[Trajectories]) -> Trajectories:
    """Several batches of trajectories as one."""
    joined = {name: torch.cat([getattr(part, name) for part in parts]) for name in TENSORS}
    return Trajectories(prompts=tuple(p for part in parts for p in part.prompts), **joined)
