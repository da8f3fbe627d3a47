"""Losses that the genuine torchgfn computes from random numbers, for our tests to compare with.

It needs its own environment, since torchgfn requires an older numpy than ours:

    python -m venv ENVIRONMENT
    ENVIRONMENT/bin/pip install torchgfn==2.4.1
    ENVIRONMENT/bin/python tools/torchgfn/golden.py tests/objectives/torchgfn-2.4.1.json

States are pairs (trajectory, step), and policies and flows look their values up in a table. All the
rest is torchgfn's own: masks, sums, residuals, weights, losses. Everything is computed in float64
from multiples of 1/1024, which float32 represents exactly.

Steps count from the source: 0 is source -> x_0, then T steps x_k -> x_(k+1). In torchgfn the last
step is the exit and has no backward density, so where there is one, the last step's is subtracted
from its forward density beforehand.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from gfn.actions import Actions
from gfn.containers import Trajectories
from gfn.env import Env
from gfn.estimators import Estimator, PolicyMixin, ScalarEstimator
from gfn.gflownet import (
    DBGFlowNet,
    HalfSquaredLoss,
    LinexLoss,
    LogPartitionVarianceGFlowNet,
    RelativeTrajectoryBalanceGFlowNet,
    ShiftedCoshLoss,
    SquaredLoss,
    SubTBGFlowNet,
    TBGFlowNet,
)
from gfn.states import States
from torch import Tensor, nn

B, T = 5, 4
BETA = 2.5
GROUPS = [[0, 1, 2, 3, 4], [0, 1, 2], [3, 4]]  # trajectories of one prompt
DECAYS = [0.9, 1.0, 1.5]


class Pairs(Env):
    """States are (trajectory, step); an action moves on or exits."""

    def __init__(self) -> None:
        super().__init__(
            s0=torch.tensor([-1.0, -1.0]),
            state_shape=(2,),
            action_shape=(1,),
            dummy_action=torch.tensor([torch.inf]),
            exit_action=torch.tensor([-torch.inf]),
        )

    def step(self, states: States, actions: Actions) -> States:
        raise NotImplementedError

    backward_step = step

    def is_action_valid(self, states: States, actions: Actions, backward: bool = False) -> bool:
        return True


class Table(nn.Module):
    """values[trajectory, step] of a state."""

    input_dim = 2

    def __init__(self, values: Tensor) -> None:
        super().__init__()
        self.register_buffer("values", values)

    def forward(self, states: Tensor) -> Tensor:
        row, step = states.long().unbind(-1)
        return self.values[row, step][..., None]


class Known:
    """A distribution that gives every action the same known density."""

    def __init__(self, log_density: Tensor) -> None:
        self.log_density = log_density

    def log_prob(self, actions: Tensor) -> Tensor:
        return self.log_density


class Policy(PolicyMixin, Estimator):
    """The log-density of the step from a state, or into it if `is_backward`."""

    expected_output_dim = 1

    def to_probability_distribution(self, states: States, module_output: Tensor) -> Known:
        return Known(module_output[..., 0])


def trajectories(env: Pairs, log_reward: Tensor, first: int = 0) -> Trajectories:
    """All B trajectories, from state number `first` (0 is the source)."""
    steps = torch.arange(first, T + 1).double()
    rows = torch.arange(B).double()
    states = torch.full((len(steps) + 1, B, 2), -torch.inf)  # the last is the sink
    states[:-1, :, 0], states[:-1, :, 1] = rows, steps[:, None]
    actions = torch.zeros(len(steps), B, 1)
    actions[-1] = -torch.inf
    return Trajectories(
        env,
        env.states_from_tensor(states),
        env.actions_from_tensor(actions),
        terminating_idx=torch.full((B,), len(steps)),
        log_rewards=log_reward,
    )


def inputs() -> dict[str, Tensor]:
    """Random numbers, under the names of our `Transitions`."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return (torch.randn(shape, generator=generator) * 1024).round() / 1024

    values = {name: normal(B, T) for name in ("log_pf", "log_pb", "log_p_base", "log_flow")}
    values |= {name: normal(B) for name in ("log_p0", "log_z", "reward")}
    residuals = torch.rand(24, generator=generator) * 18 - 9
    return {**values, "residuals": (residuals * 1024).round() / 1024}


def outputs(values: dict[str, Tensor]) -> dict[str, Any]:
    env = Pairs()
    log_reward = BETA * values["reward"]
    source = values["log_p0"][:, None]
    exit_has_none = values["log_pf"].clone()
    exit_has_none[:, -1] -= values["log_pb"][:, -1]

    forward = Policy(Table(torch.cat([source, exit_has_none], 1)))
    into = torch.cat([torch.zeros(B, 2), values["log_pb"]], 1)  # nothing into source, 0 into x_0
    backward = Policy(Table(into), is_backward=True)
    flow = ScalarEstimator(Table(torch.cat([values["log_z"][:, None], values["log_flow"]], 1)))
    whole = trajectories(env, log_reward)

    result: dict[str, Any] = {
        repr(loss): loss(values["residuals"])
        for loss in (SquaredLoss(), HalfSquaredLoss(), ShiftedCoshLoss(), LinexLoss(1.0))
    }

    for name, loss in (("tb", SquaredLoss()), ("tb_cosh", ShiftedCoshLoss())):
        tb = TBGFlowNet(forward, backward, loss_fn=loss, debug=True)
        tb.logZ = nn.Parameter(values["log_z"])  # one of each trajectory
        result[name] = tb.loss(env, whole, reduction="none")
    result["tb_scores"] = tb.get_scores(whole)  # without log Z

    variance = LogPartitionVarianceGFlowNet(forward, backward, debug=True)
    result["vargrad"] = [
        {"trajectories": group, "loss": variance.loss(env, whole[group], reduction="none")}
        for group in GROUPS
    ]

    result["subtb"] = []
    for decay in DECAYS:
        subtb = SubTBGFlowNet(
            forward, backward, flow, weighting="geometric_within", lamda=decay, debug=True
        )
        each = [subtb.loss(env, whole[[row]], reduction="sum") for row in range(B)]
        batch = subtb.loss(env, whole, reduction="sum")
        result["subtb"].append({"decay": decay, "loss": torch.stack(each), "batch": batch})

    db = DBGFlowNet(forward, backward, flow, debug=True)
    transitions = db.to_training_samples(trajectories(env, log_reward, first=1))
    assert transitions.states.tensor[:, 0].tolist() == list(range(B)) * T  # ordered by time
    result["db_scores"] = db.get_scores(env, transitions).reshape(T, B).T
    result["db"] = db.loss(env, transitions, reduction="none").reshape(T, B).T

    posterior, prior = (
        Policy(Table(torch.cat([source, values[name]], 1))) for name in ("log_pf", "log_p_base")
    )
    rtb = RelativeTrajectoryBalanceGFlowNet(posterior, prior, beta=BETA, debug=True)
    rtb.logZ = nn.Parameter(values["log_z"])
    unscaled = trajectories(env, values["reward"])
    result["rtb"] = rtb.loss(env, unscaled, reduction="none")
    result["rtb_scores"] = rtb.get_scores(unscaled)
    return result


def plain(value: Any) -> Any:
    """Tensors as lists."""
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    return [plain(part) for part in value] if isinstance(value, list) else value


def main() -> None:
    assert version("torchgfn") == "2.4.1"
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    values = inputs()
    with torch.no_grad():
        result = outputs(values)
    parts = {"beta": BETA, **values}, result
    lines = [
        ",\n".join(f'    "{name}": {json.dumps(plain(value))}' for name, value in part.items())
        for part in parts
    ]
    text = '{{\n  "inputs": {{\n{}\n  }},\n  "outputs": {{\n{}\n  }}\n}}\n'.format(*lines)
    json.loads(text)
    Path(sys.argv[1]).write_text(text)


if __name__ == "__main__":
    main()
