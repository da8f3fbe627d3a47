"""Distances of samples from a known target."""

from __future__ import annotations

import torch
from torch import Tensor

ROWS = 50  # of a distance matrix, in memory at once; more is slower


def total_variation(classes: Tensor, weights: Tensor) -> float:
    """Half the sum of |frequency - weight| over the classes: 0 (alike) to 1 (disjoint).

    classes: (N,) int64; weights: (classes,), summing to 1.
    """
    frequencies = torch.bincount(classes, minlength=len(weights)) / len(classes)
    return float((frequencies - weights.to(frequencies)).abs().sum() / 2)


class Energy:
    """Energy distance of samples (N, D) from those of a target (M, D).

    2 E|X - Y| - E|X - X'| - E|Y - Y'|, which is 0 if and only if the laws are alike: Szekely and
    Rizzo, "Energy statistics", 2013. The unbiased estimate, which may be below 0.
    """

    def __init__(self, target: Tensor) -> None:
        self._target, self._within = target, _within(target)

    def distance(self, x: Tensor) -> float:
        """The distance of samples (N, D) from the target."""
        return 2 * _across(x, self._target) - _within(x) - self._within


def _across(x: Tensor, y: Tensor) -> float:
    """Mean distance between a row of one and a row of the other."""
    if x.shape[1] == 1:  # from sums of pairs, which sorting gives in one dimension
        both = torch.cat([x, y])
        pairs = _sum_of_pairs(both) - _sum_of_pairs(x) - _sum_of_pairs(y)
    else:
        sums = [float(torch.cdist(part, y).sum(dtype=torch.float64)) for part in x.split(ROWS)]
        pairs = sum(sums)
    return pairs / (len(x) * len(y))


def _within(x: Tensor) -> float:
    """Mean distance between two different rows."""
    return 2 * _sum_of_pairs(x) / (len(x) * (len(x) - 1))


def _sum_of_pairs(x: Tensor) -> float:
    """The sum of the distances between all pairs of rows, each pair once."""
    count = len(x)
    if x.shape[1] == 1:
        ranks = torch.arange(count, dtype=torch.float64)
        return float((x[:, 0].double().sort().values * (2 * ranks - count + 1)).sum())
    result = 0.0
    for start in range(0, count, ROWS):
        block = x[start : start + ROWS]
        result += float(torch.cdist(block, block).sum(dtype=torch.float64)) / 2
        result += float(torch.cdist(block, x[start + ROWS :]).sum(dtype=torch.float64))
    return result
