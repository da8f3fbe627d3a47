"""How close an image is to its prompt in the features of CLIP, or of a model trained like it."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from dagflow import Prompt
from dagflow_rewards.published.batches import in_batches
from dagflow_rewards.published.clip import Clip


class ClipScore(nn.Module):
    """The cosine of image and text features, -1 to 1, times `scale`."""

    def __init__(self, clip: Clip, batch_size: int, scale: float = 1.0) -> None:
        super().__init__()
        self.clip, self.batch_size, self.scale = clip, batch_size, scale

    def forward(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return in_batches(self._score, images, prompts, self.batch_size)

    def _score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return self.scale * (self.clip.images(images) * self.clip.texts(prompts)).sum(1)
