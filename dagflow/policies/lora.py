"""LoRA matrices: fresh ones that follow from a seed, and how they pass a network's dtype."""

from __future__ import annotations

import torch
from torch import Tensor, nn

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


def keep_dtype(network: nn.Module) -> None:
    """Have a bfloat16 network stay in bfloat16 where it has float32 LoRA matrices.

    peft would pass all that such a layer is given in float32, and torch.autocast the norms too,
    which on a GPU is slow. Rounded are the matrices instead, each time that they are used.
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
    """A float32 matrix, in the dtype of what passes."""

    def forward(self, input: Tensor) -> Tensor:
        return nn.functional.linear(input, self.weight.to(input.dtype), self.bias)


class RoundedConv2d(nn.Conv2d):
    """The same of a convolution."""

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight.to(input.dtype)
        return self._conv_forward(input, weight, self.bias)  # type: ignore[no-any-return]


ROUNDED: dict[type, type] = {nn.Linear: RoundedLinear, nn.Conv2d: RoundedConv2d}
