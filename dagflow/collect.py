"""An epoch's data: draw prompts, sample trajectories, score them.

Each process samples its own share; all processes then know the scores of all sampled images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dagflow.diffusion.noise import Stream, generator, trajectory_noise
from dagflow.engine.metrics import Clock
from dagflow.engine.normalise import (
    Statistics,
    first_steady,
    learn,
    mean_and_deviation,
    normalised,
)
from dagflow.engine.prompts import draw_prompts
from dagflow.engine.replay import Buffer, draw, off_policy, renoised
from dagflow.engine.rollout import concatenate, first, rollout, select
from dagflow.engine.scoring import Scores, WeightedReward, ask, total
from dagflow.engine.transitions import cut, shares
from dagflow.errors import RunError
from dagflow.prepare import Run
from dagflow.profiling import span
from dagflow.types import Prompt, Trajectories


@dataclass(frozen=True)
class Epoch:
    """This process's trajectories of an epoch; those that the policy sampled come first.

    The policy samples S trajectories in all processes, and R rewards score them.
    """

    trajectories: Trajectories  # B
    prompts: tuple[Prompt, ...]  # S, of all processes
    rewards: tuple[WeightedReward, ...]  # R, with the weights of this epoch
    statistics: dict[str, Statistics]  # after this epoch
    raw: Tensor  # (R, S), unweighted, for the images that the policy sampled in any process
    potentials: Tensor  # (B, T+1), the total at every state; the last column is the image's
    measured: Tensor  # (M, S), of the rewards that are never trained on
    reward_calls: int  # images that the rewards scored, in all processes

    @property
    def final(self) -> Tensor:
        """The total rewards of the images that the policy sampled, (S,)."""
        return total(self.rewards, self.raw)

    @property
    def sampled(self) -> Trajectories:
        """The trajectories that the policy sampled in this process."""
        return first(self.trajectories, int((self.trajectories.index < len(self.prompts)).sum()))

    def own(self, rows: Tensor) -> Tensor:
        """The rows (M, 2) of an epoch whose trajectories are here, renumbered to their places."""
        numbers = self.trajectories.index.cpu()
        place = torch.full((int(rows[:, 0].max()) + 1,), -1)
        known = numbers < len(place)
        place[numbers[known]] = torch.arange(len(numbers))[known]
        here = place[rows[:, 0]]
        return torch.stack([here, rows[:, 1]], 1)[here >= 0]


@dataclass(frozen=True)
class Asked:
    """Pending scores of a batch of images."""

    states: dict[int, Scores]  # of the decoded x0hat at states before the last, where needed
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
    """Trajectories of the network with `rollout_weights`, scored; epochs count from 0.

    Given trajectories follow, retraced by the same network. Rewards that allow it are asked while
    sampling continues.
    """
    processes, plan = run.processes, _plan(run, epoch, buffer)

    def sample() -> tuple[list[Trajectories], list[Asked], list[Tensor]]:
        parts, asked = _sample(run, epoch, rollout_weights, plan)
        clock.lap("rollout")
        run.watcher.phase("score", sum(len(part.states) + 2 for part in asked), epoch + 1)
        return parts, asked, [_answer(run, part.images) for part in asked]

    parts, asked, scores = processes.together(sample)
    here = concatenate(parts)
    own = [k for k in here.index.tolist() if k < len(plan.prompts)]

    def everywhere(batches: list[Tensor], rewards: Sequence[WeightedReward]) -> Tensor:
        """Scores (R, S) of all processes; `batches`: those of the batches sampled here."""
        none = torch.zeros(len(rewards), 0, device=run.policy.device)
        return processes.gathered(torch.cat([none, *batches], 1).T, own).T.contiguous()

    pairs = zip(scores, asked, strict=True)
    raw = everywhere([s for s, part in pairs if part.measured is not None], run.rewards)
    after = learn(run.rewards, statistics, raw, epoch)
    rewards = normalised(run.rewards, after)
    if not total(rewards, raw).isfinite().all():
        weights = ", ".join(f"{item.label} {item.weight:g}" for item in rewards)
        raise RunError(f"the total reward is not finite, with these weights: {weights}")

    def answer() -> tuple[Tensor, list[Tensor]]:
        pairs = zip(scores, asked, strict=True)
        potentials = torch.cat([_potentials(run, rewards, *both) for both in pairs])
        return potentials, [_answer(run, part.measured) for part in asked if part.measured]

    potentials, measured = processes.together(answer)
    calls = sum((len(part.states) + 1) * s.shape[1] for s, part in zip(scores, asked, strict=True))
    calls = sum(processes.share(lambda: calls))
    data = Epoch(
        here,
        plan.prompts,
        rewards,
        after,
        raw,
        potentials,
        everywhere(measured, run.measured),
        calls,
    )
    run.watcher.show(mean_and_deviation("reward", data.final, "_"))
    clock.lap("score")
    return data


@dataclass(frozen=True)
class Plan:
    """The trajectories of an epoch in all processes: first the sampled, then the given ones."""

    prompts: tuple[Prompt, ...]  # of those to sample, S
    own: list[int]  # the numbers of this process's trajectories, in order
    given: list[tuple[Prompt, Tensor]]  # prompts and states (T+1, C, H, W) of the others


def _plan(run: Run, epoch: int, buffer: Buffer) -> Plan:
    config, settings = run.config, run.config.rollout
    replayed, backward = _off_policy(run, bool(buffer.kept))
    count, together = settings.samples_per_epoch - replayed - backward, settings.images_per_prompt
    prompts = draw_prompts(run.prompts, config.seed, _sampled_before(run, epoch), count, together)
    windows = cut(config, epoch, run.path.steps, run.learner.objective.needs)
    own = shares(windows, run.processes.size, count)[run.processes.rank]
    given: list[tuple[Prompt, Tensor]] = []
    if replayed + backward:
        source = generator(Stream.REPLAY, config.seed, epoch)
        alike = together if run.learner.objective.needs.groups else 1
        drawn = draw(buffer.kept, replayed, source, alike)
        ends = draw(run.given or buffer.kept, backward, source, alike)
        given = [(item.prompt, item.latents) for item in drawn]
        if ends:
            states = renoised(run.path, ends, source)
            given += [(item.prompt, x) for item, x in zip(ends, states, strict=True)]
    return Plan(prompts, own, given)


def _potentials(
    run: Run, rewards: Sequence[WeightedReward], images: Tensor, asked: Asked
) -> Tensor:
    """The total reward (B, T+1) at every state of a batch with scores `images` (R, B).

    Zero at states that were not scored.
    """
    values = torch.zeros(images.shape[1], run.path.steps + 1, device=images.device)
    for i, scores in asked.states.items():
        values[:, i] = total(rewards, _answer(run, scores))
    values[:, -1] = total(rewards, images)
    return values


def _sample(
    run: Run, epoch: int, rollout_weights: dict[str, Tensor], plan: Plan
) -> tuple[list[Trajectories], list[Asked]]:
    steps, shape, size = run.path.steps, run.policy.latent_shape, run.config.rollout.batch_size
    count = len(plan.prompts)
    run.watcher.phase("rollout", len(plan.own) * steps, epoch + 1)
    latest = run.policy.weights()
    run.policy.set_weights(rollout_weights)
    done = []
    sampled = batched([k for k in plan.own if k < count], size)
    given = batched([k for k in plan.own if k >= count], size)
    batches = len(sampled) + len(given)
    idle = run.processes.passes(batches) - batches
    try:
        for batch in sampled:
            noise = trajectory_noise(Stream.ROLLOUT, run.config.seed, epoch, batch, steps, shape)
            done.append(_sample_batch(run, batch, [plan.prompts[k] for k in batch], noise))
        for batch in given:
            prompts, states = zip(*(plan.given[k - count] for k in batch), strict=True)
            done.append(_sample_batch(run, batch, prompts, given=torch.stack(states)))
        for _ in range(idle):
            _pass_along(run, done[0][0])
    finally:
        run.policy.set_weights(latest)
    return [part for part, _ in done], [asked for _, asked in done]


def _pass_along(run: Run, one: Trajectories) -> None:
    """A rollout whose result is not used, but which the other processes need this one to make."""
    needs, density = run.learner.objective.needs, run.learner.density
    given, prompts = one.latents[:1], one.prompts[:1]
    rollout(run.policy, run.path, prompts, None, density, log_p_base=needs.log_p_base, given=given)


def batched(numbers: Sequence[int], size: int) -> list[Sequence[int]]:
    """In batches of `size`."""
    return [numbers[start : start + size] for start in range(0, len(numbers), size)]


def _kept(run: Run, part: Trajectories) -> Trajectories:
    """Move trajectories to main memory with `machine.offload`."""
    if not run.config.machine.offload:
        return part
    here = torch.device("cpu")
    return replace(select(part, range(len(part.prompts)), here), images=part.images.to(here))


def _sampled_before(run: Run, epoch: int) -> int:
    """How many trajectories the policy sampled in all earlier epochs."""
    every, early = run.config.rollout.samples_per_epoch, min(epoch, first_steady(run.rewards) + 1)
    return early * (every - sum(_off_policy(run, False))) + (epoch - early) * (
        every - sum(_off_policy(run, True))
    )


def _off_policy(run: Run, kept: bool) -> tuple[int, int]:
    groups = run.learner.objective.needs.groups
    return off_policy(run.config, kept, bool(run.given), groups)


def _sample_batch(
    run: Run,
    index: Sequence[int],
    prompts: Sequence[Prompt],
    noise: Tensor | None = None,
    given: Tensor | None = None,
) -> tuple[Trajectories, Asked]:
    """Trajectories from noise, or along given states, and their pending scores."""
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
        index=index,
    )
    measured = ask(run.measured, part.images, prompts) if given is None else None
    asked = Asked(states, ask(run.rewards, part.images, prompts), measured)
    return _kept(run, part), asked


def _answer(run: Run, scores: Scores) -> Tensor:
    """Wait for the scores (R, B)."""
    answer = scores()
    run.advance(1)
    return answer
