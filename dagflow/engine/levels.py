"""Where log F and log Z start: at the average over the first epoch's trajectories."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from dagflow.diffusion import path as gaussian
from dagflow.diffusion.path import GaussianPath
from dagflow.engine.learner import Learner
from dagflow.types import Trajectories


@dataclass(frozen=True)
class Levels:
    """A number for log F at each step's first state, and one for log Z; both rise with beta.

    Any function of time may be added to log F_phi, which then has less to learn. Balance over the
    rest of a trajectory requires log F(x_i) = beta * reward - sum_{j >= i} (log p - log q), and the
    mean of that is known at once. The output of the untrained F_phi is subtracted. At the last
    state log F is beta * reward, and nothing is added.
    """

    fixed: tuple[float, ...]  # T
    earned: tuple[float, ...]  # T, times beta: the mean reward minus the state's mean potential
    log_z: tuple[float, float]  # fixed, and times beta

    def of_flow(self, beta: float, index: Tensor) -> Tensor:
        """At states `index` (B,) int64 in [0, T], on the CPU, (B,); zero at T."""
        both = torch.tensor([[*self.fixed, 0.0], [*self.earned, 0.0]])
        return (both[0] + beta * both[1])[index]

    def of_log_z(self, beta: float) -> float:
        return self.log_z[0] + beta * self.log_z[1]


def zero_levels(steps: int) -> Levels:
    """Levels that add nothing."""
    return Levels((0.0,) * steps, (0.0,) * steps, (0.0, 0.0))


def first_levels(
    learner: Learner, path: GaussianPath, sampled: Trajectories, potentials: Tensor
) -> Levels:
    """The levels at which trajectories (B) with these potentials (B, T+1) balance on average.

    The mean is over the trajectories of all processes.
    """
    processes = learner.processes

    def mean(values: Tensor) -> Tensor:
        return processes.gathered(values, sampled.index.tolist()).mean(0)

    states, density = sampled.latents, learner.density
    against_base = learner.keeps_base and sampled.log_p_base is not None
    gaps = []
    for i in range(path.steps):
        step = gaussian.step_from(path, torch.full((len(states),), i, device=states.device))
        backward = (
            sampled.log_p_base[:, i]
            if against_base and sampled.log_p_base is not None
            else gaussian.log_pb(step, states[:, i], states[:, i + 1], density)
        )
        gaps.append(sampled.log_pf[:, i] - backward)
    steps = mean(torch.stack(gaps, 1)).cpu()  # cumsum is deterministic there
    due = [-float(rest) for rest in steps.flip(0).cumsum(0).flip(0)]
    *flows, log_z = mean(_untrained(learner, path, sampled)).tolist()
    fixed = [value - flow for value, flow in zip(due, flows, strict=True)]
    rewards = mean(potentials)
    earned = [float(value) for value in rewards[-1] - rewards[:-1]]
    first, one = states[:, 0], torch.ones((), device=states.device)
    log_p0 = mean(gaussian.log_normal(first, torch.zeros_like(first), one, density))
    before = 0.0 if against_base else float(log_p0)
    return Levels(tuple(fixed), tuple(earned), (due[0] - before - log_z, float(rewards[-1])))


@torch.no_grad()
def _untrained(learner: Learner, path: GaussianPath, sampled: Trajectories) -> Tensor:
    """The outputs of the objective's modules for each step's first state and log Z, (B, T+1)."""
    objective, device = learner.objective, learner.policy.device
    said = torch.zeros(len(sampled.latents), path.steps + 1, device=device)
    size = learner.settings.microbatch_size
    for rows in torch.arange(len(said)).split(size) if len(said) else ():
        embeds = sampled.prompt_embeds[rows].to(device).float()
        if objective.needs.log_z:
            said[rows, -1] = learner.log_z(embeds)
        if objective.needs.log_flow:
            for i in range(path.steps):
                # Not expanded: another memory layout would be compiled again.
                times = path.timesteps[i].to(device).repeat(len(rows))
                said[rows, i] = learner.flow(sampled.latents[rows, i].to(device), times, embeds)
    return learner.scale * said
