from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from dagflow import Needs, Prompt, UserError
from dagflow.config import resolve
from dagflow.engine.temperature import beta_for_divergence, log_weights, temperature
from dagflow.evaluate import Sampler
from dagflow.policies.world import WorldPolicy
from dagflow.prepare import check_needs
from dagflow.worlds.catalogue import world


def test_slope_and_log_z_of_samples_in_proportion() -> None:
    source = torch.Generator().manual_seed(0)
    rewards = torch.randn(400, generator=source)
    prompts = [Prompt("a")] * 200 + [Prompt("b")] * 200
    log_z = torch.tensor([1.0] * 200 + [5.0] * 200)
    found = temperature(2.5 * rewards - log_z, rewards, prompts, beta=2.5)
    assert found["slope"] == pytest.approx(2.5, rel=1e-4)
    assert found["log_z"] == pytest.approx(3.0, rel=1e-4)
    assert found["ess"] == pytest.approx(1.0, rel=1e-4)


def test_a_model_that_ignores_the_reward_has_slope_zero_and_few_effective_samples() -> None:
    rewards = 3 * torch.randn(500, generator=torch.Generator().manual_seed(0))
    found = temperature(torch.zeros(500), rewards, [Prompt("a")] * 500, beta=1.0)
    assert found["slope"] == 0
    assert found["ess"] < 0.1


def test_one_image_of_each_prompt_says_nothing() -> None:
    found = temperature(torch.zeros(3), torch.ones(3), [Prompt(t) for t in "abc"], 1.0)
    assert found == {}


def test_importance_weights_find_the_normalising_constant_of_the_exact_sampler() -> None:
    """The target of a world is normalised, so log Z = log E_q[...] = 0 for any sampler."""
    policy = WorldPolicy(world("gaussians-1d"), torch.device("cpu"))
    sampler = Sampler(policy, policy.path(50), 2000, seed=0)
    prompts = [Prompt("x")] * 2000
    with policy.exact_target():
        ((part, _),) = sampler.batches(prompts)
    rewards = policy.world.target.log_density(part.latents[:, -1].flatten(1))
    found = temperature(log_weights(part, sampler.path, "sum"), rewards, prompts, 1.0)
    assert abs(found["log_z"]) < 0.1
    assert found["ess"] > 0.5


def test_beta_has_the_divergence_that_was_asked_for() -> None:
    """For normal rewards KL(target || base) = beta^2 variance / 2."""
    rewards = 2 * torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt("a")] * 200_000
    assert beta_for_divergence(rewards, prompts, 0.5) == pytest.approx(0.5, rel=0.02)
    assert beta_for_divergence(rewards, prompts, 2.0) == pytest.approx(1.0, rel=0.05)


def test_what_differs_between_prompts_is_no_divergence() -> None:
    rewards = 2 * torch.randn(20_000, generator=torch.Generator().manual_seed(0))
    prompts = [Prompt(str(k % 4)) for k in range(20_000)]
    offsets = 100 * (torch.arange(20_000) % 4)
    found = beta_for_divergence(rewards + offsets, prompts, 0.5)
    assert found == pytest.approx(0.5, rel=0.05)


def test_a_prompt_whose_rewards_are_close_counts_as_any_other() -> None:
    prompts = [Prompt(name) for name in "abababab"]
    rewards = torch.linspace(0, 10, 8) * torch.tensor([1.0, 1e-3]).repeat(4)
    beta = beta_for_divergence(rewards, prompts, 1.2)
    tilted = torch.stack([(beta * part).log_softmax(0) for part in (rewards[::2], rewards[1::2])])
    kl = (tilted.exp() * tilted).sum(1) + math.log(4)
    assert float(kl.mean()) == pytest.approx(1.2, abs=1e-3)


def test_a_divergence_that_so_few_images_cannot_show_is_refused() -> None:
    with pytest.raises(UserError, match="at most") as caught:
        beta_for_divergence(torch.arange(8.0), [Prompt("a")] * 8, 3.0)
    assert f"{math.log(8):.2f} at most" in str(caught.value)
    with pytest.raises(UserError, match=r"0\.00 at most"):
        beta_for_divergence(torch.ones(8), [Prompt("a")] * 8, 0.1)


@pytest.mark.parametrize(
    ("texts", "rollout", "replay", "most"),
    [
        ("a", (16, 1), {}, 16),
        ("a", (16, 1), {"backward": 0.5, "images": "given"}, 8),
        ("ab", (16, 4), {}, 8),
        ("abcdefgh", (16, 4), {}, 4),
        ("aaaaaaaaab", (16, 8), {}, 16),  # both that are drawn are "a"
    ],
)
def test_a_divergence_that_no_rewards_can_show_is_refused_beforehand(
    texts: str, rollout: tuple[int, int], replay: dict[str, Any], most: int
) -> None:
    def check(nats: float) -> None:
        tree = {
            "objective": {"name": "rtb", "beta": f"auto:KL={nats:.3f}"},
            "rollout": {"samples_per_epoch": rollout[0], "images_per_prompt": rollout[1]},
            "update": {"batch_size": 4},
            "replay": replay,
        }
        needs = Needs(log_p_base=True, trajectories=True)
        check_needs(resolve(tree), needs, [Prompt(text) for text in texts])

    check(math.log(most) - 0.01)
    with pytest.raises(UserError, match=f"can show {math.log(most):.2f} nats at most"):
        check(math.log(most) + 0.01)
