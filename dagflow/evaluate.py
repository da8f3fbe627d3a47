"""Compare the base model with the trained one on held-out seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dagflow.diffusion.noise import Stream, trajectory_noise
from dagflow.diffusion.path import GaussianPath
from dagflow.engine.rollout import ignore, rollout
from dagflow.engine.scoring import WeightedReward, ask, total
from dagflow.policies.stable_diffusion import StableDiffusionPolicy
from dagflow.types import Prompt


@dataclass(frozen=True)
class Comparison:
    """Rewards and images of two models from the same prompts and noise."""

    prompts: tuple[Prompt, ...]  # N
    base_images: Tensor  # (N, 3, height, width)
    images: Tensor
    base_rewards: Tensor  # (N,), the weighted total
    rewards: Tensor
    base_scores: dict[str, Tensor]  # (N,) by label, without weights; measured rewards too
    scores: dict[str, Tensor]


def standard_error(differences: Tensor) -> float:
    """Of the mean of (N,) differences; 0 for a single one."""
    return float(differences.std() / len(differences) ** 0.5) if len(differences) > 1 else 0.0


def sample(
    policy: StableDiffusionPolicy,
    path: GaussianPath,
    prompts: Sequence[Prompt],
    seed: int,
    batch_size: int,
    stream: Stream = Stream.HELD_OUT,
    progress: Callable[[int], None] = ignore,
) -> Tensor:
    """Images (N, 3, height, width) on the CPU, one for each prompt; image i has the i-th noise.

    `progress` is called with the number of images that advanced by one step.
    """
    images = []
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        indices = range(start, start + len(part))
        noise = trajectory_noise(stream, seed, 0, indices, path.steps, policy.latent_shape)
        images.append(rollout(policy, path, part, noise, "mean", progress).images.cpu())
    return torch.cat(images)


def cycle(prompts: Sequence[Prompt], count: int) -> tuple[Prompt, ...]:
    """`count` prompts, going round as often as it takes."""
    return tuple(prompts[i % len(prompts)] for i in range(count))


def compare(
    policy: StableDiffusionPolicy,
    path: GaussianPath,
    prompts: Sequence[Prompt],
    rewards: Sequence[WeightedReward],
    measured: Sequence[WeightedReward],
    seed: int,
    batch_size: int,
    progress: Callable[[int], None] = ignore,
) -> Comparison:
    """Base and trained model on the held-out noise of `seed`, an image for each prompt.

    The total is that of `rewards`; `measured` rewards are scored beside them.
    """
    asked = [*rewards, *measured]

    def both() -> tuple[Tensor, Tensor]:
        images = sample(policy, path, prompts, seed, batch_size, progress=progress)
        parts = zip(images.split(batch_size), range(0, len(images), batch_size), strict=True)
        scores = [
            ask(asked, part.to(policy.device), prompts[start : start + len(part)])
            for part, start in parts
        ]
        return images, torch.cat([answer() for answer in scores], 1).cpu()

    with policy.base():
        base_images, base_raw = both()
    images, raw = both()
    return Comparison(
        prompts=tuple(prompts),
        base_images=base_images,
        images=images,
        base_rewards=total(rewards, base_raw[: len(rewards)]),
        rewards=total(rewards, raw[: len(rewards)]),
        base_scores=_by_label(asked, base_raw),
        scores=_by_label(asked, raw),
    )


def _by_label(rewards: Sequence[WeightedReward], raw: Tensor) -> dict[str, Tensor]:
    return {item.label: values for item, values in zip(rewards, raw, strict=True)}
