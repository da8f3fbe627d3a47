"""The worlds by name: their base models and targets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources

import torch
from torch import Tensor

from dagflow.errors import UserError, did_you_mean
from dagflow.worlds.mixture import Mixture

LINE = (0.45, 0.05, 0.15, 0.35)
RING = (0.25, 0.03, 0.20, 0.05, 0.18, 0.04, 0.18, 0.07)
DIGITS = (0.22, 0.02, 0.16, 0.04, 0.20, 0.05, 0.14, 0.05, 0.08, 0.04)


@dataclass(frozen=True)
class World:
    """Base and target are laws of the terminal state; only the weights of their modes differ."""

    name: str
    shape: tuple[int, int, int]  # (C, H, W) of a state; D = C * H * W
    base: Mixture
    target: Mixture
    classes: tuple[str, ...]  # names of the modes; a mode may consist of several components
    reach: float  # images represent values from -reach to reach

    @property
    def class_weights(self) -> Tensor:
        """Probability of each class under the target, (classes,)."""
        return self.target.weights.view(len(self.classes), -1).sum(1)

    def classify(self, states: Tensor) -> Tensor:
        """The class (B,) of states (B, D): that of the nearest component."""
        per_class = len(self.target.weights) // len(self.classes)
        return self.target.nearest(states) // per_class

    def to_images(self, states: Tensor) -> Tensor:
        """Images (B, 3, H, W) in [0, 1] of states (B, C, H, W), C at most 3.

        One channel becomes grey; with two, the third is blank. Values out of reach are clipped.
        """
        values = (0.5 + states / (2 * self.reach)).clamp(0, 1)
        count, channels, height, width = states.shape
        if channels == 1:
            return values.expand(count, 3, height, width)
        blank = values.new_full((count, 3 - channels, height, width), 0.5)
        return torch.cat([values, blank], 1)

    def to_states(self, images: Tensor) -> Tensor:
        """States (B, D) of images (B, 3, H, W). Raises ValueError for images of another world."""
        height, width = images.shape[2:]
        if (height, width) != self.shape[1:]:
            raise ValueError(
                f"images of {width} x {height} do not belong to the world '{self.name}'; use it "
                f"with --model world:{self.name}"
            )
        return ((images[:, : self.shape[0]] - 0.5) * 2 * self.reach).flatten(1)


def _line() -> World:
    means = torch.tensor([[-1.8], [-0.6], [0.6], [1.8]], dtype=torch.float64)
    names = tuple(f"{float(mean):+.1f}" for mean in means[:, 0])
    return _world("gaussians-1d", (1, 1, 1), means, 0.15, LINE, names, reach=4.0)


def _ring() -> World:
    angles = torch.arange(8, dtype=torch.float64) * math.pi / 4
    means = 1.4 * torch.stack([angles.cos(), angles.sin()], 1)
    names = tuple(f"{45 * k} deg" for k in range(8))
    return _world("gaussians-2d", (2, 1, 1), means, 0.15, RING, names, reach=4.0)


def _digits() -> World:
    text = (resources.files("dagflow") / "worlds" / "digits.txt").read_text(encoding="utf-8")
    rows = [line.split() for line in text.splitlines() if not line.startswith("#")]
    means = torch.tensor([[int(ink) for ink in row] for row in rows], dtype=torch.float64) / 8 - 1
    names = tuple(str(digit) for digit in range(10))
    return _world("digits", (1, 8, 8), means, 0.08, DIGITS, names, reach=1.5)


def _world(
    name: str,
    shape: tuple[int, int, int],
    means: Tensor,
    std: float,
    class_weights: tuple[float, ...],
    classes: tuple[str, ...],
    reach: float,
) -> World:
    """A world whose base model has equal weights."""
    count, per_class = len(means), len(means) // len(classes)
    equal = torch.full((count,), 1 / count, dtype=torch.float64)
    weights = torch.tensor(class_weights, dtype=torch.float64).repeat_interleave(per_class)
    target = Mixture(weights / per_class, means, std)
    return World(name, shape, Mixture(equal, means, std), target, classes, reach)


WORLDS: dict[str, Callable[[], World]] = {
    "gaussians-1d": _line,
    "gaussians-2d": _ring,
    "digits": _digits,
}


def world(name: str) -> World:
    """A world by name. Raises UserError if there is none."""
    if name not in WORLDS:
        raise UserError(
            f"there is no world '{name}'.{did_you_mean(name, WORLDS)} Worlds: {', '.join(WORLDS)}."
        )
    return WORLDS[name]()
