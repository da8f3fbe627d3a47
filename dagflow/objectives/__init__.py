"""The built-in objectives, registered like those of any plugin."""

from __future__ import annotations

import math
from collections.abc import Mapping

from dagflow import Objective, ObjectiveFactory, PolicySpec, UserError, hookimpl

CHANNELS = (64, 128, 256, 256)


def _require(fits: bool, name: str, value: float, due: str) -> None:
    if not fits:
        raise UserError(f"{name} = {value:g}: expected {due}.")


def _check_returns(returns: float) -> None:
    _require(0 <= returns <= 1, "returns", returns, "a number from 0 to 1")


def _check_clip(clip: float) -> None:
    _require(clip > 0, "clip", clip, "a number above 0")


def detailed_balance(
    spec: PolicySpec,
    flow_channels: tuple[int, ...] = CHANNELS,
    loss: str = "square",
    returns: float = 1.0,
) -> Objective:
    """DAG-DB: squared residual of the forward-looking detailed balance of each transition.

    loss: square, huber, shifted-cosh or linex, of the residual. returns: lambda, 0 to 1: the
    residual is summed over the following transitions, weighted by lambda^k; 0: single transitions,
    as published.
    """
    from dagflow.objectives.balance import DetailedBalance
    from dagflow.objectives.regression import regression

    _check_returns(returns)
    return DetailedBalance(spec, flow_channels, regression(loss), False, returns)


def residual_db(
    spec: PolicySpec,
    flow_channels: tuple[int, ...] = CHANNELS,
    loss: str = "square",
    returns: float = 1.0,
) -> Objective:
    """Detailed balance against the base model: the target is p_base * exp(beta * reward).

    loss: square, huber, shifted-cosh or linex, of the residual. returns: as for db.
    """
    from dagflow.objectives.balance import DetailedBalance
    from dagflow.objectives.regression import regression

    _check_returns(returns)
    return DetailedBalance(spec, flow_channels, regression(loss), True, returns)


def kl(
    spec: PolicySpec,
    flow_channels: tuple[int, ...] = CHANNELS,
    clip: float = 1e-4,
    coefficient: float | None = None,
    normalise: bool = False,
    returns: float = 1.0,
) -> Objective:
    """DAG-KL: policy gradient with the balance's residual as cost, and a clipped ratio.

    clip: the importance ratio is clipped to 1 +- clip. coefficient: weight of the policy's term; by
    default the final beta. normalise: centre the cost leave-one-out over the window, standardise it
    and clip it to +-5. returns: lambda, 0 to 1: the residual is summed over the following
    transitions, weighted by lambda^k; 0: single transitions, as published.
    """
    from dagflow.objectives.balance import KL

    _check_returns(returns)
    _check_clip(clip)
    if coefficient is not None:
        due = "a finite number from 0"
        _require(0 <= coefficient < math.inf, "coefficient", coefficient, due)
    return KL(spec, flow_channels, clip, coefficient, normalise, returns)


def trajectory_balance(spec: PolicySpec, loss: str = "square") -> Objective:
    """Trajectory balance with a learned log Z for each prompt.

    loss: square, huber, shifted-cosh or linex, of the residual.
    """
    from dagflow.objectives.regression import regression
    from dagflow.objectives.trajectory import TrajectoryBalance

    return TrajectoryBalance(spec, regression(loss), against_base=False)


def vargrad(spec: PolicySpec, loss: str = "square") -> Objective:
    """Trajectory balance with log Z estimated from each prompt's group of images.

    loss: square, huber, shifted-cosh or linex, of the residual.
    """
    from dagflow.objectives.regression import regression
    from dagflow.objectives.trajectory import VarGrad

    return VarGrad(regression(loss))


def subtb(
    spec: PolicySpec,
    flow_channels: tuple[int, ...] = CHANNELS,
    loss: str = "square",
    decay: float = 3.0,
) -> Objective:
    """Sub-trajectory balance: every stretch of a trajectory, weighted by its length.

    loss: square, huber, shifted-cosh or linex, of the residual. decay: lambda, above 0; a stretch
    of n steps has the weight lambda^n (0.9 as published; see docs/objectives.md).
    """
    from dagflow.objectives.regression import regression
    from dagflow.objectives.trajectory import SubTrajectoryBalance

    _require(0 < decay < math.inf, "decay", decay, "a finite number above 0")
    return SubTrajectoryBalance(spec, flow_channels, regression(loss), decay)


def rtb(spec: PolicySpec, loss: str = "square") -> Objective:
    """Relative trajectory balance: the target is p_base * exp(beta * reward).

    loss: square, huber, shifted-cosh or linex, of the residual.
    """
    from dagflow.objectives.regression import regression
    from dagflow.objectives.trajectory import TrajectoryBalance

    return TrajectoryBalance(spec, regression(loss), against_base=True)


def ddpo(spec: PolicySpec, clip: float = 1e-4) -> Objective:
    """DDPO: clipped policy gradient with statistics for each prompt; maximises the reward.

    clip: the importance ratio is clipped to 1 +- clip.
    """
    from dagflow.objectives.policy_gradient import ClippedPolicyGradient

    _check_clip(clip)
    return ClippedPolicyGradient(clip, grouped=False)


def grpo(spec: PolicySpec, clip: float = 1e-4, kl_coefficient: float = 0.0) -> Objective:
    """GRPO: clipped policy gradient with advantages among a prompt's images in the window.

    clip: the importance ratio is clipped to 1 +- clip. kl_coefficient: weight, from 0, of a penalty
    on leaving the base model.
    """
    from dagflow.objectives.policy_gradient import ClippedPolicyGradient

    _check_clip(clip)
    due = "a finite number from 0"
    _require(0 <= kl_coefficient < math.inf, "kl_coefficient", kl_coefficient, due)
    return ClippedPolicyGradient(clip, grouped=True, kl_coefficient=kl_coefficient)


@hookimpl
def dagflow_register_objectives() -> Mapping[str, ObjectiveFactory]:
    return {
        "db": detailed_balance,
        "kl": kl,
        "tb": trajectory_balance,
        "vargrad": vargrad,
        "subtb": subtb,
        "rtb": rtb,
        "residual-db": residual_db,
        "ddpo": ddpo,
        "grpo": grpo,
    }
