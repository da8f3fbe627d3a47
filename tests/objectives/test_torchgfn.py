"""Our losses beside those of torchgfn 2.4.1, which `tools/torchgfn/golden.py` wrote down.

Theirs are in float64, ours in float32. torchgfn counts the step from the source to x_0 as one of
the trajectory's, with density p_0 and one way back; our log_p0 is that step.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dagflow import PolicySpec, Transitions
from dagflow.objectives.balance import DetailedBalance
from dagflow.objectives.regression import linex, shifted_cosh, square
from dagflow.objectives.trajectory import SubTrajectoryBalance, TrajectoryBalance, VarGrad

GOLDEN: dict[str, Any] = json.loads(
    Path(__file__).with_name("torchgfn-2.4.1.json").read_text("utf-8")
)
THEIRS: dict[str, Any] = GOLDEN["outputs"]
SPEC = PolicySpec(latent_channels=4, cross_attention_dim=96)


def ours(name: str) -> Tensor:
    return torch.tensor(GOLDEN["inputs"][name])


def batch(**changes: object) -> Transitions:
    """The whole trajectories that torchgfn was given; densities of the base model are extra."""
    names = ("log_pf", "log_pb", "log_flow", "log_p0", "log_z")
    values: dict[str, Any] = {name: ours(name) for name in names}
    log_reward = ours("beta") * ours("reward")
    values["log_flow_next"] = torch.cat([values["log_flow"][:, 1:], log_reward[:, None]], 1)
    values |= {"log_pf_old": values["log_pf"], "log_reward": log_reward}
    return Transitions(**{**values, "beta": 2.5, "final_beta": 2.5, "scale": 1.0, **changes})


def assert_theirs(found: Tensor, expected: object, factor: float = 1.0) -> None:
    assert found.dtype == torch.float32
    expected = factor * torch.tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(found.double(), expected, rtol=5e-6, atol=5e-6)


def test_square() -> None:
    found = square(ours("residuals"))
    assert_theirs(found, THEIRS["SquaredLoss()"])
    assert_theirs(found, THEIRS["HalfSquaredLoss()"], factor=2)  # as its name says


def test_shifted_cosh() -> None:
    assert_theirs(shifted_cosh(ours("residuals")), THEIRS["ShiftedCoshLoss()"])


def test_linex() -> None:
    """Its argument is log(p_B / p_F) in Hu et al., so that Linex(1) is the forward KL divergence.

    Our residual is log p_F side - log p_B side, therefore -delta. (The balances of torchgfn have
    our residual and hand it to their loss as it is, so LinexLoss in them is another loss.)
    Theirs is t^2 / 2 near zero, and ours, as all our losses, t^2: a factor of 2.
    """
    assert ours("residuals").abs().max() < 10  # beyond it, ours goes on as a straight line
    assert_theirs(linex(-ours("residuals")), THEIRS["LinexLoss(alpha=1.0)"], factor=2)


@pytest.mark.parametrize(("loss", "name"), [(square, "tb"), (shifted_cosh, "tb_cosh")])
def test_trajectory_balance(loss: Any, name: str) -> None:
    found, metrics = TrajectoryBalance(SPEC, loss, against_base=False)(batch())
    assert_theirs(found, THEIRS[name])
    assert_theirs(metrics["residual"] - ours("log_z"), THEIRS["tb_scores"])


def test_relative_trajectory_balance() -> None:
    """Theirs is half the square. p_0 was a step of both their policies, and cancels."""
    objective = TrajectoryBalance(SPEC, square, against_base=True)
    found, metrics = objective(batch(log_pb=None, log_p0=None, log_p_base=ours("log_p_base")))
    assert_theirs(found, THEIRS["rtb"], factor=2)
    assert_theirs(metrics["residual"] - ours("log_z"), THEIRS["rtb_scores"])


def test_vargrad_of_one_prompt() -> None:
    assert THEIRS["vargrad"][0]["trajectories"] == [0, 1, 2, 3, 4]
    same = torch.zeros(5, dtype=torch.int64)
    found, _ = VarGrad(square)(batch(prompt=same, log_z=None))
    assert_theirs(found, THEIRS["vargrad"][0]["loss"])


def test_vargrad_of_two_prompts() -> None:
    """Theirs knows no prompts, and was given the trajectories of each by themselves."""
    first, second = THEIRS["vargrad"][1:]
    assert (first["trajectories"], second["trajectories"]) == ([0, 1, 2], [3, 4])
    prompt = torch.tensor([7, 7, 7, 3, 3])
    found, _ = VarGrad(square)(batch(prompt=prompt, log_z=None))
    assert_theirs(found, first["loss"] + second["loss"])


@pytest.mark.parametrize("theirs", THEIRS["subtb"], ids=lambda theirs: f"decay={theirs['decay']}")
def test_sub_trajectory_balance(theirs: dict[str, Any]) -> None:
    """Their weights, "geometric_within", add up to 1 over a trajectory as ours do.

    They start from lambda^0 where ours start from lambda^1, which the sum divides out.
    """
    found, metrics = SubTrajectoryBalance(SPEC, (8,), square, theirs["decay"])(batch())
    assert_theirs(found, theirs["loss"])
    assert_theirs(metrics["residual"] - ours("log_z"), THEIRS["tb_scores"])
    assert_theirs(found.mean(), theirs["batch"])  # over a batch theirs is the mean


def test_detailed_balance() -> None:
    """Of the steps after x_0: at the step from the source we have no balance of its own."""
    objective = DetailedBalance(SPEC, (8,), square, against_base=False, returns=0.0)
    found, metrics = objective(batch())
    assert_theirs(found, THEIRS["db"])
    assert_theirs(metrics["residual"], THEIRS["db_scores"])
