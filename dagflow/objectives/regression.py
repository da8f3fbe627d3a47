"""How a residual delta = log p_F side - log p_B side becomes a loss.

Hu et al., "Beyond squared error", ICLR 2025 (arXiv:2410.02596), table 1: each loss corresponds to
a divergence between policy and target. All are scaled so that they are delta^2 near zero.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor

from dagflow import UserError

Regression = Literal["square", "huber", "shifted-cosh", "linex"]

STEEPEST = 10.0  # beyond it exponentials continue as straight lines, 22,000 times as steep as at 0


def square(delta: Tensor) -> Tensor:
    """delta^2: the reverse KL divergence, zero-forcing."""
    return delta**2


def huber(delta: Tensor) -> Tensor:
    """delta^2 up to |delta| = 1, then 2 |delta| - 1, so that no single transition dominates."""
    size = delta.abs()
    return torch.where(size <= 1, delta**2, 2 * size - 1)


def shifted_cosh(delta: Tensor) -> Tensor:
    """e^delta + e^-delta - 2: zero-forcing and zero-avoiding."""
    return _exp(delta) + _exp(-delta) - 2


def linex(delta: Tensor) -> Tensor:
    """2 (e^t - t - 1) with t = -delta, twice the paper's Linex(1): the forward KL divergence.

    Zero-avoiding: it is steep where the policy is less likely to go than the target requires.
    """
    return 2 * (_exp(-delta) + delta - 1)


def _exp(t: Tensor) -> Tensor:
    return t.clamp(max=STEEPEST).exp() * (1 + (t - STEEPEST).clamp(min=0))


LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "square": square,
    "huber": huber,
    "shifted-cosh": shifted_cosh,
    "linex": linex,
}


def regression(name: str) -> Callable[[Tensor], Tensor]:
    """A loss by name. Raises UserError for another name."""
    if name not in LOSSES:
        raise UserError(f"loss = {name!r}: expected one of {', '.join(get_args(Regression))}.")
    return LOSSES[name]
