"""Detailed balance and the KL objective of DAG (Zhang et al., TMLR 2025).

Both use the residual of a transition x -> x_next,

    delta = log F(x) + log p(x_next | x) - log F(x_next) - log q(x | x_next).

If it is zero everywhere, the policy samples in proportion to exp(beta * reward). With log p_base
of the frozen base model in place of log q, the target is p_base * exp(beta * reward).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from dagflow import Needs, PolicySpec, Transitions
from dagflow.objectives.flows import flow_network

MAX_COST = 5.0


def residual(batch: Transitions, log_pf: Tensor, against_base: bool = False) -> Tensor:
    """delta (B,) for the given log_pf; zero at exact balance."""
    assert batch.log_flow is not None
    assert batch.log_flow_next is not None
    backward = batch.log_p_base if against_base else batch.log_pb
    assert backward is not None
    return batch.log_flow + log_pf - batch.log_flow_next - backward


def advantages(delta: Tensor, returns: float) -> Tensor:
    """Sum of returns^k delta over this transition (k = 0) and those that follow; both (B, T).

    This is generalised advantage estimation (Schulman et al., 2016, equation 16) for residuals:
    by how much log F of a state exceeds what the rest of the trajectory implies, with
    lambda = `returns`.
    """
    total = torch.zeros_like(delta[:, 0])
    found = []
    for k in reversed(range(delta.shape[1])):
        total = delta[:, k] + returns * total
        found.append(total)
    return torch.stack(found[::-1], 1)


def needed(against_base: bool, returns: float, **more: bool) -> Needs:
    """What a balance asks the engine to compute."""
    return Needs(
        log_flow=True,
        potentials=True,
        log_pb=not against_base,
        log_p_base=against_base,
        trajectories=returns > 0,
        **more,
    )


class DetailedBalance(nn.Module):
    """Equation 8: the loss is delta squared; gradients reach the policy, and F_phi at both ends.

    `against_base`: Venkatraman et al., 2024 (arXiv:2405.20971), for each transition. `returns`
    above 0 replaces delta by its weighted sum over the rest of the trajectory. At 1 that is the
    balance from this state to the image.
    """

    def __init__(
        self,
        spec: PolicySpec,
        flow_channels: Sequence[int],
        loss: Callable[[Tensor], Tensor],
        against_base: bool,
        returns: float,
    ) -> None:
        super().__init__()
        self.flow = flow_network(spec, flow_channels, against_base)
        self.loss, self.against_base, self.returns = loss, against_base, returns
        self.needs = needed(against_base, returns)

    def forward(self, batch: Transitions) -> tuple[Tensor, Mapping[str, Tensor]]:
        delta = residual(batch, batch.log_pf, self.against_base)
        if not self.returns:
            return self.loss(delta), {"residual": delta}
        return self.loss(advantages(delta, self.returns)).mean(1), {"residual": delta}


class KL(nn.Module):
    """Equation 14: F_phi by delta squared with log p held fixed; the policy by policy gradient.

    The policy's cost is b = stop_gradient(delta), and its loss is max(b r, b clip(r)) with the
    importance ratio r = p / p_old on the scale of one latent value. `returns` above 0 replaces
    delta by its weighted sum over the rest of the trajectory, for both.
    """

    def __init__(
        self,
        spec: PolicySpec,
        flow_channels: Sequence[int],
        clip: float,
        coefficient: float | None,
        normalise: bool,
        returns: float,
    ) -> None:
        super().__init__()
        self.flow = flow_network(spec, flow_channels)
        self.clip, self.coefficient, self.normalise = clip, coefficient, normalise
        self.returns = returns
        window = normalise and not returns
        self.needs = needed(False, returns, window=window, on_policy=True)

    def forward(self, batch: Transitions) -> tuple[Tensor, Mapping[str, Tensor]]:
        delta = residual(batch, batch.log_pf.detach())
        cost, flow = delta.detach(), delta
        if self.returns:
            assert batch.log_flow is not None
            cost = advantages(residual(batch, batch.log_pf_old).detach(), self.returns)
            flow = cost + batch.log_flow - batch.log_flow.detach()
        if self.normalise:
            cost = batch.scale * self._normalised(batch, cost)
        ratio = torch.exp((batch.log_pf - batch.log_pf_old) / batch.scale)
        clipped = ratio.clamp(1 - self.clip, 1 + self.clip)
        policy = batch.scale * torch.maximum(cost * ratio, cost * clipped)
        coefficient = batch.final_beta if self.coefficient is None else self.coefficient
        loss = flow**2 + coefficient * policy
        outside = (ratio != clipped).float()
        if self.returns:
            loss = loss.mean(1)
        return loss, {"residual": delta, "clip_fraction": outside}

    def _normalised(self, batch: Transitions, cost: Tensor) -> Tensor:
        """The cost minus the mean of the others in the window, over the window's deviation.

        For whole trajectories, the others are those at the same step. With no others the cost is
        only clipped.
        """
        window = cost
        if not self.returns:
            assert batch.window is not None
            window = residual(batch.window, batch.window.log_pf_old)
            cost = residual(batch, batch.log_pf_old).detach()
        if len(window) == 1:
            return (cost / batch.scale).clamp(-MAX_COST, MAX_COST)
        others = (window.sum(0) - cost) / (len(window) - 1)
        return ((cost - others) / (window.std(0, correction=0) + 1e-8)).clamp(-MAX_COST, MAX_COST)
