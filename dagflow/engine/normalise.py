"""Running standardisation of rewards, so that their weights are comparable."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from dagflow.engine.scoring import WeightedReward

SMALLEST = 1e-6  # the deviation used for a reward that does not vary


class Statistics(NamedTuple):
    """Statistics of the scores seen so far."""

    seen: int = 0
    mean: float = 0.0
    squares: float = 0.0  # sum of squared deviations from the mean

    @property
    def deviation(self) -> float:
        return max(math.sqrt(self.squares / max(self.seen, 1)), SMALLEST)


def learn(
    rewards: Sequence[WeightedReward], before: Mapping[str, Statistics], raw: Tensor, epoch: int
) -> dict[str, Statistics]:
    """The statistics after an epoch (from 0) whose images scored `raw` (R, B), by label.

    A reward's statistics are frozen after its `normalise_epochs`, because they move the target.
    A reward that is never normalised has none.
    """
    after = dict(before)
    for item, values in zip(rewards, raw, strict=True):
        if epoch < item.normalise_epochs:
            after[item.label] = _with(before.get(item.label, Statistics()), values.double())
    return after


def _with(old: Statistics, values: Tensor) -> Statistics:
    """Chan, Golub and LeVeque's update of mean and squared deviations by a batch."""
    count, mean = len(values), float(values.mean())
    both, shift = old.seen + count, mean - old.mean
    squares = float(((values - mean) ** 2).sum()) + shift**2 * old.seen * count / both
    return Statistics(both, old.mean + shift * count / both, old.squares + squares)


def normalised(
    rewards: Sequence[WeightedReward], statistics: Mapping[str, Statistics]
) -> tuple[WeightedReward, ...]:
    """The rewards with weight and offset such that each counts weight * (r - mean) / deviation."""
    return tuple(
        _standardised(item, statistics[item.label]) if item.label in statistics else item
        for item in rewards
    )


def first_steady(rewards: Sequence[WeightedReward]) -> int:
    """The first epoch, from 0, whose rewards have the same weights as in all later ones."""
    return max([0, *(item.normalise_epochs - 1 for item in rewards)])


def _standardised(item: WeightedReward, statistics: Statistics) -> WeightedReward:
    weight = item.weight / statistics.deviation
    return replace(item, weight=weight, offset=-weight * statistics.mean)


def summary(rewards: Sequence[WeightedReward], raw: Tensor, beta: float) -> dict[str, float]:
    """Metrics of an epoch's raw scores (R, B), for each reward and each pair of rewards.

    `rewards.LABEL.share` is the covariance of the reward's part with the total, divided by the
    total's variance: shares add up to 1, and a reward that pulls against the rest has a negative
    share.
    """
    numbers: dict[str, float] = {}
    parts = torch.stack([item.weight * values for item, values in zip(rewards, raw, strict=True)])
    spread = parts - parts.mean(1, keepdim=True)
    whole = spread.sum(0)
    variance = float((whole**2).sum())
    for item, values, part in zip(rewards, raw, spread, strict=True):
        numbers |= mean_and_deviation(f"rewards.{item.label}", values)
        share = float((part * whole).sum()) / variance if variance else 0.0
        numbers[f"rewards.{item.label}.share"] = share
        numbers[f"rewards.{item.label}.effective_beta"] = beta * item.weight
    for (one, a), (other, b) in combinations(zip(rewards, spread, strict=True), 2):
        signs = (1 if one.weight >= 0 else -1) * (1 if other.weight >= 0 else -1)
        norms = float((a**2).sum() * (b**2).sum()) ** 0.5
        correlation = signs * float((a * b).sum()) / norms if norms else 0.0
        numbers[f"correlation.{one.label}.{other.label}"] = correlation
    return numbers


def mean_and_deviation(name: str, values: Tensor, separator: str = ".") -> dict[str, float]:
    mean, deviation = moments(values)
    return {f"{name}{separator}mean": mean, f"{name}{separator}std": deviation}


def moments(values: Tensor) -> tuple[float, float]:
    """Mean and standard deviation; the latter is 0 for a single value."""
    return float(values.mean()), float(values.std()) if len(values) > 1 else 0.0
