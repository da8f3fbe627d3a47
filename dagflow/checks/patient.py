"""What is examined, and what the checks so far have loaded of it."""

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

COUNT = 4  # trajectories that the checks sample


@dataclass
class Patient:
    """A run that has not begun. A check may use what the checks that it needs have put here."""

    config: Config
    registry: Registry
    device: torch.device
    folder: Path  # where the run would write
    progress: Callable[[int], None] = lambda _: None  # told how many more steps a check has done
    prompts: tuple[Prompt, ...] = ()
    pipeline: Any = None  # of diffusers, if the model is a Stable Diffusion pipeline
    refusal: Exception | None = None  # why the pipeline makes no policy
    policy: Policy | None = None
    path: GaussianPath | None = None
    objective: Objective | None = None
    learner: Learner | None = None
    trajectories: Trajectories | None = None
    seconds_of_sampling: float = 0.0
    rewards: dict[str, WeightedReward] = field(default_factory=dict)  # by label

    def drawn(self) -> list[Prompt]:
        """`COUNT` prompts, repeated if there are fewer."""
        chosen = self.prompts or (Prompt("a cat"), Prompt("a dog"))
        return [chosen[k % len(chosen)] for k in range(COUNT)]

    def texts(self) -> list[str]:
        """The texts of the same prompts."""
        return [prompt.text for prompt in self.drawn()]

    def policy_and_path(self) -> tuple[Policy, GaussianPath]:
        """For checks that need both."""
        assert self.policy is not None
        assert self.path is not None
        return self.policy, self.path
