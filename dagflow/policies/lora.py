"""Fresh LoRA matrices that follow from a seed."""

from __future__ import annotations

import torch
from torch import nn

from dagflow.diffusion.noise import Stream, generator


def seed_lora(network: nn.Module, rank: int, seed: int) -> None:
    """Make what is trained of a network float32, and draw its matrices A from the seed.

    Matrices B are zero already, so that nothing changes until they are trained.
    """
    source = generator(Stream.WEIGHTS, seed)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if "lora_A" in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=source) / rank)
