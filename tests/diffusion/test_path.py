from __future__ import annotations

import pytest
import torch
from diffusers import DDIMScheduler
from torch.distributions import Independent, Normal

from dagflow.diffusion import path as gaussian
from dagflow.diffusion.path import GaussianPath

SHAPE = (4, 3, 5)


@pytest.fixture
def path() -> GaussianPath:
    """Ten steps of Stable Diffusion's schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    squared = (1 - betas).cumprod(0)[[*range(901, 0, -100), 0]]
    timesteps = torch.tensor([*range(901, 0, -100), 0])
    return GaussianPath(squared.sqrt(), (1 - squared).sqrt(), timesteps)


def states(count: int = 2, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("index", [0, 4, 9])
def test_log_pf_is_the_density_of_the_closed_form_posterior(path: GaussianPath, index: int) -> None:
    """q(x_s | x_t, x_0) by multiplying the two Gaussians, not by the formula under test."""
    x, x0 = states(seed=1), states(seed=2)
    alpha_t, alpha_s = path.alpha[index], path.alpha[index + 1]
    sigma_t, sigma_s = path.sigma[index], path.sigma[index + 1]
    a = alpha_t / alpha_s
    v = sigma_t**2 - a**2 * sigma_s**2
    precision = a**2 / v + 1 / sigma_s**2
    mean = (a / v * x.double() + alpha_s / sigma_s**2 * x0.double()) / precision
    x_next = (mean + precision**-0.5 * states(seed=3)).float()
    step = gaussian.step_from(path, torch.full((2,), index))
    expected = Independent(Normal(mean, precision**-0.5), 3).log_prob(x_next.double())
    found = gaussian.log_pf(step, x, x_next, x0, "sum")
    torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("index", [0, 4, 9])
def test_log_pb_is_the_density_of_the_noising_process(path: GaussianPath, index: int) -> None:
    a = path.alpha[index] / path.alpha[index + 1]
    deviation = (path.sigma[index] ** 2 - a**2 * path.sigma[index + 1] ** 2).sqrt()
    x_next = states(seed=1)
    x = (a * x_next + deviation * states(seed=2)).float()
    step = gaussian.step_from(path, torch.full((2,), index))
    law = Independent(Normal(a * x_next.double(), deviation), 3)
    found = gaussian.log_pb(step, x, x_next, "sum")
    torch.testing.assert_close(found, law.log_prob(x.double()).float(), rtol=1e-5, atol=1e-3)


def test_mean_density_is_the_sum_over_the_number_of_values(path: GaussianPath) -> None:
    step = gaussian.step_from(path, torch.tensor([3, 8]))
    x, x_next, x0 = states(seed=1), states(seed=2), states(seed=3)
    values = x[0].numel()
    mean = gaussian.log_pf(step, x, x_next, x0, "mean")
    total = gaussian.log_pf(step, x, x_next, x0, "sum")
    torch.testing.assert_close(mean * values, total)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
def test_a_step_is_ddim_with_eta_one(prediction_type: str) -> None:
    scheduler = DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )
    scheduler.alphas_cumprod = scheduler.alphas_cumprod.double()  # its float32 cancels digits
    scheduler.final_alpha_cumprod = scheduler.final_alpha_cumprod.double()
    scheduler.set_timesteps(20)
    times = scheduler.timesteps.tolist()
    squared = torch.tensor(
        [*(scheduler.alphas_cumprod[t] for t in times), scheduler.alphas_cumprod[0]]
    )
    path = GaussianPath(squared.sqrt(), (1 - squared).sqrt(), torch.tensor([*times, 0]))
    for index, time in enumerate(times):
        x, output, noise = (states(seed=k + index) for k in (1, 50, 100))
        theirs = scheduler.step(output, time, x, eta=1.0, variance_noise=noise).prev_sample
        step = gaussian.step_from(path, torch.full((2,), index))
        x0 = gaussian.predicted_x0(step.state, x, output, prediction_type)
        ours = gaussian.policy_mean(step, x, x0) + step.variance.sqrt() * noise
        assert (ours - theirs).abs().max() < 1e-5


def test_unknown_prediction_type_is_refused(path: GaussianPath) -> None:
    state = gaussian.state_at(path, torch.tensor([0]))
    with pytest.raises(ValueError, match="unknown prediction type 'flow'"):
        gaussian.predicted_x0(state, states(1), states(1), "flow")
