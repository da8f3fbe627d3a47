"""Muon: momentum whose matrix updates are orthogonalised (Jordan et al., 2024), in fp32 for CPUs.

Convolution kernels count as matrices of shape (out, in * height * width). Updates are scaled to the
root mean square of AdamW's (Liu et al., 2025, arXiv:2502.16982), so that one rate serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def orthogonalise(matrix: Tensor, iterations: int = 5) -> Tensor:
    """Push the singular values of a matrix towards one by a quintic Newton-Schulz iteration."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    wide = wide / (wide.norm() + 1e-7)
    for _ in range(iterations):
        gram = wide @ wide.T
        wide = 3.4445 * wide + (-4.7750 * gram + 2.0315 * gram @ gram) @ wide
    return wide if matrix.shape[0] <= matrix.shape[1] else wide.T


class Muon(torch.optim.Optimizer):
    """Muon for the matrices it is given."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:
        """Apply one update."""
        for group in self.param_groups:
            lr, momentum, weight_decay = group["lr"], group["momentum"], group["weight_decay"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["buffer"] = torch.zeros_like(param)
                buffer = state["buffer"].lerp_(param.grad, 1 - momentum)
                matrix = param.grad.lerp(buffer, momentum).flatten(1)
                update = orthogonalise(matrix)
                param.mul_(1 - lr * weight_decay)
                param.add_(update.view_as(param), alpha=-0.2 * lr * max(matrix.shape) ** 0.5)


def build_optimizers(
    module: nn.Module, rate: float, muon_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Give hidden matrices to Muon; biases, norms, embeddings, first and last layers to AdamW."""
    matrices, others = [], []
    for name, param in module.named_parameters():
        edge = any(part in name for part in ("conv_in", "conv_out", "quant_conv", "embedding"))
        (others if edge or param.ndim < 2 else matrices).append(param)
    return [
        Muon(matrices, lr=muon_rate, weight_decay=weight_decay),
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.99), weight_decay=weight_decay),
    ]
