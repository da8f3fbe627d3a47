from __future__ import annotations

import pytest
import torch
from torch.distributions import Independent, Normal

from dagflow import PolicySpec, Transitions, UserError
from dagflow.diffusion import path as gaussian
from dagflow.diffusion.path import GaussianPath
from dagflow.objectives.balance import KL, DetailedBalance
from dagflow.objectives.flow_network import heads
from dagflow.objectives.flows import flow_network
from dagflow.objectives.regression import square

SPEC = PolicySpec(latent_channels=4, cross_attention_dim=96)


def transitions(count: int = 6, **changes: object) -> Transitions:
    source = torch.Generator().manual_seed(0)
    columns = ("log_pf", "log_pf_old", "log_pb", "log_flow", "log_flow_next")
    values = {name: torch.randn(count, generator=source) for name in columns}
    values["log_pf_old"] = values["log_pf"] + 0.01 * values["log_pf_old"]
    return Transitions(**{**values, "beta": 1.0, "final_beta": 2.0, "scale": 1.0, **changes})


def db(**options: object) -> DetailedBalance:
    settings = {"loss": square, "against_base": False, "returns": 0.0, **options}
    return DetailedBalance(SPEC, (8,), **settings)


def kl(**options: object) -> KL:
    settings = {"clip": 0.005, "coefficient": None, "normalise": False, "returns": 0.0, **options}
    return KL(SPEC, (8,), **settings)


@pytest.mark.parametrize("objective", [db(), kl()], ids=["db", "kl"])
def test_loss_is_zero_at_an_exact_balance(objective: torch.nn.Module) -> None:
    """All data is one point: then p with x0hat = that point is q's exact reverse, by Bayes' rule,

    and the flow is the marginal density N(alpha_t point, sigma_t^2).
    """
    betas = torch.linspace(0.03, 0.11, 1000, dtype=torch.float64) ** 2
    squared = (1 - betas).cumprod(0)[[*range(901, 0, -100), 0]]
    path = GaussianPath(squared.sqrt(), (1 - squared).sqrt(), torch.zeros(11, dtype=torch.int64))
    point = torch.randn(1, 1, 2, 2)

    def marginal(x: torch.Tensor, state: int) -> torch.Tensor:
        law = Independent(Normal(path.alpha[state] * point, path.sigma[state]), 3)
        return law.log_prob(x.double()).float()

    for index in range(path.steps):
        step = gaussian.step_from(path, torch.full((5,), index))
        x, x_next = torch.randn(5, 1, 2, 2), torch.randn(5, 1, 2, 2)
        log_pf = gaussian.log_pf(step, x, x_next, point.expand(5, -1, -1, -1), "sum")
        batch = transitions(
            log_pf=log_pf,
            log_pf_old=log_pf,
            log_pb=gaussian.log_pb(step, x, x_next, "sum"),
            log_flow=marginal(x, index),
            log_flow_next=marginal(x_next, index + 1),
        )
        _, metrics = objective(batch)
        size = batch.log_pf.abs().max()
        assert metrics["residual"].abs().max() < 1e-5 * size + 1e-3


def test_a_wrong_flow_is_noticed() -> None:
    exact = transitions(log_flow=torch.zeros(6), log_flow_next=torch.zeros(6), log_pb=torch.ones(6))
    wrong = transitions(
        log_pf=torch.ones(6),
        log_flow=torch.full((6,), 0.5),
        log_pb=torch.ones(6),
        log_flow_next=torch.zeros(6),
    )
    right = transitions(
        log_pf=torch.ones(6),
        log_flow=torch.zeros(6),
        log_pb=torch.ones(6),
        log_flow_next=torch.zeros(6),
    )
    objective = db()
    assert objective(right)[0].abs().max() == 0
    torch.testing.assert_close(objective(wrong)[0], torch.full((6,), 0.25))
    assert objective(exact)[0].abs().max() > 0


def test_kl_gradients_are_the_clipped_policy_gradient_and_half_of_db() -> None:
    log_pf = torch.randn(6).requires_grad_()
    log_flow = torch.randn(6).requires_grad_()
    batch = transitions(log_pf=log_pf, log_flow=log_flow)
    shift = torch.tensor([0.0, 0.001, -0.001, 0.02, -0.02, 0.004])
    batch = transitions(log_pf=log_pf, log_flow=log_flow, log_pf_old=log_pf.detach() - shift)
    loss, metrics = kl()(batch)
    loss.sum().backward()

    delta = (log_flow + log_pf - batch.log_flow_next - batch.log_pb).detach()
    ratio = shift.exp()
    # max(b r, b clip(r)): no gradient where the clipped branch is larger
    held = ((shift > 0.005) & (delta < 0)) | ((shift < -0.005) & (delta > 0))
    expected = torch.where(held, 0.0, 2.0 * delta * ratio)
    torch.testing.assert_close(log_pf.grad, expected)
    torch.testing.assert_close(log_flow.grad, 2 * delta)
    assert float(metrics["clip_fraction"].mean()) == pytest.approx(2 / 6)


@pytest.mark.parametrize("normalise", [False, True])
def test_kl_on_the_sum_scale_has_gradients_of_the_same_run_times_d_squared(normalise) -> None:
    values = 64.0
    grads = []
    for scale in (1.0, values):
        base = transitions()
        log_pf = (base.log_pf * scale).requires_grad_()
        scaled = {
            name: getattr(base, name) * scale
            for name in ("log_pf_old", "log_pb", "log_flow", "log_flow_next")
        }
        window = transitions(log_pf=log_pf.detach(), scale=scale, **scaled)
        batch = transitions(log_pf=log_pf, scale=scale, window=window, **scaled)
        objective = kl(coefficient=1.0, normalise=normalise)
        (gradient,) = torch.autograd.grad(objective(batch)[0].sum(), log_pf)
        # a parameter moves log_pf by `scale` times as much on the larger scale
        grads.append(gradient * scale)
    torch.testing.assert_close(grads[1], grads[0] * values**2)


def test_normalised_cost_is_centred_on_the_others_and_clipped() -> None:
    window = transitions(50)
    outlier = window.log_flow.clone()
    outlier[0] = 1000.0
    window = transitions(50, log_flow=outlier)
    log_pf = window.log_pf.clone().requires_grad_()
    batch = transitions(
        50, log_flow=outlier, log_pf=log_pf, log_pf_old=log_pf.detach(), window=None
    )
    window = transitions(50, log_flow=outlier, log_pf_old=log_pf.detach())
    batch = transitions(
        50, log_flow=outlier, log_pf=log_pf, log_pf_old=log_pf.detach(), window=window
    )
    loss, _ = kl(normalise=True, coefficient=1.0, clip=0.5)(batch)
    (cost,) = torch.autograd.grad(loss.sum(), log_pf)
    delta = (outlier + log_pf - batch.log_flow_next - batch.log_pb).detach()
    others = torch.stack([delta[torch.arange(50) != i].mean() for i in range(50)])
    expected = ((delta - others) / delta.std(correction=0)).clamp(-5, 5)
    torch.testing.assert_close(cost, expected, rtol=1e-4, atol=1e-4)
    assert float(cost[0]) == 5.0


def test_a_window_of_one_transition_has_nothing_to_be_normalised_by() -> None:
    log_pf = transitions(1).log_pf
    small = {"log_pf_old": log_pf, "log_flow": torch.ones(1) - log_pf}
    small |= {"log_flow_next": torch.zeros(1), "log_pb": torch.zeros(1)}
    batch = transitions(1, **small, window=transitions(1, **small))  # whose residual is 1
    torch.testing.assert_close(*(kl(normalise=flag)(batch)[0] for flag in (True, False)))


def test_flow_network_starts_at_zero_and_sees_state_time_and_prompt() -> None:
    torch.manual_seed(0)
    flow = flow_network(SPEC, (8, 16))
    latents, times = torch.randn(3, 4, 16, 16), torch.tensor([1, 501, 951])
    embeds = torch.randn(3, 7, 96)
    assert torch.equal(flow(latents, times, embeds), torch.zeros(3))
    torch.nn.init.normal_(flow.head.weight)
    value = flow(latents, times, embeds)
    assert value.shape == (3,)
    for other in (
        flow(latents + 1, times, embeds),
        flow(latents, times + 10, embeds),
        flow(latents, times, embeds.flip(1) + 1),
    ):
        assert not torch.allclose(value, other)


def test_no_head_of_attention_is_narrow_and_all_divide_their_level() -> None:
    found = {width: heads(width) for width in (8, 16, 32, 48, 56, 64, 128, 256)}
    assert found == {8: 1, 16: 1, 32: 2, 48: 3, 56: 2, 64: 4, 128: 4, 256: 4}


def test_flow_network_refuses_widths_that_do_not_divide() -> None:
    with pytest.raises(UserError, match="multiples of 8"):
        flow_network(SPEC, (12,))
