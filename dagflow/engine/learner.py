"""What learns: the policy's weights and the objective's own, under one optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from dagflow.config import UpdateTable
from dagflow.engine.processes import ALONE, Processes
from dagflow.errors import blaming
from dagflow.policies.policy import Policy
from dagflow.types import FlowObjective, LogDensity, Objective, PartitionObjective


@dataclass(frozen=True)
class Learner:
    """What learns, and how: the only mutable parts of a run."""

    policy: Policy
    objective: Objective
    optimizer: torch.optim.AdamW
    settings: UpdateTable
    density: LogDensity
    processes: Processes = ALONE

    @property
    def objective_parameters(self) -> list[nn.Parameter]:
        return list(self.objective.parameters()) if isinstance(self.objective, nn.Module) else []

    @property
    def keeps_base(self) -> bool:
        """Whether the target is the base model's density times exp(beta * reward)."""
        return self.objective.needs.log_p_base and not self.objective.needs.on_policy

    @property
    def scale(self) -> float:
        """1 for log-densities that are means over the D latent values, D for sums."""
        channels, height, width = self.policy.latent_shape
        return float(channels * height * width) if self.density == "sum" else 1.0

    @property
    def who(self) -> str:
        """The objective, for messages."""
        return f"objective {type(self.objective).__name__}"

    def flow(self, latents: Tensor, times: Tensor, embeds: Tensor) -> Tensor:
        """The objective's flow network at M states, (M,)."""
        with blaming(self.who, torch.OutOfMemoryError):
            said = cast(FlowObjective, self.objective).flow(latents, times, embeds)
            return _one_each("flow", said, len(latents))

    def log_z(self, embeds: Tensor) -> Tensor:
        """The objective's module for log Z at the prompts of B trajectories, (B,)."""
        with blaming(self.who, torch.OutOfMemoryError):
            said = cast(PartitionObjective, self.objective).log_z(embeds)
            return _one_each("log_z", said, len(embeds))


def _one_each(module: str, said: Tensor, count: int) -> Tensor:
    if said.shape != (count,):
        raise ValueError(f"`{module}` returned the shape {tuple(said.shape)}, not ({count},)")
    return said


def set_rates(learner: Learner, factor: float) -> None:
    """Set the learning rates to `factor` times those of the settings."""
    settings = learner.settings
    rates = (settings.learning_rate, settings.flow_learning_rate)
    for group, rate in zip(learner.optimizer.param_groups, rates, strict=False):
        group["lr"] = factor * rate


def make_learner(
    policy: Policy,
    objective: Objective,
    settings: UpdateTable,
    density: LogDensity,
    processes: Processes = ALONE,
) -> Learner:
    """A learner with one AdamW; policy and objective each have a group and a learning rate."""
    groups = [{"params": policy.parameters(), "lr": settings.learning_rate}]
    if isinstance(objective, nn.Module):
        objective.to(policy.device)
        flow = {"params": list(objective.parameters()), "lr": settings.flow_learning_rate}
        groups += [flow] if flow["params"] else []
    fused = policy.device.type == "cuda"
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=fused)
    return Learner(policy, objective, optimizer, settings, density, processes)
