"""Trajectories of the policy: sampled, or retraced along given states."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields

import torch
from torch import Tensor

from dagflow.diffusion import path as gaussian
from dagflow.diffusion.path import GaussianPath
from dagflow.policies.policy import Policy
from dagflow.profiling import span, traced
from dagflow.types import LogDensity, Prompt, Trajectories


def ignore(_: int) -> None:
    """A progress callback that does nothing."""


@torch.no_grad()
def rollout(
    policy: Policy,
    path: GaussianPath,
    prompts: Sequence[Prompt],
    noise: Tensor | None,
    density: LogDensity,
    progress: Callable[[int], None] = ignore,
    on_preview: Callable[[int, Tensor], None] | None = None,
    log_p_base: bool = False,
    given: Tensor | None = None,
    index: Sequence[int] | None = None,
) -> Trajectories:
    """One trajectory for each of B prompts, from noise (B, T+1, C, H, W) or along `given` states.

    After each step `on_preview` is called with the state that the step began from, 0 to T-1, and
    x0hat (B, C, H, W) of its text branch, and then `progress` with the number of trajectories.
    With `log_p_base` the densities under the frozen base model are computed too. `index`: the
    trajectories' numbers in an epoch, by default from 0.
    """
    states = noise if given is None else given
    assert states is not None
    states = states.to(policy.device)
    with span("encode"):
        embeds = policy.encode([prompt.text for prompt in prompts])
    latents, log_pf, guided, log_base = [states[:, 0]], [], [], []
    for i in range(path.steps):
        x = latents[-1]
        place = torch.full((len(x),), i, device=policy.device)
        step = gaussian.step_from(path, place)
        times = path.times(place)
        with traced("rollout"), span("rollout"):
            prediction = policy.predict(x, times, embeds)
        x0 = policy.predicted_x0(step.state, x, prediction.guided)
        mean = gaussian.policy_mean(step, x, x0)
        sampled = mean + step.variance.sqrt() * states[:, i + 1]
        latents.append(sampled if given is None else states[:, i + 1])
        log_pf.append(gaussian.log_normal(latents[-1], mean, step.variance, density))
        guided.append(prediction.guided.to(policy.dtype))
        if log_p_base:
            with span("rollout"), policy.base():
                base_x0 = policy.predicted_x0(
                    step.state, x, policy.predict(x, times, embeds).guided
                )
            log_base.append(gaussian.log_pf(step, x, latents[-1], base_x0, density))
        if on_preview:
            on_preview(i, policy.predicted_x0(step.state, x, prediction.text))
        progress(len(x))
    final = _noiseless(policy, path, latents[-1], embeds) if path.noiseless_end else latents[-1]
    with span("decode"):
        images = policy.decode(final)
    return Trajectories(
        prompts=tuple(prompts),
        latents=torch.stack(latents, 1),
        log_pf=torch.stack(log_pf, 1),
        noise_pred=torch.stack(guided, 1),
        prompt_embeds=embeds,
        images=images,
        index=torch.tensor(list(index or range(len(prompts))), device=policy.device),
        log_p_base=torch.stack(log_base, 1) if log_p_base else None,
    )


def noised(path: GaussianPath, terminal: Tensor, noise: Tensor) -> Tensor:
    """States (B, T+1, C, H, W) that q draws from terminal states (B, C, H, W) back to noise.

    noise: (B, T, C, H, W), standard normal. x_t = a x_s + sqrt(v) noise, from the last step back.
    """
    states = [terminal]
    for i in reversed(range(path.steps)):
        step = gaussian.step_from(path, torch.full((len(terminal),), i, device=terminal.device))
        states.append(step.noising * states[-1] + step.noising_variance.sqrt() * noise[:, i])
    return torch.stack(states[::-1], 1)


def _noiseless(policy: Policy, path: GaussianPath, latents: Tensor, embeds: Tensor) -> Tensor:
    """x0hat of the terminal state by the frozen base network: the sampler's last step."""
    index = torch.full((len(latents),), path.steps, device=policy.device)
    state = gaussian.state_at(path, index)
    with policy.base():
        prediction = policy.predict(latents, path.times(index), embeds)
    return policy.predicted_x0(state, latents, prediction.guided)


def concatenate(parts: Sequence[Trajectories]) -> Trajectories:
    """Several batches of trajectories as one."""
    joined = {
        name: torch.cat([getattr(part, name) for part in parts]) for name in _tensors(parts[0])
    }
    return Trajectories(prompts=tuple(p for part in parts for p in part.prompts), **joined)


def select(trajectories: Trajectories, rows: Sequence[int], device: torch.device) -> Trajectories:
    """The trajectories at `rows`, on a device except their images, which are not needed there."""
    chosen = {name: getattr(trajectories, name)[list(rows)] for name in _tensors(trajectories)}
    chosen = {k: values if k == "images" else values.to(device) for k, values in chosen.items()}
    return Trajectories(prompts=tuple(trajectories.prompts[k] for k in rows), **chosen)


def first(trajectories: Trajectories, count: int) -> Trajectories:
    """The first `count` of them."""
    fewer = {name: getattr(trajectories, name)[:count] for name in _tensors(trajectories)}
    return Trajectories(prompts=trajectories.prompts[:count], **fewer)


def _tensors(trajectories: Trajectories) -> list[str]:
    names = (field.name for field in fields(trajectories))
    return [name for name in names if isinstance(getattr(trajectories, name), Tensor)]
