"""How far samples are from a known target."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 50  # of a matrix of distances, held in memory together; more is slower


def total_variation(classes: Tensor, weights: Tensor) -> float:
    """Half the sum of |frequency - weight| over the classes: 0 (alike) to 1 (disjoint).

    classes: (N,) int64; weights: (classes,), adding up to 1.
    """
    frequencies = torch.bincount(classes, minlength=len(weights)) / len(classes)
    return float((frequencies - weights.to(frequencies)).abs().sum() / 2)


def energy_distance(x: Tensor, y: Tensor) -> float:
    """2 E|X - Y| - E|X - X'| - E|Y - Y'| of samples (N, D) and (M, D); 0 if and only if alike.

    Szekely and Rizzo, "Energy statistics", 2013. The unbiased estimate, which may be below 0.
    """
    return 2 * _mean_distance(x, y) - _within(x) - _within(y)


def _within(x: Tensor) -> float:
    return _mean_distance(x, x) * len(x) / (len(x) - 1)


def _mean_distance(x: Tensor, y: Tensor) -> float:
    sums = [float(torch.cdist(part, y).sum(dtype=torch.float64)) for part in x.split(ROWS)]
    return sum(sums) / (len(x) * len(y))
