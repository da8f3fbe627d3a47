"""Objectives on whole trajectories: (sub-)trajectory balance, VarGrad, relative balance.

For a trajectory x_0 -> ... -> x_T from noise to the image, with the standard normal p_0,

    delta = log Z(prompt) + log p_0(x_0) + sum of log p - sum of log q - beta * reward,

or with log p of the frozen base model in place of log q; p_0 then cancels.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate

import torch
from torch import Tensor, nn

from dagflow import Needs, PolicySpec, Transitions
from dagflow.objectives.flows import flow_network
from dagflow.objectives.groups import group_means

Loss = Callable[[Tensor], Tensor]


class LogZ(nn.Module):
    """log Z of a prompt: a linear function of its mean embedding, initially zero."""

    def __init__(self, spec: PolicySpec) -> None:
        super().__init__()
        self.linear = nn.Linear(spec.cross_attention_dim, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, prompt_embeds: Tensor) -> Tensor:
        """(B,) for prompt_embeds (B, L, E)."""
        result: Tensor = self.linear(prompt_embeds.mean(1)).squeeze(1)
        return result


def gap(batch: Transitions, against_base: bool) -> Tensor:
    """delta without log Z, (B,)."""
    assert batch.log_reward is not None
    if against_base:
        assert batch.log_p_base is not None
        return (batch.log_pf - batch.log_p_base).sum(1) - batch.log_reward
    assert batch.log_pb is not None
    assert batch.log_p0 is not None
    return batch.log_p0 + (batch.log_pf - batch.log_pb).sum(1) - batch.log_reward


class TrajectoryBalance(nn.Module):
    """Malkin et al., "Trajectory balance", 2022, equation 14, with a learned log Z.

    `against_base`: relative trajectory balance, Venkatraman et al., 2024 (arXiv:2405.20971),
    equation 8: the target is p_base * exp(beta * reward).
    """

    def __init__(self, spec: PolicySpec, loss: Loss, against_base: bool) -> None:
        super().__init__()
        self.log_z = LogZ(spec)
        self.loss, self.against_base = loss, against_base
        self.needs = Needs(
            trajectories=True,
            rewards=True,
            log_z=True,
            log_pb=not against_base,
            log_p_base=against_base,
        )

    def forward(self, batch: Transitions) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert batch.log_z is not None
        delta = batch.log_z + gap(batch, self.against_base)
        return self.loss(delta), {"residual": delta, "log_z_learned": batch.log_z}


class VarGrad:
    """Richter et al., "VarGrad", 2020; Zhang et al., 2023: log Z is a mean over a prompt's group.

    With the loss `square`, a group's loss is the variance of its gaps times its size.
    """

    needs = Needs(trajectories=True, rewards=True, log_pb=True, groups=True)

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def __call__(self, batch: Transitions) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert batch.prompt is not None
        gaps = gap(batch, against_base=False)
        log_z = -group_means(gaps.detach(), batch.prompt)
        delta = log_z + gaps
        return self.loss(delta), {"residual": delta, "log_z_group": log_z}


class SubTrajectoryBalance(nn.Module):
    """Madan et al., "Learning GFlowNets from partial episodes", 2023: SubTB(lambda), equation 6.

    Every stretch of a trajectory is balanced, weighted by lambda to the power of its length. The
    source is a separate state before x_0, with flow Z, forward density p_0 and one way back.
    """

    needs = Needs(
        trajectories=True, rewards=True, log_flow=True, log_pb=True, log_z=True, potentials=True
    )

    def __init__(
        self,
        spec: PolicySpec,
        flow_channels: Sequence[int],
        loss: Loss,
        decay: float,
    ) -> None:
        super().__init__()
        self.flow = flow_network(spec, flow_channels)
        self.log_z = LogZ(spec)
        self.loss, self.decay = loss, decay

    def forward(self, batch: Transitions) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert batch.log_z is not None
        assert batch.log_p0 is not None
        assert batch.log_pb is not None
        assert batch.log_flow is not None
        assert batch.log_reward is not None
        first, last = batch.log_z[:, None], batch.log_reward[:, None]
        log_flow = torch.cat([first, batch.log_flow, last], 1)  # (B, T+2)
        steps = torch.cat([batch.log_p0[:, None], batch.log_pf - batch.log_pb], 1)
        before = torch.zeros_like(batch.log_z)
        # not with cumsum, which has no deterministic kernel on CUDA
        passed = list(accumulate(steps.unbind(1), initial=before))
        sums = torch.stack(passed, 1) - log_flow
        delta = sums[:, None, :] - sums[:, :, None]  # of the stretch from state m to state n
        lengths = torch.arange(sums.shape[1], device=sums.device)
        lengths = lengths[None, :] - lengths[:, None]
        logits = (lengths * math.log(self.decay)).masked_fill(lengths <= 0, -math.inf)
        weights = logits.flatten().softmax(0).view_as(logits)
        loss = (self.loss(delta) * weights).sum((1, 2))
        return loss, {"residual": delta[:, 0, -1], "log_z_learned": batch.log_z}
