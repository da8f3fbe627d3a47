"""Score images in batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dagflow import Prompt


def in_batches(
    score: Callable[[Tensor, Sequence[Prompt]], Tensor],
    images: Tensor,
    prompts: Sequence[Prompt],
    size: int,
) -> Tensor:
    """`score` of (B, 3, height, width) images and B prompts, `size` at a time: float32 (B,)."""
    starts = range(0, len(images), size)
    parts = [score(images[i : i + size], prompts[i : i + size]).float() for i in starts]
    return torch.cat(parts) if parts else torch.zeros(0, device=images.device)
