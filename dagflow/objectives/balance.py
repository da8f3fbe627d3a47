"""Detailed balance and the KL objective of DAG (Zhang et al., TMLR 2025).

Both rest on the residual of a transition x -> x_next,

    delta = log F(x) + log p(x_next | x) - log F(x_next) - log q(x | x_next),

whose zero everywhere means that the policy samples in proportion to exp(beta * reward).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from dagflow import Needs, PolicySpec, Transitions
from dagflow.objectives.flow_network import FlowNetwork

MAX_COST = 5.0


def residual(batch: Transitions, log_pf: Tensor) -> Tensor:
    """delta (B,) for the given log_pf; zero at an exact balance."""
    assert batch.log_flow is not None
    assert batch.log_flow_next is not None
    assert batch.log_pb is not None
    return batch.log_flow + log_pf - batch.log_flow_next - batch.log_pb


class DetailedBalance(nn.Module):
    """Equation 8: the loss is delta squared; gradients reach the policy, and F_phi at both ends."""

    needs = Needs(log_flow=True, log_pb=True, potentials=True)

    def __init__(self, spec: PolicySpec, flow_channels: Sequence[int]) -> None:
        super().__init__()
        self.flow = FlowNetwork(spec, flow_channels)

    def forward(self, batch: Transitions) -> tuple[Tensor, Mapping[str, Tensor]]:
        delta = residual(batch, batch.log_pf)
        return delta**2, {"residual": delta}


class KL(nn.Module):
    """Equation 14: F_phi by delta squared with log p held fixed; the policy by policy gradient.

    The policy's cost is b = stop_gradient(delta), and its loss max(b r, b clip(r)) with the
    importance ratio r = p / p_old on the scale of one latent value.
    """

    def __init__(
        self,
        spec: PolicySpec,
        flow_channels: Sequence[int],
        clip: float,
        coefficient: float | None,
        normalise: bool,
    ) -> None:
        super().__init__()
        self.flow = FlowNetwork(spec, flow_channels)
        self.clip, self.coefficient, self.normalise = clip, coefficient, normalise
        self.needs = Needs(log_flow=True, log_pb=True, potentials=True, window=normalise)

    def forward(self, batch: Transitions) -> tuple[Tensor, Mapping[str, Tensor]]:
        delta = residual(batch, batch.log_pf.detach())
        cost = batch.scale * self._normalised(batch) if self.normalise else delta.detach()
        ratio = torch.exp((batch.log_pf - batch.log_pf_old) / batch.scale)
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        policy = batch.scale * torch.maximum(cost * ratio, cost * clipped)
        coefficient = batch.final_beta if self.coefficient is None else self.coefficient
        outside = (ratio != clipped).float()
        return delta**2 + coefficient * policy, {"residual": delta, "clip_fraction": outside}

    def _normalised(self, batch: Transitions) -> Tensor:
        """The cost minus the mean of the others in the window, over the window's deviation."""
        assert batch.window is not None
        window = residual(batch.window, batch.window.log_pf_old)
        delta = residual(batch, batch.log_pf_old).detach()
        others = (window.sum() - delta) / max(len(window) - 1, 1)
        return ((delta - others) / (window.std(correction=0) + 1e-8)).clamp(-MAX_COST, MAX_COST)
