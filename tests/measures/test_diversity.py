"""Distances within prompts, the Vendi score, and distances between two sets."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torchmetrics.image.kid import KernelInceptionDistance

from dagflow import Prompt
from dagflow.measures.diversity import distance, from_base, vendi
from dagflow.measures.features import Pixels


def prompts(*texts: str) -> list[Prompt]:
    return [Prompt(text) for text in texts]


def test_distance_is_within_prompts() -> None:
    rows = torch.tensor([[0.0, 0], [1, 1], [0.5, 0.5], [0.5, 0.5]])
    assert distance(rows, prompts("a", "a", "b", "b")) == pytest.approx(0.5)
    assert distance(rows, prompts("a", "b", "a", "b")) == pytest.approx(0.5)
    assert distance(rows, prompts("a", "b", "c", "d")) is None


def test_vendi_counts_what_is_different() -> None:
    """Of uncorrelated rows as many as there are, of equal ones one, and in between."""
    basis = torch.eye(8) - 1 / 8  # rows whose correlations are all -1/7
    assert vendi(torch.ones(4, 8).cumsum(1), prompts(*"aaaa")) == pytest.approx(1)
    waves = torch.stack([torch.sin(torch.arange(64) * k * 2 * torch.pi / 64) for k in (1, 2, 3, 4)])
    assert vendi(waves, prompts(*"aaaa")) == pytest.approx(4, rel=1e-5)
    assert vendi(waves[[0, 0, 1, 1]], prompts(*"aaaa")) == pytest.approx(2, rel=1e-5)
    assert vendi(waves, prompts("a", "a", "b", "c")) == pytest.approx(2, rel=1e-5)
    assert 1 < vendi(basis, prompts(*"a" * 8)) < 8
    assert vendi(waves, prompts(*"abcd")) is None


@given(st.integers(2, 6), st.integers(0, 1000))
def test_vendi_is_between_one_and_the_number_of_images(count: int, seed: int) -> None:
    rows = torch.rand(count, 12, generator=torch.Generator().manual_seed(seed))
    score = vendi(rows, prompts(*"a" * count))
    assert 1 - 1e-6 <= score <= count + 1e-6


def test_vendi_of_blank_images_is_finite() -> None:
    assert 0 <= vendi(torch.zeros(3, 5), prompts(*"aaa")) <= 3


def test_large_pixels_are_averaged_and_small_ones_are_not() -> None:
    small, large = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 128, 128)
    assert torch.equal(Pixels().rows(small), small.flatten(1))
    assert Pixels().rows(large).shape == (2, 3 * 64 * 64)
    assert Pixels().coarse(large).shape == (2, 3 * 8 * 8)
    mean = large.view(2, 3, 64, 2, 64, 2).mean((3, 5)).flatten(1)
    assert torch.allclose(Pixels().rows(large), mean, atol=1e-6)


def test_distances_between_gaussians() -> None:
    """Frechet's: |mean difference|^2 + (difference of deviations)^2 in each dimension."""
    source = torch.Generator().manual_seed(0)
    base = torch.randn(4000, 3, generator=source)
    now = 2 * torch.randn(4000, 3, generator=source) + torch.tensor([1.0, 0, 0])
    found = from_base(base, now)
    assert found["fid"] == pytest.approx(1 + 3, rel=0.05)
    alike = from_base(base, torch.randn(4000, 3, generator=source))
    assert alike["fid"] == pytest.approx(0, abs=0.01)
    assert abs(alike["kid"]) < 0.02 < found["kid"]


def test_the_kernel_distance_is_torchmetrics_own(monkeypatch: pytest.MonkeyPatch) -> None:
    base, now = torch.rand(30, 6).double(), torch.rand(30, 6).double() ** 2
    monkeypatch.setattr("dagflow.measures.diversity.ROWS", 7)
    whole = KernelInceptionDistance(feature=nn.Identity(), subsets=1, subset_size=30)
    whole.update(base, real=True)
    whole.update(now, real=False)
    assert from_base(base, now)["kid"] == pytest.approx(float(whole.compute()[0]), rel=1e-5)


def test_distances_repeat_and_leave_the_generator_alone() -> None:
    base, now = torch.rand(20, 6), torch.rand(20, 6)
    before = torch.random.get_rng_state()
    first = from_base(base, now)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(3)
    assert from_base(base, now) == pytest.approx(first)
    assert from_base(base[:2], now[:2]) == {}
