"""What policies that read no prompt have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dagflow.policies.policy import Prediction

WIDTH = 8  # E of the prompt_embeds, which are all zero


class Unconditional(ABC):
    """A policy that reads no prompt: there is no guidance, and all prompt_embeds are zero."""

    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32

    def networks(self) -> dict[str, nn.Module]:
        """Empty: there are no diffusers networks."""
        return {}

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Zeros (B, 1, E)."""
        return torch.zeros(len(texts), 1, WIDTH, device=self.device)

    def predict(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Prediction:
        """The network's output, twice."""
        output = self.predict_text(latents, timesteps, prompt_embeds)
        return Prediction(output, output)

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Images float32 (B, 3, height, width) in [0, 1]."""

    def preview(self, latents: Tensor) -> Tensor:
        """The same: there is nothing cheaper."""
        return self.decode(latents)

    @abstractmethod
    def predict_text(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The network's output (B, C, H, W)."""
