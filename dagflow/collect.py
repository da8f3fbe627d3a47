"""An epoch's data: draw prompts, sample trajectories, score them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dagflow.diffusion.noise import Stream, trajectory_noise
from dagflow.engine.metrics import Clock
from dagflow.engine.normalise import Statistics, learn, mean_and_deviation, normalised
from dagflow.engine.prompts import draw_prompts
from dagflow.engine.rollout import concatenate, rollout
from dagflow.engine.scoring import Scores, WeightedReward, ask, total
from dagflow.prepare import Run
from dagflow.types import Prompt, Trajectories


@dataclass(frozen=True)
class Epoch:
    """The trajectories of an epoch and what R rewards say of them."""

    trajectories: Trajectories
    rewards: tuple[WeightedReward, ...]  # R, with the weights of this epoch
    statistics: dict[str, Statistics]  # after this epoch
    raw: Tensor  # (R, B), without weights
    potentials: Tensor  # (B, T+1), the total at every state; the last column is the image's
    measured: Tensor  # (M, B), of the rewards that are never trained on

    @property
    def final(self) -> Tensor:
        """The total rewards of the images, (B,)."""
        return self.potentials[:, -1]


@dataclass(frozen=True)
class Asked:
    """Scores to come of a batch of images."""

    states: list[Scores]  # of the decoded x0hat at the states before the last, if it matters
    images: Scores
    measured: Scores


def collect(
    run: Run,
    epoch: int,
    statistics: Mapping[str, Statistics],
    rollout_lora: dict[str, Tensor],
    clock: Clock,
) -> Epoch:
    """Trajectories of the network `rollout_lora`, scored; epochs count from 0.

    Rewards that allow it are asked while sampling goes on.
    """
    trajectories, asked = _sample(run, epoch, rollout_lora)
    clock.lap("rollout")
    run.watcher.phase("score", sum(len(part.states) for part in asked) + 2 * len(asked), epoch + 1)
    raw = torch.cat([_answer(run, part.images) for part in asked], 1)
    after = learn(run.rewards, statistics, raw, epoch)
    rewards = normalised(run.rewards, after)
    final = total(rewards, raw)
    values = torch.zeros(*trajectories.log_pf.shape, device=final.device)
    for rows, part in zip(values.split(run.config.rollout.batch_size), asked, strict=True):
        for i, scores in enumerate(part.states):
            rows[:, i] = total(rewards, _answer(run, scores))
    measured = torch.cat([_answer(run, part.measured) for part in asked], 1)
    run.watcher.show(mean_and_deviation("reward", final, "_"))
    clock.lap("score")
    potentials = torch.cat([values, final[:, None]], 1)
    return Epoch(trajectories, rewards, after, raw, potentials, measured)


def _sample(
    run: Run, epoch: int, rollout_lora: dict[str, Tensor]
) -> tuple[Trajectories, list[Asked]]:
    settings = run.config.rollout
    prompts = draw_prompts(
        run.prompts, run.config.seed, epoch, settings.samples_per_epoch, settings.images_per_prompt
    )
    run.watcher.phase("rollout", len(prompts) * run.path.steps, epoch + 1)
    latest = run.policy.lora_state()
    run.policy.set_lora_state(rollout_lora)
    parts, asked = [], []
    try:
        for start in range(0, len(prompts), settings.batch_size):
            batch = prompts[start : start + settings.batch_size]
            part, scores = _sample_batch(run, epoch, start, batch)
            parts.append(part)
            asked.append(scores)
    finally:
        run.policy.set_lora_state(latest)
    return concatenate(parts), asked


def _sample_batch(
    run: Run, epoch: int, start: int, prompts: Sequence[Prompt]
) -> tuple[Trajectories, Asked]:
    """The trajectories of some of the epoch's prompts, the first of them being number `start`."""
    indices = range(start, start + len(prompts))
    policy, shape = run.policy, run.policy.latent_shape
    noise = trajectory_noise(Stream.ROLLOUT, run.config.seed, epoch, indices, run.path.steps, shape)
    states: list[Scores] = []

    def look(preview: Tensor) -> None:
        states.append(ask(run.rewards, policy.decode(preview), prompts))

    wanted = run.learner.objective.needs.potentials and run.config.rollout.potential == "rollout"
    part = rollout(
        policy, run.path, prompts, noise, run.learner.density, run.advance, look if wanted else None
    )
    images, measured = (
        ask(rewards, part.images, prompts) for rewards in (run.rewards, run.measured)
    )
    return part, Asked(states, images, measured)


def _answer(run: Run, scores: Scores) -> Tensor:
    """Scores (R, B), waited for if need be."""
    answer = scores()
    run.advance(1)
    return answer
