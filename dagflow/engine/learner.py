"""What learns: the policy's weights and the objective's own, under one optimizer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from dagflow.config import UpdateTable
from dagflow.engine.processes import ALONE, Processes
from dagflow.policies.policy import Policy
from dagflow.types import LogDensity, Objective


@dataclass(frozen=True)
class Learner:
    """What learns, and how: the only mutable things of a run."""

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


def set_rates(learner: Learner, factor: float) -> None:
    """Learning rates `factor` times those of the settings."""
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
    """A learner with one AdamW and a group (and learning rate) each for policy and objective."""
    groups = [{"params": policy.parameters(), "lr": settings.learning_rate}]
    if isinstance(objective, nn.Module):
        objective.to(policy.device)
        flow = {"params": list(objective.parameters()), "lr": settings.flow_learning_rate}
        groups += [flow] if flow["params"] else []
    fused = policy.device.type == "cuda"
    optimizer = torch.optim.AdamW(groups, weight_decay=settings.weight_decay, fused=fused)
    return Learner(policy, objective, optimizer, settings, density, processes)
