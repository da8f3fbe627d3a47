"""Which F_phi suits a policy, and the one for states that are points."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dagflow import PolicySpec, UserError

MULTIPLE = 8  # that every number of channels must be a multiple of
FEW = 64  # up to this many latent values a state is a point, not a picture
FREQUENCIES = 6
TIMES = 1000


def flow_network(
    spec: PolicySpec, channels: Sequence[int], against_base: bool = False
) -> nn.Module:
    """F_phi for a policy: `FlowNetwork`, or `PointFlowNetwork` if states are points.

    `against_base`: the flow is relative to that of the base model. Raises UserError if a number of
    channels is not a multiple of 8.
    """
    if not channels or any(width % MULTIPLE or width < MULTIPLE for width in channels):
        raise UserError(f"flow_channels must be multiples of {MULTIPLE}, not {list(channels)}.")
    height, width = spec.latent_size
    values = spec.latent_channels * height * width
    if values <= FEW:
        return PointFlowNetwork(values, channels, from_normal=not against_base)
    from dagflow.objectives.flow_network import FlowNetwork

    return FlowNetwork(spec, channels)


class PointFlowNetwork(nn.Module):
    """A multilayer perceptron of a state with few values and of time; it does not read the prompt.

    `channels` are the widths of its hidden layers. It starts at zero or, with `from_normal`, at
    time / 1000 times the standard normal's log-density per value. At pure noise that is log F up to
    log Z; if it had to be learned, for 64 values it would drown everything else.
    """

    def __init__(self, values: int, channels: Sequence[int], from_normal: bool) -> None:
        super().__init__()
        self.from_normal = from_normal
        widths = [values + 2 * FREQUENCIES, *channels]
        self.layers = nn.ModuleList(map(nn.Linear, widths, widths[1:]))
        self.head = nn.Linear(widths[-1], 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def forward(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """log F~ (B,) of latents (B, C, H, W) at timesteps (B,) below 1000."""
        powers = 2 ** torch.arange(FREQUENCIES, device=latents.device)
        angles = math.pi / TIMES * timesteps[:, None] * powers
        hidden = torch.cat([latents.flatten(1), angles.sin(), angles.cos()], 1)
        for layer in self.layers:
            hidden = nn.functional.silu(layer(hidden))
        learned: Tensor = self.head(hidden).squeeze(1)
        if not self.from_normal:
            return learned
        normal = -(latents.flatten(1) ** 2).mean(1) / 2 - math.log(2 * math.pi) / 2
        return learned + timesteps / TIMES * normal
