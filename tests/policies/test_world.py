from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dagflow import Prompt, UserError
from dagflow.config import LoraTable
from dagflow.evaluate import Sampler
from dagflow.policies.world import WorldPolicy
from dagflow.worlds.catalogue import WORLDS, world
from dagflow.worlds.distances import Energy, total_variation

CPU = torch.device("cpu")


def policy(name: str = "gaussians-2d") -> WorldPolicy:
    result = WorldPolicy(world(name), CPU)
    result.add_weights(LoraTable(), seed=0)
    return result


def states(one: WorldPolicy, count: int = 4000, steps: int = 50) -> torch.Tensor:
    sampler = Sampler(one, one.path(steps), 1000, seed=0)
    return one.world.to_states(sampler.images([Prompt("x")] * count))


@pytest.mark.parametrize("name", WORLDS)
def test_the_samplers_of_base_and_exact_target_draw_their_mixtures(name: str) -> None:
    one = policy(name)
    with one.base():
        base = states(one)
    with one.exact_target():
        exact = states(one)
    for drawn, mixture in ((base, one.world.base), (exact, one.world.target)):
        again = mixture.sample(4000, torch.Generator().manual_seed(3))
        other = mixture.sample(4000, torch.Generator().manual_seed(4))
        chance = abs(Energy(other).distance(again))
        assert Energy(again).distance(drawn) < 0.01 + 3 * chance
    assert total_variation(one.world.classify(exact), one.world.class_weights) < 0.04
    assert total_variation(one.world.classify(base), one.world.class_weights) > 0.2


def test_the_path_begins_in_noise_and_ends_before_none() -> None:
    path = policy().path(20)
    assert path.steps == 20
    assert float(path.alpha[0]) < 1e-3
    assert 0 < float(path.sigma[-1]) < 0.08
    assert (path.alpha.diff() > 0).all()
    with pytest.raises(UserError, match="999"):
        policy().path(1000)


def test_fresh_weights_change_nothing_and_base_hides_trained_ones() -> None:
    one = policy()
    x, t, embeds = torch.randn(5, 2, 1, 1), torch.full((5,), 300), one.encode(["x"] * 5)
    fresh = one.predict_text(x, t, embeds)
    with one.base():
        assert torch.equal(one.predict_text(x, t, embeds), fresh)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    assert not torch.allclose(one.predict_text(x, t, embeds), fresh)
    with one.base():
        assert torch.equal(one.predict_text(x, t, embeds), fresh)


def test_weights_are_saved_and_loaded(tmp_path: Path) -> None:
    one, other = policy(), WorldPolicy(world("gaussians-2d"), CPU)
    with torch.no_grad():
        for parameter in one.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    one.save_weights(tmp_path)
    other.load_weights(tmp_path)
    x, t, embeds = torch.randn(5, 2, 1, 1), torch.full((5,), 300), one.encode(["x"] * 5)
    assert torch.equal(one.predict_text(x, t, embeds), other.predict_text(x, t, embeds))
    with pytest.raises(UserError, match="no weights for this world"):
        WorldPolicy(world("digits"), CPU).load_weights(tmp_path)
