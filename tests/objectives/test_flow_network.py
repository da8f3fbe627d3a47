"""The learned part of the log-flow."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from dagflow import PolicySpec
from dagflow.objectives.flow_network import FlowNetwork


def test_rounded_attention_changes_little_and_nothing_beside_it_is_rounded() -> None:
    flow = FlowNetwork(PolicySpec(4, 96, (16, 16)), (16, 32))
    source = torch.Generator().manual_seed(0)
    for parameter in flow.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=source)
    latents = torch.randn(3, 4, 16, 16, generator=source)
    embeds = torch.randn(3, 24, 96, generator=source)
    inside, outside = watch(flow)

    def passed() -> tuple[Tensor, Tensor]:
        flow.zero_grad()
        value = flow(latents, torch.tensor([1, 500, 999]), embeds)
        value.sum().backward()
        return value.detach(), torch.cat([p.grad.flatten() for p in flow.parameters()])

    exact = passed()
    assert inside == outside == {torch.float32}
    inside.clear()
    flow.attend_in_bfloat16()
    rounded = passed()
    assert inside == {torch.bfloat16}
    assert outside == {torch.float32}
    for before, after in zip(exact, rounded, strict=True):
        assert 0 < (before - after).norm() < 0.01 * before.norm()


def watch(network: nn.Module) -> tuple[set[torch.dtype], set[torch.dtype]]:
    """The dtypes that layers of attention put out from now on, and those of all others."""
    attention = [layer for layer in network.modules() if isinstance(layer, Attention)]
    parts = {part for layer in attention for part in layer.modules()}
    inside: set[torch.dtype] = set()
    outside: set[torch.dtype] = set()
    for layer in network.modules():
        found = inside if layer in parts else outside
        if not list(layer.children()):
            layer.register_forward_hook(lambda _, __, out, found=found: found.add(out.dtype))
    return inside, outside
