"""An epoch's data: draw prompts, sample trajectories, score them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dagflow.diffusion.noise import Stream, generator, trajectory_noise
from dagflow.engine.metrics import Clock
from dagflow.engine.normalise import Statistics, learn, mean_and_deviation, normalised
from dagflow.engine.prompts import draw_prompts
from dagflow.engine.replay import Buffer, draw, renoised
from dagflow.engine.rollout import concatenate, first, rollout, select
from dagflow.engine.scoring import Scores, WeightedReward, ask, total
from dagflow.prepare import Run
from dagflow.profiling import span
from dagflow.types import Prompt, Trajectories


@dataclass(frozen=True)
class Epoch:
    """The trajectories of an epoch, S sampled by the policy first, and what R rewards say."""

    trajectories: Trajectories
    rewards: tuple[WeightedReward, ...]  # R, with the weights of this epoch
    statistics: dict[str, Statistics]  # after this epoch
    raw: Tensor  # (R, S), without weights, of the images that the policy sampled
    potentials: Tensor  # (B, T+1), the total at every state; the last column is the image's
    measured: Tensor  # (M, S), of the rewards that are never trained on
    reward_calls: int  # images that the rewards were asked about

    @property
    def final(self) -> Tensor:
        """The total rewards of the images that the policy sampled, (S,)."""
        return self.potentials[: self.raw.shape[1], -1]

    @property
    def sampled(self) -> Trajectories:
        """Those that the policy sampled, S of them."""
        return first(self.trajectories, self.raw.shape[1])


@dataclass(frozen=True)
class Asked:
    """Scores to come of a batch of images."""

    states: dict[int, Scores]  # of the decoded x0hat at states before the last, where it matters
    images: Scores
    measured: Scores | None  # of images that the policy sampled


def collect(
    run: Run,
    epoch: int,
    statistics: Mapping[str, Statistics],
    rollout_weights: dict[str, Tensor],
    buffer: Buffer,
    clock: Clock,
) -> Epoch:
    """Trajectories of the network `rollout_weights`, scored; epochs count from 0.

    Those of the buffer follow, retraced by the same network. Rewards that allow it are asked while
    sampling goes on.
    """
    parts, asked = _sample(run, epoch, rollout_weights, buffer)
    clock.lap("rollout")
    run.watcher.phase("score", sum(len(part.states) + 2 for part in asked), epoch + 1)
    scores = [_answer(run, part.images) for part in asked]
    raw = torch.cat([s for s, part in zip(scores, asked, strict=True) if part.measured], 1)
    after = learn(run.rewards, statistics, raw, epoch)
    rewards = normalised(run.rewards, after)
    potentials = torch.cat(
        [_potentials(run, rewards, *both) for both in zip(scores, asked, strict=True)]
    )
    measured = torch.cat([_answer(run, part.measured) for part in asked if part.measured], 1)
    calls = sum((len(part.states) + 1) * s.shape[1] for s, part in zip(scores, asked, strict=True))
    epoch_data = Epoch(concatenate(parts), rewards, after, raw, potentials, measured, calls)
    run.watcher.show(mean_and_deviation("reward", epoch_data.final, "_"))
    clock.lap("score")
    return epoch_data


def _potentials(
    run: Run, rewards: Sequence[WeightedReward], images: Tensor, asked: Asked
) -> Tensor:
    """The total (B, T+1) at every state of a batch whose images scored (R, B); else zero."""
    values = torch.zeros(images.shape[1], run.path.steps + 1, device=images.device)
    for i, scores in asked.states.items():
        values[:, i] = total(rewards, _answer(run, scores))
    values[:, -1] = total(rewards, images)
    return values


def _sample(
    run: Run, epoch: int, rollout_weights: dict[str, Tensor], buffer: Buffer
) -> tuple[list[Trajectories], list[Asked]]:
    config, steps, shape = run.config, run.path.steps, run.policy.latent_shape
    settings = config.rollout
    replayed, backward = _off_policy(run, buffer)
    count = settings.samples_per_epoch - replayed - backward
    prompts = draw_prompts(run.prompts, config.seed, epoch, count, settings.images_per_prompt)
    run.watcher.phase("rollout", settings.samples_per_epoch * steps, epoch + 1)
    latest = run.policy.weights()
    run.policy.set_weights(rollout_weights)
    done = []
    try:
        for start in range(0, count, settings.batch_size):
            batch = prompts[start : start + settings.batch_size]
            indices = range(start, start + len(batch))
            noise = trajectory_noise(Stream.ROLLOUT, config.seed, epoch, indices, steps, shape)
            done.append(_sample_batch(run, batch, noise))
        if replayed + backward:
            source = generator(Stream.REPLAY, config.seed, epoch)
            drawn = draw(buffer.kept, replayed, source)
            ends = draw(run.given or buffer.kept, backward, source)
            states = [item.latents for item in drawn]
            states += [*renoised(run.path, ends, source)] if ends else []
            texts = [item.prompt for item in (*drawn, *ends)]
            for start in range(0, len(states), settings.batch_size):
                rows = slice(start, start + settings.batch_size)
                done.append(_sample_batch(run, texts[rows], given=torch.stack(states[rows])))
    finally:
        run.policy.set_weights(latest)
    return [part for part, _ in done], [asked for _, asked in done]


def _kept(run: Run, part: Trajectories) -> Trajectories:
    """Where the epoch's trajectories wait."""
    if not run.config.machine.offload:
        return part
    here = torch.device("cpu")
    return replace(select(part, range(len(part.prompts)), here), images=part.images.to(here))


def _off_policy(run: Run, buffer: Buffer) -> tuple[int, int]:
    """How many of an epoch's trajectories come from the buffer, and by noising images.

    What the policy samples is a whole number of groups; the others share what is left.
    """
    settings, replay = run.config.rollout, run.config.replay
    every, together = settings.samples_per_epoch, settings.images_per_prompt
    share = replay.share if buffer.kept else 0.0
    backward = replay.backward if buffer.kept or run.given else 0.0
    if not share + backward:
        return 0, 0
    groups = max(1, int(every * (1 - share - backward) + 1e-6) // together)
    others = every - groups * together
    replayed = round(others * share / (share + backward))
    return replayed, others - replayed


def _sample_batch(
    run: Run, prompts: Sequence[Prompt], noise: Tensor | None = None, given: Tensor | None = None
) -> tuple[Trajectories, Asked]:
    """Trajectories from noise, or along given states, and the scores to come."""
    policy, needs = run.policy, run.learner.objective.needs
    states: dict[int, Scores] = {}
    looked_at = run.potential_states if run.config.rollout.potential == "rollout" else ()

    def look(i: int, preview: Tensor) -> None:
        if i in looked_at:
            with span("decode"):
                images = policy.preview(preview)
            states[i] = ask(run.rewards, images, prompts)

    part = rollout(
        policy,
        run.path,
        prompts,
        noise,
        run.learner.density,
        run.advance,
        look if looked_at else None,
        log_p_base=needs.log_p_base,
        given=given,
    )
    measured = ask(run.measured, part.images, prompts) if given is None else None
    asked = Asked(states, ask(run.rewards, part.images, prompts), measured)
    return _kept(run, part), asked


def _answer(run: Run, scores: Scores) -> Tensor:
    """Scores (R, B), waited for if need be."""
    answer = scores()
    run.advance(1)
    return answer
