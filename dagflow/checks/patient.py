"""What is examined, and what the checks so far have made of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from dagflow.config import Config
from dagflow.diffusion.path import GaussianPath
from dagflow.engine.learner import Learner
from dagflow.engine.scoring import WeightedReward
from dagflow.plugins import Registry
from dagflow.policies.policy import Policy
from dagflow.types import Objective, Prompt, Trajectories

COUNT = 4  # trajectories that are sampled to be looked at


@dataclass
class Patient:
    """A run that is not begun. A check may use what those that it needs have put here."""

    config: Config
    registry: Registry
    device: torch.device
    folder: Path  # where the run would write
    progress: Callable[[int], None] = lambda _: None  # so many steps of a check are done
    prompts: tuple[Prompt, ...] = ()
    pipeline: Any = None  # of diffusers, where the model is one of Stable Diffusion's kind
    refusal: Exception | None = None  # why the pipeline makes no policy
    policy: Policy | None = None
    path: GaussianPath | None = None
    objective: Objective | None = None
    learner: Learner | None = None
    trajectories: Trajectories | None = None
    seconds_of_sampling: float = 0.0
    rewards: dict[str, WeightedReward] = field(default_factory=dict)  # by label

    def drawn(self) -> list[Prompt]:
        """`COUNT` prompts, which go round where there are fewer."""
        chosen = self.prompts or (Prompt("a cat"), Prompt("a dog"))
        return [chosen[k % len(chosen)] for k in range(COUNT)]

    def texts(self) -> list[str]:
        """Of the same prompts."""
        return [prompt.text for prompt in self.drawn()]

    def policy_and_path(self) -> tuple[Policy, GaussianPath]:
        """For checks that need both."""
        assert self.policy is not None
        assert self.path is not None
        return self.policy, self.path
