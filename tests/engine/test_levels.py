"""Where log F and log Z begin: on average over the first epoch, every balance holds."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dagflow.engine.levels import first_levels, zero_levels
from dagflow.engine.window import Window, as_trajectories, numbers
from tests.conftest import first_window
from tests.engine.test_whole_trajectories import OBJECTIVES


def levelled(run, beta: float) -> Window:
    window = first_window(run)
    levels = first_levels(run.learner, run.path, window.trajectories, window.potentials)
    return replace(window, levels=levels, beta=beta)


def batch_of(run, window):
    flat = numbers(run.learner, window, window.log_pf_old, None)
    return as_trajectories(run.learner, window, flat)


@pytest.mark.parametrize("potential", ["rollout", "none"])
@pytest.mark.parametrize("density", ["mean", "sum"])
@pytest.mark.parametrize("beta", [0.0, 7.0])
def test_flows_balance_on_average_over_the_rest_from_every_step(
    make_run, beta, density, potential
) -> None:
    objective = {"name": "db", "log_density": density, **OBJECTIVES["db"]}
    run = make_run(objective=objective, rollout={"potential": potential})
    batch = batch_of(run, levelled(run, beta))
    delta = batch.log_flow + batch.log_pf - batch.log_flow_next - batch.log_pb
    over_the_rest = delta.flip(1).cumsum(1).mean(0)
    bound = 1e-4 * run.learner.scale
    zero = torch.zeros_like(over_the_rest)
    torch.testing.assert_close(over_the_rest, zero, rtol=0, atol=bound)
    plain = batch_of(run, replace(levelled(run, beta), levels=zero_levels(run.path.steps)))
    assert bool(((plain.log_flow - batch.log_flow).abs() > bound).all())
    assert torch.equal(plain.log_flow_next[:, -1], batch.log_flow_next[:, -1])  # the reward


@pytest.mark.parametrize("name", ["tb", "subtb", "rtb"])
def test_log_z_balances_whole_trajectories_on_average(make_run, name) -> None:
    run = make_run(objective={"name": name, **OBJECTIVES[name]})
    window = levelled(run, 7.0)
    residual = run.learner.objective(batch_of(run, window))[1]["residual"]
    assert abs(residual.mean().item()) < 1e-4
    plain = replace(window, levels=zero_levels(run.path.steps))
    other = run.learner.objective(batch_of(run, plain))[1]["residual"]
    assert abs(other.mean().item()) > 0.1


@pytest.mark.parametrize("world", ["gaussians-2d", "digits"])
def test_what_a_flow_says_untrained_is_not_counted_twice(make_run, world) -> None:
    """That of worlds begins at the standard normal's log-density, not at zero."""
    run = make_run(
        model=f"world:{world}",
        rewards={"jpeg-compressibility": {}, "truth": {"name": "world-density", "world": world}},
        objective={"name": "subtb", "log_density": "sum", "flow_channels": [16]},
        rollout={"potential": "none", "samples_per_epoch": 64, "batch_size": 64},
    )
    batch = batch_of(run, levelled(run, 1.0))
    delta = batch.log_flow + batch.log_pf - batch.log_flow_next - batch.log_pb
    over_the_rest = delta.flip(1).cumsum(1).mean(0)
    torch.testing.assert_close(over_the_rest, torch.zeros_like(over_the_rest), rtol=0, atol=0.02)
    assert abs(run.learner.objective(batch)[1]["residual"].mean().item()) < 0.02
