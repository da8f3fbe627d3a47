"""Rewards for which a world's target is known exactly."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from dagflow.types import Prompt
from dagflow.worlds.catalogue import world


class Density:
    """log p_target of the state that an image shows, in nats."""

    def __init__(self, name: str) -> None:
        self.world = world(name)

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return self.world.target.log_density(self.world.to_states(images))


class Ratio(Density):
    """log p_target - log p_base of the state that an image shows, in nats."""

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        base = self.world.base.log_density(self.world.to_states(images))
        return super().__call__(images, prompts) - base
