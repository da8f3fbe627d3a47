"""Rules that every reward must follow, checked by the conformance kit and by `dagflow doctor`.

A rule measures, and says in words what is wrong and how to fix it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dagflow.types import Prompt

TOLERANCE = 0.01  # how far the rest of a batch may move a score, as a share of the scores' spread

Score = Callable[[Tensor, Sequence[Prompt], str], Tensor]  # images, prompts, what they are -> (B,)


class Measured(NamedTuple):
    """What a rule measured. A gap that is NaN always breaks the rule."""

    gap: float
    allowed: float
    advice: str  # for a broken rule; the reward's name goes in front

    @property
    def kept(self) -> bool:
        return self.gap <= self.allowed


def wrong_shape(scores: Any, count: int) -> str:
    """What is wrong with the shape or type of `count` scores; "" if nothing is."""
    if not isinstance(scores, Tensor):
        return (
            f"returned {type(scores).__name__}, not a tensor. Return torch.tensor(scores, "
            f"dtype=torch.float32)."
        )
    if scores.shape != (count,):
        return (
            f"returned the shape {tuple(scores.shape)} for {count} images, not ({count},). Return "
            f"one number for each image: take means over dimensions 1, 2 and 3 only, and "
            f"squeeze(1) a head's output."
        )
    if scores.dtype not in (torch.float32, torch.float64):
        return (
            f"returned {scores.dtype}, not float32. Whole numbers and half precision turn scores "
            f"that differ into ties: call .float() before the last steps."
        )
    return ""


def not_finite(scores: Tensor, what: str) -> str:
    """What is wrong with the scores of `what`; "" if all are finite."""
    if scores.isfinite().all():
        return ""
    return (
        f"returned {scores.tolist()} for {what}. A run stops at such a value: guard logarithms, "
        f"and divisions by a norm or deviation (+ 1e-8)."
    )


def moved_by_company(
    score: Score, images: Tensor, prompts: Sequence[Prompt], tolerance: float = TOLERANCE
) -> Measured:
    """How far scores move between a batch and each image on its own, at most."""
    together = score(images, prompts, "a batch")
    parts = [score(images[k : k + 1], prompts[k : k + 1], "one image") for k in range(len(images))]
    alone = torch.cat(parts)
    worst = int((alone - together).abs().nan_to_num(torch.inf).argmax())
    advice = (
        f"gave an image {float(alone[worst]):.6g} on its own and {float(together[worst]):.6g} in a "
        f"batch. Batches are as large as memory allows, so the target would depend on the machine. "
        f"Move any normalisation over the batch out of the reward (use the objective's option, or "
        f"fixed numbers), call .eval(), and score each image with its own prompt only."
    )
    gap = float((alone - together).abs().max())
    return Measured(gap, room(together, tolerance), advice)


def moved_by_time(score: Score, images: Tensor, prompts: Sequence[Prompt]) -> Measured:
    """How far scores of the same batch move, at most, if other images are scored in between."""
    first = score(images, prompts, "a batch")
    score(1 - images[:2], prompts[:2], "other images")
    again = score(images, prompts, "the same batch again")
    gap = float((first - again).abs().max())
    advice = (
        f"scored the same batch twice and differed by {gap:.3g}. Draw no random numbers (dropout, "
        f"crops, augmentation) and keep no running statistics between calls."
    )
    return Measured(gap, 0.0, advice)


def room(scores: Tensor, tolerance: float) -> float:
    """How far a score may move: a share of the scores' spread, plus rounding."""
    spread = float(scores.max() - scores.min())
    return tolerance * spread + 1e-5 * float(scores.abs().max())
