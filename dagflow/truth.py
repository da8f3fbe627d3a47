"""In a world, the distance of a model's samples from the exact target."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from dagflow.diffusion.noise import Stream, generator
from dagflow.evaluate import Comparison, Sampler
from dagflow.policies.world import WorldPolicy
from dagflow.worlds.catalogue import World
from dagflow.worlds.distances import Energy, total_variation


@dataclass(frozen=True)
class Distance:
    """The distance of samples from the exact target."""

    total_variation: float  # over the classes, 0 to 1
    energy: float  # over whole states, 0 for equal laws


@dataclass(frozen=True)
class Truth:
    """Samples (N, D) of a world, and the distance of each set from the target.

    The sets are `base`, `trained` and `reference`: the sampler with the target's exact x0hat and
    the same number of steps (a yardstick, not a bound). `states` also has exact samples, `target`.
    """

    world: World
    states: dict[str, Tensor]
    distances: dict[str, Distance]


def against_truth(sampler: Sampler, comparison: Comparison) -> Truth | None:
    """Compare the images of a comparison, two or more, with the exact target.

    None if the model is not a world, or there are fewer than two images.
    """
    policy = sampler.policy
    if not isinstance(policy, WorldPolicy) or len(comparison.prompts) < 2:
        return None
    world, count = policy.world, len(comparison.prompts)
    with policy.exact_target():
        reference = sampler.images(comparison.prompts)
    exact = world.target.sample(count, generator(Stream.TARGET, sampler.seed))
    states = {
        "base": world.to_states(comparison.base.images),
        "trained": world.to_states(comparison.trained.images),
        "reference": world.to_states(reference),
    }
    energy = Energy(exact)
    distances = {
        name: Distance(
            total_variation(world.classify(values), world.class_weights), energy.distance(values)
        )
        for name, values in states.items()
    }
    return Truth(world, {**states, "target": exact}, distances)
