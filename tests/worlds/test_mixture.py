from __future__ import annotations

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from dagflow import UserError
from dagflow.worlds.catalogue import WORLDS, world
from dagflow.worlds.distances import Energy, total_variation
from dagflow.worlds.mixture import Mixture

MIXTURE = Mixture(
    torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64),
    torch.tensor([[-1.0, 0.5], [0.3, -0.7], [1.2, 1.0]], dtype=torch.float64),
    0.4,
)


def law(mixture: Mixture, alpha: float = 1.0, sigma: float = 0.0) -> MixtureSameFamily:
    """The law of alpha x_0 + sigma noise, by torch's own distributions."""
    spread = (alpha**2 * mixture.std**2 + sigma**2) ** 0.5
    parts = Independent(Normal(alpha * mixture.means, spread), 1)
    return MixtureSameFamily(Categorical(mixture.weights), parts)


def test_log_density_is_that_of_the_mixture() -> None:
    x = torch.randn(50, 2, dtype=torch.float64)
    torch.testing.assert_close(MIXTURE.log_density(x), law(MIXTURE).log_prob(x))


def test_denoised_is_tweedies_formula() -> None:
    """E[x_0 | x] = (x + sigma^2 grad log p(x)) / alpha."""
    x = torch.randn(40, 2, dtype=torch.float64).requires_grad_()
    alpha, sigma = 0.7, 0.5
    (score,) = torch.autograd.grad(law(MIXTURE, alpha, sigma).log_prob(x).sum(), x)
    column = torch.ones(40, 1, dtype=torch.float64)
    found = MIXTURE.denoised(x, alpha * column, sigma * column)
    torch.testing.assert_close(found, (x + sigma**2 * score) / alpha)


def test_a_tilt_by_the_log_ratio_of_weights_is_the_other_mixture() -> None:
    weights = torch.tensor([0.6, 0.1, 0.3], dtype=torch.float64)
    other = Mixture(weights, MIXTURE.means, MIXTURE.std)
    x = torch.randn(40, 2, dtype=torch.float64)
    column = torch.full((40, 1), 0.5, dtype=torch.float64)
    tilt = (weights / MIXTURE.weights).log().expand(40, 3)
    torch.testing.assert_close(
        MIXTURE.denoised(x, column, column, tilt), other.denoised(x, column, column)
    )


def test_before_noise_is_undone_by_noise() -> None:
    before = MIXTURE.before_noise(0.9, 0.1)
    x = torch.randn(50, 2, dtype=torch.float64)
    torch.testing.assert_close(law(before, 0.9, 0.1).log_prob(x), MIXTURE.log_density(x))


def test_samples_have_the_weights_of_the_components() -> None:
    x = MIXTURE.sample(20_000, torch.Generator().manual_seed(0))
    mean = (MIXTURE.weights[:, None] * MIXTURE.means).sum(0).float()
    torch.testing.assert_close(x.mean(0), mean, rtol=0, atol=0.03)


@pytest.mark.parametrize("name", WORLDS)
def test_images_hold_the_states_and_the_target_its_weights(name: str) -> None:
    one = world(name)
    states = one.target.sample(20_000, torch.Generator().manual_seed(0))
    images = one.to_images(states.view(-1, *one.shape))
    assert images.shape[1] == 3
    assert images.min() >= 0
    assert images.max() <= 1
    torch.testing.assert_close(one.to_states(images), states, rtol=0, atol=1e-5)
    assert total_variation(one.classify(states), one.class_weights) < 0.02
    assert float(one.class_weights.sum()) == pytest.approx(1)
    equal = one.base.sample(20_000, torch.Generator().manual_seed(1))
    assert total_variation(one.classify(equal), one.class_weights) == pytest.approx(0.3, abs=0.03)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(ValueError, match="--model world:digits"):
        world("digits").to_states(torch.zeros(2, 3, 64, 64))


def test_an_unknown_world_is_named_with_those_that_exist() -> None:
    with pytest.raises(UserError, match="Did you mean 'digits'"):
        world("digit")


def test_total_variation_of_frequencies_known_by_hand() -> None:
    classes = torch.tensor([0, 0, 0, 1])
    assert total_variation(classes, torch.tensor([0.25, 0.25, 0.5])) == pytest.approx(0.5)
    assert total_variation(classes, torch.tensor([0.75, 0.25])) == 0


def test_energy_distance_is_the_same_with_a_blank_second_dimension() -> None:
    """On a line it is computed by sorting."""
    source = torch.Generator().manual_seed(0)
    x, y = torch.randn(70, 1, generator=source), torch.rand(120, 1, generator=source)
    flat, blank = Energy(y).distance(x), torch.zeros(120, 1)
    plane = Energy(torch.cat([y, blank], 1)).distance(torch.cat([x, blank[:70]], 1))
    assert flat == pytest.approx(plane, abs=1e-4)


def test_energy_distance_of_normals_is_known_and_of_equal_laws_is_zero() -> None:
    """For N(0,1) and N(m,1): 2 E|X-Y| - 2 E|X-X'|, with E|N(m, 2)| in closed form."""
    source = torch.Generator().manual_seed(0)
    x, y, other = (torch.randn(4000, 1, generator=source) for _ in range(3))
    assert abs(Energy(y).distance(x)) < 0.01
    m, pi = torch.tensor(1.0), torch.pi
    apart = 2 * (-(m**2) / 4).exp() / pi**0.5 + m * torch.erf(m / 2)
    expected = 2 * float(apart) - 4 / pi**0.5
    assert Energy(other + m).distance(x) == pytest.approx(expected, rel=0.1)
