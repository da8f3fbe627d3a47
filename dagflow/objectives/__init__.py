"""The built-in objectives, registered like anybody's."""

from __future__ import annotations

from collections.abc import Mapping

from dagflow import Objective, ObjectiveFactory, PolicySpec, hookimpl

CHANNELS = (64, 128, 256, 256)


def detailed_balance(spec: PolicySpec, flow_channels: tuple[int, ...] = CHANNELS) -> Objective:
    """DAG-DB: squared residual of the forward-looking detailed balance of each transition."""
    from dagflow.objectives.balance import DetailedBalance

    return DetailedBalance(spec, flow_channels)


def kl(
    spec: PolicySpec,
    flow_channels: tuple[int, ...] = CHANNELS,
    clip: float = 1e-4,
    coefficient: float | None = None,
    normalise: bool = False,
) -> Objective:
    """DAG-KL: policy gradient with the balance's residual as cost, and a clipped ratio.

    clip: the importance ratio is held within 1 +- clip. coefficient: of the policy's term; by
    default the final beta. normalise: replace the cost by its leave-one-out centred, standardised
    value over the window, clipped to +-5.
    """
    from dagflow.objectives.balance import KL

    return KL(spec, flow_channels, clip, coefficient, normalise)


@hookimpl
def dagflow_register_objectives() -> Mapping[str, ObjectiveFactory]:
    return {"db": detailed_balance, "kl": kl}
