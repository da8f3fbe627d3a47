"""Objectives on whole trajectories pass twice; their gradients are those of one plain pass."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from dagflow.engine.transitions import cut
from dagflow.engine.update import pass_rows, update, warm_up
from dagflow.engine.window import as_trajectories, numbers
from dagflow.types import Needs
from tests.conftest import first_window, short_config
from tests.engine.test_update import gradients, shake

OBJECTIVES = {
    "tb": {},
    "vargrad": {},
    "subtb": {"flow_channels": [16, 16]},
    "rtb": {},
    "db": {"flow_channels": [16, 16], "returns": 0.9},
    "kl": {"flow_channels": [16, 16], "returns": 0.9, "clip": 0.03},
}


def whole_run(make_run, name: str, **changes):
    objective = {"name": name, "beta": 5.0, **OBJECTIVES[name]}
    return make_run(rollout={"images_per_prompt": 2}, objective=objective, **changes)


@pytest.mark.parametrize("density", ["mean", "sum"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_equal_those_of_one_plain_autograd_pass(make_run, name, density) -> None:
    options = {"name": name, "log_density": density, **OBJECTIVES[name]}
    run = make_run(rollout={"images_per_prompt": 2}, objective=options)
    window = first_window(run)
    shake(run)
    learner = run.learner
    parameters = [*run.policy.parameters(), *learner.objective_parameters]
    log_pf, prediction = pass_rows(learner, window, None)
    flat = numbers(learner, window, log_pf, None)
    loss = learner.objective(as_trajectories(learner, window, flat))[0].mean()
    b, i = window.rows.unbind(1)
    drift = ((prediction - window.trajectories.noise_pred[b, i]) ** 2).mean()
    total = loss + run.config.update.regulariser * learner.scale**2 * drift
    expected = torch.autograd.grad(total, parameters)
    for found, due in zip(gradients(run, window), expected, strict=True):
        torch.testing.assert_close(found, due, rtol=1e-3, atol=1e-4 * float(due.abs().max()) + 1e-9)


@pytest.mark.parametrize("name", ["tb", "subtb"])
def test_the_micro_batch_decides_memory_and_nothing_else(make_run, name) -> None:
    found = []
    for size in (1, 7, 16):
        run = whole_run(make_run, name, update={"microbatch_size": size})
        shake(run)
        found.append(torch.cat([g.flatten() for g in gradients(run, first_window(run))]))
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-5 * float(found[0].norm()))


def test_the_warm_up_moves_log_z_and_flow_alone(make_run) -> None:
    run = whole_run(make_run, "subtb")
    window = first_window(run)
    before = [p.detach().clone() for p in run.policy.parameters()]
    own = [p.detach().clone() for p in run.learner.objective_parameters]
    warm_up(run.learner, window)
    assert all(torch.equal(a, b) for a, b in zip(before, run.policy.parameters(), strict=True))
    moved = [
        not torch.equal(a, b) for a, b in zip(own, run.learner.objective_parameters, strict=True)
    ]
    assert sum(moved) >= 3  # the heads of both start at zero, so the layers below wait


def test_whole_windows_hold_every_step_and_keep_groups_together() -> None:
    rollout = {"samples_per_epoch": 12, "images_per_prompt": 3}
    config = short_config(rollout=rollout, update={"batch_size": 12})
    windows = cut(config, 0, steps=4, needs=Needs(trajectories=True))
    assert len(windows) == 4
    assert sorted(torch.cat(windows).tolist()) == [[b, i] for b in range(12) for i in range(4)]
    for rows in windows:
        assert rows[:, 1].tolist() == [0, 1, 2, 3] * 3
        assert rows[::4, 0].tolist() == [int(rows[0, 0]) + k for k in range(3)]
    others = [
        torch.cat(cut(config, epoch, steps=4, needs=Needs(trajectories=True)))
        for epoch in range(1, 4)
    ]
    assert any(not torch.equal(torch.cat(windows), other) for other in others)


def test_rtb_learns_nothing_from_the_base_model_at_beta_zero(make_run) -> None:
    run = whole_run(make_run, "rtb")
    window = replace(first_window(run), beta=0.0)
    numbers = update(run.learner, window)
    assert numbers["loss"] < 1e-9
