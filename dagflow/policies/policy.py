"""The interface between the engine and a model of any family."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from dagflow.config import LoraTable
from dagflow.diffusion.path import GaussianPath, State
from dagflow.types import PolicySpec


class Prediction(NamedTuple):
    """A network's output at B states, float32 (B, C, H, W), whatever it predicts."""

    guided: Tensor  # e_uncond + w (e_text - e_uncond); without guidance the same as `text`
    text: Tensor  # e_text


class Policy(Protocol):
    """A frozen base model and the weights trained on top of it. States: float32 (B, C, H, W)."""

    WEIGHTS_FILE: str  # in a checkpoint: the trained weights, as `save_weights` writes them
    device: torch.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the frozen network."""

    def networks(self) -> dict[str, nn.Module]:
        """`unet`, `vae` and `preview_decoder`, as far as the model has them."""

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""

    @property
    def spec(self) -> PolicySpec:
        """What an objective may know about the policy."""

    def path(self, num_inference_steps: int) -> GaussianPath:
        """The states that a sampler visits. Raises UserError for an impossible number of steps."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """prompt_embeds (B, L, E)."""

    def predict(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Prediction:
        """Both branches of guidance, with gradient; timesteps (B,) int64."""

    def predict_text(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The text branch alone (B, C, H, W)."""

    def predicted_x0(self, state: State, latents: Tensor, output: Tensor) -> Tensor:
        """x0hat (B, C, H, W) from a network's output."""

    def decode(self, latents: Tensor) -> Tensor:
        """Images float32 (B, 3, height, width) in [0, 1]."""

    def preview(self, latents: Tensor) -> Tensor:
        """The same for an intermediate x0hat, with a cheaper decoder if there is one."""

    def encode_images(self, images: Tensor) -> Tensor:
        """Terminal states (B, C, H, W) from images (B, 3, height, width) in [0, 1]."""

    def add_weights(self, lora: LoraTable, seed: int) -> None:
        """Add trainable weights that change nothing yet."""

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters."""

    def weights(self) -> dict[str, Tensor]:
        """The trained weights by name, as copies on the CPU."""

    def set_weights(self, state: dict[str, Tensor]) -> None:
        """Restore what `weights` returned."""

    def save_weights(self, folder: Path) -> None:
        """Write `WEIGHTS_FILE`."""

    def read_weights(self, folder: Path) -> dict[str, Tensor]:
        """What `save_weights` wrote, as `weights` returns it."""

    def load_weights(self, folder: Path) -> None:
        """Use saved weights without training them. Raises UserError if they do not fit."""

    def base(self) -> AbstractContextManager[None]:
        """Inside this context the network is the frozen base model."""
