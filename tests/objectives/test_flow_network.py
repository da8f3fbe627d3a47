"""The learned part of the log-flow."""

from __future__ import annotations

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor

from dagflow import PolicySpec
from dagflow.objectives.flow_network import FlowNetwork
from tests.conftest import put_out


def test_rounded_attention_changes_little_and_nothing_beside_it_is_rounded() -> None:
    flow = FlowNetwork(PolicySpec(4, 96, (16, 16)), (16, 32))
    source = torch.Generator().manual_seed(0)
    for parameter in flow.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=source)
    latents = torch.randn(3, 4, 16, 16, generator=source)
    embeds = torch.randn(3, 24, 96, generator=source)
    attention = [layer for layer in flow.modules() if isinstance(layer, Attention)]
    parts = {part for layer in attention for part in layer.modules()}
    others = set(flow.modules()) - parts

    def passed() -> tuple[Tensor, Tensor]:
        flow.zero_grad()
        value = flow(latents, torch.tensor([1, 500, 999]), embeds)
        value.sum().backward()
        return value.detach(), torch.cat([p.grad.flatten() for p in flow.parameters()])

    exact = passed()
    flow.attend_in_bfloat16()
    with put_out(parts) as inside, put_out(others) as outside:
        rounded = passed()
    assert inside == {torch.bfloat16}
    assert outside == {torch.float32}
    for before, after in zip(exact, rounded, strict=True):
        assert 0 < (before - after).norm() < 0.01 * before.norm()
