from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dagflow import Transitions
from dagflow.objectives.groups import advantages
from dagflow.objectives.policy_gradient import ClippedPolicyGradient

PROMPT = torch.tensor([0, 0, 0, 0, 4, 4, 4, 4])
TRAJECTORY = torch.tensor([0, 0, 1, 1, 4, 4, 5, 5])


def batch(**changes: object) -> Transitions:
    earned = torch.tensor([1.0, 1.0, 3.0, 3.0, 10.0, 10.0, 30.0, 30.0])
    zeros = torch.zeros(8)
    whole = Transitions(
        log_pf=zeros,
        log_pf_old=zeros,
        log_pb=None,
        log_flow=None,
        log_flow_next=None,
        beta=1.0,
        final_beta=1.0,
        scale=1.0,
        log_reward=earned,
        trajectory=TRAJECTORY,
        prompt=PROMPT,
    )
    whole = replace(whole, **changes)  # type: ignore[arg-type]
    return replace(whole, window=whole)


def test_advantages_are_standardised_within_each_prompt() -> None:
    expected = torch.tensor([-1.0, -1, 1, 1, -1, -1, 1, 1])
    for grouped in (True, False):
        torch.testing.assert_close(advantages(batch(), grouped), expected, rtol=0, atol=1e-4)


def test_a_trajectory_counts_once_however_many_of_its_transitions_are_there() -> None:
    earned = torch.tensor([1.0, 1.0, 1.0, 3.0, 10.0, 10.0, 30.0, 30.0])
    found = advantages(
        batch(trajectory=torch.tensor([0, 0, 0, 1, 4, 4, 5, 5]), log_reward=earned), True
    )
    torch.testing.assert_close(found[[0, 3]], torch.tensor([-1.0, 1.0]), rtol=0, atol=1e-4)


def test_alone_with_its_prompt_ddpo_takes_all_others_and_grpo_nothing() -> None:
    alone = batch(prompt=torch.tensor([0, 0, 1, 1, 4, 4, 5, 5]))
    assert advantages(alone, True).abs().max() < 1e-4
    assert advantages(alone, False)[0] < -0.5


@pytest.mark.parametrize("grouped", [True, False])
def test_scale_and_offset_of_the_reward_change_nothing(grouped: bool) -> None:
    plain = batch()
    assert plain.log_reward is not None
    other = batch(log_reward=5 * plain.log_reward + 100)
    torch.testing.assert_close(
        advantages(other, grouped), advantages(plain, grouped), rtol=0, atol=1e-3
    )


def test_the_gradient_is_the_policy_gradient_until_it_is_clipped() -> None:
    leaf = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.0, -0.5, 0.0, 0.5]).requires_grad_()
    loss, metrics = ClippedPolicyGradient(0.2, grouped=True)(replace(batch(), log_pf=leaf))
    loss.sum().backward()
    assert leaf.grad is not None
    torch.testing.assert_close(leaf.grad[:3], torch.tensor([1.0, 1, -1]), rtol=0, atol=1e-3)
    assert leaf.grad[3] == leaf.grad[5] == leaf.grad[7] == 0  # moved too far already
    assert metrics["clip_fraction"].mean() == 3 / 8


def test_the_penalty_is_the_divergence_from_the_base_model() -> None:
    """E_p[e^d - d - 1] with d = log p_base - log p is KL(p || p_base), here of two normals."""
    x = torch.randn(200_000, generator=torch.Generator().manual_seed(0))
    log_pf, log_p_base = -(x**2) / 2, -((x - 0.3) ** 2) / 2
    one = replace(batch(), log_pf=log_pf, log_p_base=log_p_base)
    penalty = ClippedPolicyGradient(0.2, True, 1.0)._penalty(one)
    assert penalty.mean() == pytest.approx(0.3**2 / 2, rel=0.03)
