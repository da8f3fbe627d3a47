"""Compare the base model with the trained one on held-out seeds."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dagflow.diffusion.noise import Stream, trajectory_noise
from dagflow.diffusion.path import GaussianPath
from dagflow.engine.processes import ALONE, Processes
from dagflow.engine.rollout import ignore, rollout
from dagflow.engine.scoring import WeightedReward, ask, total
from dagflow.engine.temperature import base_log_weights, log_weights, temperature
from dagflow.policies.policy import Policy
from dagflow.types import Prompt, Trajectories

DIVERSITY = 64  # images of a prompt that are compared with one another


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
    temperature: dict[str, float]  # slope, log_z and ess of the trained model


def standard_error(differences: Tensor) -> float:
    """Of the mean of (N,) differences; 0 for a single one."""
    return float(differences.std() / len(differences) ** 0.5) if len(differences) > 1 else 0.0


@dataclass(frozen=True)
class Sampler:
    """A policy, how many steps it takes, and how many images at once."""

    policy: Policy
    path: GaussianPath
    batch_size: int
    seed: int
    stream: Stream = Stream.HELD_OUT
    progress: Callable[[int], None] = ignore  # told the number of images that advanced by a step
    processes: Processes = ALONE

    def batches(
        self, prompts: Sequence[Prompt], log_p_base: bool = False
    ) -> Iterator[Trajectories]:
        """Trajectories with summed log-densities, this process's; image i has the i-th noise."""
        steps, shape = self.path.steps, self.policy.latent_shape
        own = self.processes.own(len(prompts))
        starts = range(own.start, own.stop, self.batch_size)
        for k in range(self.processes.passes(len(starts))):
            is_idle = k >= len(starts)  # others need this process to pass
            start = 0 if is_idle else starts[k]
            indices = range(start, 1 if is_idle else min(start + self.batch_size, own.stop))
            part = [prompts[i] for i in indices]
            noise = trajectory_noise(self.stream, self.seed, 0, indices, steps, shape)
            done = rollout(
                self.policy,
                self.path,
                part,
                noise,
                "sum",
                ignore if is_idle else self.progress,
                log_p_base=log_p_base,
            )
            if not is_idle:
                yield done

    def images(self, prompts: Sequence[Prompt]) -> Tensor:
        """Images (N, 3, height, width) on the CPU, one for each prompt."""
        batches = self.processes.share(
            lambda: [part.images.cpu() for part in self.batches(prompts)]
        )
        return torch.cat([images for own in batches for images in own])


def cycle(prompts: Sequence[Prompt], count: int) -> tuple[Prompt, ...]:
    """`count` prompts, going round as often as it takes."""
    return tuple(prompts[i % len(prompts)] for i in range(count))


def compare(
    sampler: Sampler,
    prompts: Sequence[Prompt],
    rewards: Sequence[WeightedReward],
    measured: Sequence[WeightedReward],
    beta: float,
    against_base: bool,
) -> Comparison:
    """Base and trained model on the sampler's noise, an image for each prompt.

    The total is that of `rewards`; `measured` rewards are scored beside them. The temperature is
    that of samples in proportion to exp(beta * total), beta in nats, times the base model's density
    with `against_base`.
    """
    asked = [*rewards, *measured]

    def both(log_p_base: bool) -> tuple[Tensor, Tensor, Tensor]:
        def own() -> list[tuple[Tensor, Tensor, Tensor]]:
            images, scores, weights = [], [], []
            for part in sampler.batches(prompts, log_p_base):
                images.append(part.images.cpu())
                scores.append(ask(asked, part.images, part.prompts))
                weights.append(
                    base_log_weights(part, "sum")
                    if log_p_base
                    else log_weights(part, sampler.path, "sum")
                )
            raw = [answer().T.cpu() for answer in scores]
            return list(zip(images, raw, [w.cpu() for w in weights], strict=True))

        every = [batch for batches in sampler.processes.share(own) for batch in batches]
        images, raw, weights = (torch.cat(column) for column in zip(*every, strict=True))
        return images, raw.T, weights

    with sampler.policy.base():
        base_images, base_raw, _ = both(log_p_base=False)
    images, raw, weights = both(log_p_base=against_base)
    final = total(rewards, raw[: len(rewards)])
    return Comparison(
        prompts=tuple(prompts),
        base_images=base_images,
        images=images,
        base_rewards=total(rewards, base_raw[: len(rewards)]),
        rewards=final,
        base_scores=_by_label(asked, base_raw),
        scores=_by_label(asked, raw),
        temperature=temperature(weights, final, prompts, beta),
    )


def diversity(images: Tensor, prompts: Sequence[Prompt]) -> float | None:
    """Mean root-mean-square distance between two images (N, 3, height, width) of one prompt.

    Of each prompt the first 64 count. None if no prompt has two.
    """
    texts = [prompt.text for prompt in prompts]
    groups = [
        images[[k for k, other in enumerate(texts) if other == text][:DIVERSITY]].flatten(1)
        for text in dict.fromkeys(texts)
    ]
    distances = [torch.pdist(group) / group.shape[1] ** 0.5 for group in groups if len(group) > 1]
    return float(torch.cat(distances).mean()) if distances else None


def _by_label(rewards: Sequence[WeightedReward], raw: Tensor) -> dict[str, Tensor]:
    return {item.label: values for item, values in zip(rewards, raw, strict=True)}
