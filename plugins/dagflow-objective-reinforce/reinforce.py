"""REINFORCE as a dagflow objective: how an objective declares what it needs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from dagflow import Needs, Objective, ObjectiveFactory, PolicySpec, Transitions, hookimpl

if TYPE_CHECKING:
    from torch import Tensor


class Reinforce:
    """Policy gradient with a leave-one-out baseline: -(R - baseline) * p / p_old.

    Williams, "Simple statistical gradient-following algorithms for connectionist reinforcement
    learning", 1992, for each transition; R = beta * reward of its trajectory's image. In an epoch's
    first step p = p_old, and the gradient is REINFORCE's, -(R - baseline) * grad log p. In later
    steps the transition's ratio corrects for the steps since then, on the scale of one latent
    value, as in `kl`. The ratios of its trajectory's earlier transitions are left out, as in PPO.
    """

    needs = Needs(rewards=True, window=True)

    def __call__(self, batch: Transitions) -> tuple[Tensor, Mapping[str, Tensor]]:
        assert batch.window is not None
        assert batch.log_reward is not None
        advantage = batch.log_reward - leave_one_out(batch, batch.window)
        ratio = ((batch.log_pf - batch.log_pf_old) / batch.scale).exp()
        loss = -batch.scale * advantage * ratio
        return loss, {"advantage_abs": advantage.abs(), "ratio": ratio}


def leave_one_out(batch: Transitions, window: Transitions) -> Tensor:
    """For each transition, the mean log-reward of the *other* trajectories of its prompt, (B,).

    Each trajectory counts once, however many of its transitions are in the window. If its prompt
    has no other trajectory there, the mean is over all other trajectories; if there are none, it
    is zero. A trajectory's own reward is never in its baseline, so the gradient stays unbiased.
    """
    assert batch.trajectory is not None
    assert batch.prompt is not None
    assert window.trajectory is not None
    assert window.prompt is not None
    assert window.log_reward is not None
    once = 1 / (window.trajectory[:, None] == window.trajectory).sum(1)  # (M,)
    others = (batch.trajectory[:, None] != window.trajectory) * once  # (B, M)
    alike = others * (batch.prompt[:, None] == window.prompt)
    chosen = alike.where(alike.any(1, keepdim=True), others)
    return (chosen * window.log_reward).sum(1) / chosen.sum(1).clamp(min=0.5)


def reinforce(spec: PolicySpec) -> Objective:
    """REINFORCE with a leave-one-out baseline for each prompt; only maximises the reward."""
    return Reinforce()


@hookimpl
def dagflow_register_objectives() -> Mapping[str, ObjectiveFactory]:
    return {"reinforce": reinforce}
