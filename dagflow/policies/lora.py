"""LoRA matrices: how a seed initialises them, and how they work in a network of another dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from dagflow.diffusion.noise import Stream, generator


def seed_lora(network: nn.Module, rank: int, seed: int) -> None:
    """Make a network's trained parameters float32, and draw its matrices A from the seed.

    The matrices B are already zero, so the network does not change until they are trained.
    """
    source = generator(Stream.WEIGHTS, seed)
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
            if "lora_A" in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=source) / rank)


def keep_dtype(network: nn.Module) -> None:
    """Keep a bfloat16 network in bfloat16 where it has float32 LoRA matrices.

    peft would cast the inputs of such a layer to float32, and torch.autocast those of the norms
    too, which is slow on a GPU. Instead the matrices are rounded each time that they are used.
    """
    from peft.tuners.lora import LoraLayer

    for layer in network.modules():
        if isinstance(layer, LoraLayer):
            matrices = [*layer.lora_A.values(), *layer.lora_B.values()]
            if all(type(matrix) in ROUNDED for matrix in matrices):
                layer.cast_input_dtype_enabled = False
                for matrix in matrices:
                    matrix.__class__ = ROUNDED[type(matrix)]


class RoundedLinear(nn.Linear):
    """A float32 matrix, rounded to the dtype of the input."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight.to(input.dtype), self.bias)


class RoundedConv2d(nn.Conv2d):
    """The same for a convolution."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight.to(input.dtype)
        return self._conv_forward(input, weight, self.bias)  # type: ignore[no-any-return]


ROUNDED: dict[type, type] = {nn.Linear: RoundedLinear, nn.Conv2d: RoundedConv2d}
