"""Rules that every reward must keep, held by the kit that tests plugins and by `dagflow doctor`.

A rule measures, and says in words what is wrong and what to do about it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from dagflow.types import Prompt

TOLERANCE = 0.01  # by how much company may move a score, as a share of the spread of scores

Score = Callable[[Tensor, Sequence[Prompt], str], Tensor]  # images, prompts, what they are -> (B,)


class Measured(NamedTuple):
    """What a rule found. Not a number is never kept."""

    gap: float
    allowed: float
    advice: str  # if it is not kept; the name of the reward stands before it

    @property
    def kept(self) -> bool:
        return self.gap <= self.allowed


def wrong_shape(scores: Any, count: int) -> str:
    """What is wrong with the shape or the type of `count` scores; "" if nothing is."""
    if not isinstance(scores, Tensor):
        return (
            f"returned {type(scores).__name__}, not a tensor. Return torch.tensor(scores, "
            f"dtype=torch.float32)."
        )
    if scores.shape != (count,):
        return (
            f"returned the shape {tuple(scores.shape)} for {count} images, not ({count},). Return "
            f"one number for each image: take means over dimensions 1, 2 and 3 only, and "
            f"squeeze(1) what a head returns."
        )
    if scores.dtype not in (torch.float32, torch.float64):
        return (
            f"returned {scores.dtype}, not float32. Whole numbers and half precision make ties of "
            f"scores that differ: call .float() before the last steps."
        )
    return ""


def not_finite(scores: Tensor, what: str) -> str:
    """What is wrong with scores of `what`; "" if all are numbers."""
    if scores.isfinite().all():
        return ""
    return (
        f"returned {scores.tolist()} for {what}. A run stops at such a value: guard logarithms, "
        f"and divisions by a norm or deviation (+ 1e-8)."
    )


def moved_by_company(
    score: Score, images: Tensor, prompts: Sequence[Prompt], tolerance: float = TOLERANCE
) -> Measured:
    """How far any score moves between a batch and the image on its own."""
    together = score(images, prompts, "a batch")
    parts = [score(images[k : k + 1], prompts[k : k + 1], "one image") for k in range(len(images))]
    alone = torch.cat(parts)
    worst = int((alone - together).abs().nan_to_num(torch.inf).argmax())
    advice = (
        f"gave an image {float(alone[worst]):.6g} on its own and {float(together[worst]):.6g} in a "
        f"batch. Batches are cut as memory allows, so the target would depend on the machine. Move "
        f"any normalisation over the batch out of the reward (use the objective's option, or fixed "
        f"numbers), call .eval(), and look at each image with its own prompt only."
    )
    gap = float((alone - together).abs().max())
    return Measured(gap, room(together, tolerance), advice)


def moved_by_time(score: Score, images: Tensor, prompts: Sequence[Prompt]) -> Measured:
    """How far any score of the same batch moves when other images were scored in between."""
    first = score(images, prompts, "a batch")
    score(1 - images[:2], prompts[:2], "other images")
    again = score(images, prompts, "the same batch once more")
    gap = float((first - again).abs().max())
    advice = (
        f"scored the same batch twice and differed by {gap:.3g}. Draw no random numbers (dropout, "
        f"crops, augmentation), keep no running statistics between calls."
    )
    return Measured(gap, 0.0, advice)


def room(scores: Tensor, tolerance: float) -> float:
    """By how much a score may move: a share of their spread, and rounding."""
    spread = float(scores.max() - scores.min())
    return tolerance * spread + 1e-5 * float(scores.abs().max())
