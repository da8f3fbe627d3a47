"""LAION's aesthetic predictor: a small head on the image features of CLIP ViT-L/14."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor, nn

from dagflow import Prompt
from dagflow_rewards.published.batches import in_batches
from dagflow_rewards.published.checkpoints import load_strictly, read_state
from dagflow_rewards.published.clip import Clip
from dagflow_rewards.published.head import Head


class Aesthetic(nn.Module):
    """Scores from about 1 (ugly) to 10; ignores the prompts."""

    def __init__(self, clip: Clip, head: Head, batch_size: int) -> None:
        super().__init__()
        self.clip, self.head, self.batch_size = clip, head, batch_size

    def forward(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return in_batches(self._score, images, prompts, self.batch_size)

    def _score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        scores: Tensor = self.head(self.clip.images(images))
        return scores


def load_head(path: Path, width: int = 768) -> Head:
    """A checkpoint's head for features of that width, in float32. Raises UserError."""
    state = read_state(path)
    head = Head(width)
    load_strictly(head, state, path)
    return head.requires_grad_(False).eval()
