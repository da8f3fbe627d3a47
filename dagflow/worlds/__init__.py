"""Worlds with a known target: base and target are mixtures of Gaussians.

A world is trained like any model, `dagflow train --model world:NAME`, and its samples are compared
with the exact target. Its rewards are registered here like those of any plugin.
"""

from __future__ import annotations

from collections.abc import Mapping

from dagflow.hookspecs import hookimpl
from dagflow.types import Reward, RewardFactory


def density(world: str) -> Reward:
    """Log-density of the world's target, in nats: exp(reward) is the target, with log Z = 0."""
    from dagflow.worlds.rewards import Density

    return Density(world)


def ratio(world: str) -> Reward:
    """log(target / base density), in nats: bounded, and p_base * exp(reward) is the target.

    For objectives that keep the base model as a prior (rtb, residual-db).
    """
    from dagflow.worlds.rewards import Ratio

    return Ratio(world)


@hookimpl
def dagflow_register_rewards() -> Mapping[str, RewardFactory]:
    return {"world-density": density, "world-ratio": ratio}
