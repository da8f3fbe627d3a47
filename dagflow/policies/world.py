"""A world as a policy: an exact base model, and a small network trained to tilt it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dagflow.config import LoraTable
from dagflow.diffusion import path as gaussian
from dagflow.diffusion.noise import Stream, generator
from dagflow.diffusion.path import GaussianPath, State
from dagflow.errors import UserError
from dagflow.policies.unconditional import WIDTH, Unconditional
from dagflow.types import PolicySpec
from dagflow.worlds.catalogue import World
from dagflow.worlds.mixture import Mixture

TIMES = 1000
FIRST, LAST = 0.9994, 0.05  # t of alpha = cos(pi t / 2), which goes from 9e-4 to 0.997
HIDDEN = 128
FREQUENCIES = 6


class WorldPolicy(Unconditional):
    """Predicts v = alpha noise - sigma x0 exactly, for a mixture.

    The trained network weighs the base model's components at every state and time. So it can
    represent the exact target (with a constant output), and never states off the mixture.
    """

    WEIGHTS_FILE = "tilt.safetensors"

    def __init__(self, world: World, device: torch.device) -> None:
        self.world, self.device = world, device
        times = torch.linspace(LAST, FIRST, TIMES, dtype=torch.float64)
        self._alpha, self._sigma = (math.pi / 2 * times).cos(), (math.pi / 2 * times).sin()
        end = (float(self._alpha[0]), float(self._sigma[0]))
        self._scales = torch.stack([self._alpha, self._sigma]).float().to(device)
        self._base, self._target = (
            mixture.before_noise(*end).on(device) for mixture in (world.base, world.target)
        )
        self._law = self._base
        self._tilt: Tilt | None = None
        self._tilts = False

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        return self.world.shape

    @property
    def spec(self) -> PolicySpec:
        channels, height, width = self.world.shape
        return PolicySpec(channels, WIDTH, (height, width))

    def path(self, num_inference_steps: int) -> GaussianPath:
        """T+1 states, evenly spaced in t, from alpha = 9e-4 to sigma = 0.08."""
        if num_inference_steps >= TIMES:
            raise UserError(f"a world has {TIMES - 1} inference steps at most.")
        timesteps = torch.linspace(TIMES - 1, 0, num_inference_steps + 1).round().long()
        return GaussianPath(self._alpha[timesteps], self._sigma[timesteps], timesteps)

    def predict_text(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """v (B, C, H, W)."""
        x = latents.flatten(1)
        alpha, sigma = self._scales[:, timesteps, None].unbind()
        tilt = self._tilt(x, timesteps / TIMES) if self._tilt and self._tilts else None
        x0 = self._law.denoised(x, alpha, sigma, tilt)
        v = alpha * (x - alpha * x0) / sigma - sigma * x0
        return v.view_as(latents)

    def predicted_x0(self, state: State, latents: Tensor, output: Tensor) -> Tensor:
        return gaussian.predicted_x0(state, latents, output, "v_prediction")

    def decode(self, latents: Tensor) -> Tensor:
        return self.world.to_images(latents)

    def encode_images(self, images: Tensor) -> Tensor:
        return self.world.to_states(images).view(-1, *self.latent_shape)

    def add_weights(self, lora: LoraTable, seed: int) -> None:
        """A fresh tilt that is zero; `lora` is ignored."""
        components, values = self._base.means.shape
        self._tilt = Tilt(values, components, seed).to(self.device)
        self._tilts = True

    def parameters(self) -> list[nn.Parameter]:
        return list(self._tilt.parameters()) if self._tilt else []

    def weights(self) -> dict[str, Tensor]:
        state = self._tilt.state_dict() if self._tilt else {}
        return {name: tensor.detach().cpu().clone() for name, tensor in state.items()}

    def set_weights(self, state: dict[str, Tensor]) -> None:
        if self._tilt:
            self._tilt.load_state_dict(state)

    def save_weights(self, folder: Path) -> None:
        save_file(self.weights(), folder / self.WEIGHTS_FILE)

    def read_weights(self, folder: Path) -> dict[str, Tensor]:
        return load_file(folder / self.WEIGHTS_FILE)

    def load_weights(self, folder: Path) -> None:
        try:
            self.add_weights(LoraTable(), 0)
            self.set_weights(self.read_weights(folder))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise UserError(f"'{folder}' holds no weights for this world: {error}") from error

    @contextmanager
    def base(self) -> Iterator[None]:
        yield from self._untilted(self._base)

    @contextmanager
    def exact_target(self) -> Iterator[None]:
        """Inside this context the prediction is exact for the target: a yardstick for samplers.

        It is not a bound: with finitely many steps the sampler itself is inexact.
        """
        yield from self._untilted(self._target)

    def _untilted(self, law: Mixture) -> Iterator[None]:
        before = (self._law, self._tilts)
        self._law, self._tilts = law, False
        try:
            yield
        finally:
            self._law, self._tilts = before


class Tilt(nn.Module):
    """An MLP of the state and the time that weighs components: (B, D), (B,) -> logits (B, K)."""

    def __init__(self, values: int, components: int, seed: int) -> None:
        super().__init__()
        widths = (values + 2 * FREQUENCIES, HIDDEN, HIDDEN)
        self.layers = nn.ModuleList(map(nn.Linear, widths, widths[1:]))
        self.out = nn.Linear(HIDDEN, components)
        source = generator(Stream.WEIGHTS, seed)
        for layer in (*self.layers, self.out):
            bound = layer.in_features**-0.5
            nn.init.uniform_(layer.weight, -bound, bound, generator=source)
            nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.out.weight)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Logits for times from 0 to 1; zero before training."""
        hidden = torch.cat([x, time_features(time)], 1)
        for layer in self.layers:
            hidden = nn.functional.silu(layer(hidden))
        logits: Tensor = self.out(hidden)
        return logits


def time_features(time: Tensor) -> Tensor:
    """Sines and cosines (B, 12) of times (B,) in [0, 1]."""
    angles = math.pi * time[:, None] * 2 ** torch.arange(FREQUENCIES, device=time.device)
    return torch.cat([angles.sin(), angles.cos()], 1)
