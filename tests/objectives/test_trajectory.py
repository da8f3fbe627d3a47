"""Objectives on whole trajectories: zero at an exact balance, and what leaves them unchanged."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dagflow import PolicySpec, Transitions
from dagflow.diffusion import path as gaussian
from dagflow.diffusion.path import GaussianPath
from dagflow.objectives.balance import KL, DetailedBalance, advantages
from dagflow.objectives.regression import LOSSES, square
from dagflow.objectives.trajectory import SubTrajectoryBalance, TrajectoryBalance, VarGrad

SPEC = PolicySpec(latent_channels=1, cross_attention_dim=8, latent_size=(2, 2))
COUNT = 6
LOG_Z = 1.5


def exact_balance() -> Transitions:
    """All data is one point, so p with x0hat = that point is q's exact reverse (Bayes' rule).

    The flow is Z times the marginal N(alpha_t point, sigma_t^2), the reward log of its last.
    """
    alpha = torch.linspace(0.0, 0.98, 7, dtype=torch.float64)
    path = GaussianPath(alpha, (1 - alpha**2).sqrt(), torch.arange(600, -1, -100))
    source = torch.Generator().manual_seed(0)
    point = torch.randn(1, 1, 2, 2, generator=source)
    states = torch.randn(path.steps + 1, COUNT, 1, 2, 2, generator=source)
    log_pf, log_pb, flows = [], [], []
    for i in range(path.steps + 1):
        here = gaussian.state_at(path, torch.full((COUNT,), i))
        marginal = gaussian.log_normal(states[i], here.alpha * point, here.sigma**2, "sum")
        flows.append(LOG_Z + marginal)
        if i < path.steps:
            step = gaussian.step_from(path, torch.full((COUNT,), i))
            x, x_next = states[i], states[i + 1]
            log_pf.append(gaussian.log_pf(step, x, x_next, point.expand_as(x), "sum"))
            log_pb.append(gaussian.log_pb(step, x, x_next, "sum"))
    one = torch.ones(())
    return Transitions(
        log_pf=torch.stack(log_pf, 1),
        log_pf_old=torch.stack(log_pf, 1),
        log_pb=torch.stack(log_pb, 1),
        log_flow=torch.stack(flows[:-1], 1),
        log_flow_next=torch.stack(flows[1:], 1),
        beta=1.0,
        final_beta=1.0,
        scale=1.0,
        log_reward=flows[-1],
        trajectory=torch.arange(COUNT),
        prompt=torch.zeros(COUNT, dtype=torch.int64),
        log_p0=gaussian.log_normal(states[0], torch.zeros_like(states[0]), one, "sum"),
        log_z=torch.full((COUNT,), LOG_Z),
    )


OBJECTIVES = {
    "tb": TrajectoryBalance(SPEC, square, against_base=False),
    "vargrad": VarGrad(square),
    "subtb": SubTrajectoryBalance(SPEC, (8,), square, 0.9),
    "db": DetailedBalance(SPEC, (8,), square, False, returns=0.95),
    "kl": KL(SPEC, (8,), 0.2, 1.0, False, returns=0.95),
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_vanish_at_an_exact_balance(name: str) -> None:
    batch = exact_balance()
    leaf = batch.log_pf.clone().requires_grad_()
    loss, metrics = OBJECTIVES[name](replace(batch, log_pf=leaf))
    loss.sum().backward()
    assert leaf.grad is not None
    assert metrics["residual"].abs().max() < 1e-4
    assert loss.abs().max() < 1e-4
    assert leaf.grad.abs().max() < 1e-3


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_less_likely_step_is_noticed(name: str) -> None:
    batch = exact_balance()
    moved = batch.log_pf - 0.5 * torch.arange(COUNT)[:, None]
    loss, _ = OBJECTIVES[name](replace(batch, log_pf=moved, log_pf_old=moved))
    assert loss.abs().max() > 0.1


def test_a_constant_in_the_reward_changes_log_z_alone() -> None:
    batch = replace(exact_balance(), log_pf=torch.randn(COUNT, 6))
    assert batch.log_reward is not None
    assert batch.log_z is not None
    more = replace(batch, log_reward=batch.log_reward + 3)
    torch.testing.assert_close(OBJECTIVES["vargrad"](more)[0], OBJECTIVES["vargrad"](batch)[0])
    shifted = replace(more, log_z=batch.log_z + 3)
    torch.testing.assert_close(OBJECTIVES["tb"](shifted)[0], OBJECTIVES["tb"](batch)[0])
    assert not torch.allclose(OBJECTIVES["tb"](more)[0], OBJECTIVES["tb"](batch)[0])


def test_vargrad_keeps_prompts_apart() -> None:
    batch = replace(exact_balance(), log_pf=torch.randn(COUNT, 6))
    assert batch.log_reward is not None
    prompt = torch.tensor([0, 0, 0, 3, 3, 3])
    apart = replace(batch, prompt=prompt)
    of_one = replace(apart, log_reward=batch.log_reward + 7 * (prompt == 3))
    torch.testing.assert_close(VarGrad(square)(of_one)[0], VarGrad(square)(apart)[0])
    assert not torch.allclose(
        VarGrad(square)(replace(of_one, prompt=torch.zeros(6).long()))[0],
        VarGrad(square)(batch)[0],
    )


def test_relative_balance_holds_for_the_base_model_tilted_by_nothing() -> None:
    objective = TrajectoryBalance(SPEC, square, against_base=True)
    log_pf = torch.randn(COUNT, 6)
    batch = replace(exact_balance(), log_pf=log_pf, log_p_base=log_pf, log_reward=torch.zeros(6))
    assert objective(replace(batch, log_z=torch.zeros(6)))[0].abs().max() == 0
    assert objective(batch)[0].min() > 1


def test_subtb_is_tb_for_the_whole_and_db_for_single_steps() -> None:
    batch = replace(exact_balance(), log_pf=torch.randn(COUNT, 6))
    whole = SubTrajectoryBalance(SPEC, (8,), square, 1e3)(batch)[0]
    torch.testing.assert_close(whole, OBJECTIVES["tb"](batch)[0], rtol=1e-2, atol=1e-2)
    steps = SubTrajectoryBalance(SPEC, (8,), square, 1e-4)(batch)[0]
    single = DetailedBalance(SPEC, (8,), square, False, returns=0.0)(batch)[0]
    assert batch.log_z is not None
    assert batch.log_p0 is not None
    assert batch.log_flow is not None
    source = (batch.log_z + batch.log_p0 - batch.log_flow[:, 0]) ** 2
    expected = (single.sum(1) + source) / 7
    torch.testing.assert_close(steps, expected, rtol=1e-3, atol=1e-3)


def test_advantages_are_the_discounted_sums_of_what_follows() -> None:
    delta = torch.tensor([[1.0, 2.0, 4.0]])
    torch.testing.assert_close(advantages(delta, 0.5), torch.tensor([[3.0, 4.0, 4.0]]))
    torch.testing.assert_close(advantages(delta, 1.0).sum(), torch.tensor(7.0 + 6 + 4))


@pytest.mark.parametrize("name", LOSSES)
def test_losses_are_squares_near_zero_and_grow_away_from_it(name: str) -> None:
    delta = torch.linspace(-30, 30, 601, dtype=torch.float64).requires_grad_()
    loss = LOSSES[name](delta)
    (slope,) = torch.autograd.grad(loss.sum(), delta)
    assert loss.min() == loss[300] < 1e-20
    small = torch.tensor([-1e-3, 1e-3], dtype=torch.float64)
    torch.testing.assert_close(LOSSES[name](small), small**2, rtol=2e-3, atol=0)
    assert (slope[301:] > 0).all()
    assert (slope[:300] < 0).all()
    assert loss.isfinite().all()


def test_linex_is_steeper_where_the_policy_misses_the_target() -> None:
    below, above = LOSSES["linex"](torch.tensor([-3.0, 3.0]))
    assert below > 4 * above
