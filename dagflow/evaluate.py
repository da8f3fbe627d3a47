"""Draw with the base and the trained model on held-out seeds, and compare them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from dagflow.diffusion.noise import Stream, trajectory_noise
from dagflow.diffusion.path import GaussianPath
from dagflow.engine.processes import ALONE, Processes
from dagflow.engine.rollout import ignore, rollout
from dagflow.engine.scoring import WeightedReward, ask, require_finite, total
from dagflow.engine.temperature import base_log_weights, log_weights, temperature
from dagflow.measures import diversity
from dagflow.measures.drift import Drift, drift
from dagflow.measures.features import Features
from dagflow.measures.looks import looks
from dagflow.policies.policy import Policy
from dagflow.types import Prompt, Trajectories


class Drawn(NamedTuple):
    """One model's images of N prompts, and what is known about them, on the CPU."""

    images: Tensor  # (N, 3, height, width)
    raw: Tensor  # (N, R), the scores of R rewards, without weights
    latents: Tensor  # (N, C, H, W), terminal states
    log_weights: Tensor  # (N,), see `dagflow.engine.temperature`
    kl: Tensor  # (N,), see `dagflow.measures.drift`; zero unless asked for
    noise_pred: Tensor  # (N,), likewise


@dataclass(frozen=True)
class Side:
    """The scores of one model's images."""

    images: Tensor  # (N, 3, height, width)
    rewards: Tensor  # (N,), the weighted total
    scores: dict[str, Tensor]  # (N,) by label, without weights; measured rewards too


@dataclass(frozen=True)
class Comparison:
    """Two models on the same prompts and noise."""

    prompts: tuple[Prompt, ...]  # N
    base: Side
    trained: Side
    trained_on: tuple[str, ...]  # labels of the rewards that make the total
    drift: dict[str, float]  # kl, noise_pred and latents
    temperature: dict[str, float]  # slope, log_z and ess of the trained model


def standard_error(differences: Tensor) -> float:
    """The standard error of the mean of (N,) differences; 0 for a single one."""
    return float(differences.std() / len(differences) ** 0.5) if len(differences) > 1 else 0.0


@dataclass(frozen=True)
class Sampler:
    """A policy, with how many steps it takes and how many images at once."""

    policy: Policy
    path: GaussianPath
    batch_size: int
    seed: int
    stream: Stream = Stream.HELD_OUT
    progress: Callable[[int], None] = ignore  # told how many images have advanced by a step
    processes: Processes = ALONE

    def batches(
        self, prompts: Sequence[Prompt], log_p_base: bool = False, from_base: bool = False
    ) -> Iterator[tuple[Trajectories, Drift | None]]:
        """This process's trajectories, with summed log-densities; image i has the i-th noise.

        `from_base`: also their drift from the base model.
        """
        steps, shape = self.path.steps, self.policy.latent_shape
        own = self.processes.own(len(prompts))
        starts = range(own.start, own.stop, self.batch_size)
        for k in range(self.processes.passes(len(starts))):
            is_idle = k >= len(starts)  # others need this process to take part
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
                index=indices,
            )
            apart = drift(self.policy, self.path, done) if from_base else None
            if not is_idle:
                yield done, apart

    def images(self, prompts: Sequence[Prompt]) -> Tensor:
        """Images (N, 3, height, width) on the CPU, one for each prompt."""
        batches = self.processes.share(
            lambda: [part.images.cpu() for part, _ in self.batches(prompts)]
        )
        return torch.cat([images for own in batches for images in own])

    def draw(
        self,
        prompts: Sequence[Prompt],
        asked: Sequence[WeightedReward],
        log_p_base: bool = False,
        from_base: bool = False,
    ) -> Drawn:
        """A scored image for each prompt, from all processes.

        `log_p_base`: log_weights against the base model's density. `from_base`: also the drift.
        """

        def own() -> list[Drawn]:
            found, answers = [], []
            for part, apart in self.batches(prompts, log_p_base, from_base):
                weights = (
                    base_log_weights(part, "sum")
                    if log_p_base
                    else log_weights(part, self.path, "sum")
                )
                zero = torch.zeros_like(weights)
                answers.append(ask(asked, part.images, part.prompts))
                rest = (part.latents[:, -1], weights, *(apart or Drift(zero, zero)))
                found.append((part.images, *rest))
            raw = [answer().T for answer in answers]
            return [
                Drawn(*(values.cpu() for values in (images, scores, *rest)))
                for (images, *rest), scores in zip(found, raw, strict=True)
            ]

        every = [batch for batches in self.processes.share(own) for batch in batches]
        for batch in every:
            require_finite(batch.images)
        return Drawn(*(torch.cat(column) for column in zip(*every, strict=True)))


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
    """Compare base and trained model on the sampler's noise, with an image for each prompt.

    Only `rewards` make the total; `measured` rewards are scored too. The temperature is for samples
    in proportion to exp(beta * total), with beta in nats, times the base model's density with
    `against_base`.
    """
    asked = [*rewards, *measured]
    with sampler.policy.base():
        base = sampler.draw(prompts, asked)
    trained = sampler.draw(prompts, asked, against_base, from_base=True)
    now = side(trained, rewards, measured)
    return Comparison(
        prompts=tuple(prompts),
        base=side(base, rewards, measured),
        trained=now,
        trained_on=tuple(item.label for item in rewards),
        drift=drift_from(base, trained),
        temperature=temperature(trained.log_weights, now.rewards, prompts, beta),
    )


def side(
    drawn: Drawn, rewards: Sequence[WeightedReward], measured: Sequence[WeightedReward]
) -> Side:
    """Totals, and scores by label."""
    raw = drawn.raw.T
    scores = {item.label: values for item, values in zip((*rewards, *measured), raw, strict=True)}
    return Side(drawn.images, total(rewards, raw[: len(rewards)]), scores)


def drift_from(base: Drawn, now: Drawn) -> dict[str, float]:
    """Means over images: kl in nats, noise_pred (squared), latents (root mean square)."""
    apart = ((now.latents - base.latents) ** 2).mean()
    return {
        "kl": float(now.kl.mean()),
        "noise_pred": float(now.noise_pred.mean()),
        "latents": float(apart**0.5),
    }


def win_rate(base: Tensor, now: Tensor) -> float:
    """Share of (N,) images whose reward beats the base's from the same noise; ties count half."""
    return float(((now > base).double() + 0.5 * (now == base).double()).mean())


@dataclass(frozen=True)
class Measured:
    """What is measured on one model's N images."""

    rewards: Tensor  # (N,)
    scores: dict[str, Tensor]  # (N,) by label
    looks: dict[str, Tensor]  # (N,) by name, see `dagflow.measures.looks`
    diversity: float | None  # see `dagflow.measures.diversity`
    vendi: float | None


def measure(one: Side, prompts: Sequence[Prompt], features: Features) -> Measured:
    """Measure one model's images. `prompts`: those of the images, in order."""
    rows = features.rows(one.images)
    return Measured(
        one.rewards,
        one.scores,
        looks(one.images),
        diversity.distance(rows, prompts),
        diversity.vendi(rows, prompts),
    )
