"""Within a window every state is passed, decoded, scored and evaluated once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch

from dagflow.engine.potentials import CurrentPotentials
from dagflow.engine.update import update, warm_up
from tests.conftest import first_window
from tests.engine.test_update import all_current, gradients, shake

SETTINGS = {"rollout": {"potential": "current"}}
DB = {"name": "db", "returns": 0.0}


def current_of(run, window, states=None) -> CurrentPotentials:
    states = range(run.path.steps) if states is None else states
    return CurrentPotentials(run.learner, window, run.rewards, states)


def counted(run, monkeypatch) -> Counter[str]:
    """How many states pass through each function from now on."""
    seen: Counter[str] = Counter()

    def count(owner, name: str) -> None:
        plain = getattr(owner, name)

        def counting(x, *rest):
            seen[name] += len(x)
            return plain(x, *rest)

        monkeypatch.setattr(owner, name, counting)

    for name in ("predict", "predict_text", "preview", "decode"):
        count(run.policy, name)
    if run.learner.objective.needs.log_flow:
        count(run.learner.objective.flow, "forward")
    return seen


@pytest.mark.parametrize("size", [3, 4, 16])
def test_single_transitions_pass_each_state_once(make_run, monkeypatch, size) -> None:
    run = make_run(objective=DB, update={"microbatch_size": size}, **SETTINGS)
    window = first_window(run)  # 4 trajectories of 4 steps
    seen = counted(run, monkeypatch)
    update(run.learner, current_of(run, window))
    cut = {3: 4, 4: 0, 16: 0}[size]  # chunks that end within a trajectory
    assert dict(seen) == {"predict": 16, "preview": 16, "forward": 16 + cut}


def test_a_stretch_passes_only_the_state_after_it_as_well(make_run, monkeypatch) -> None:
    run = make_run(objective=DB, **SETTINGS)
    window = first_window(run).part(torch.tensor([[1, 0], [1, 1], [2, 2], [2, 3]]))
    seen = counted(run, monkeypatch)
    update(run.learner, current_of(run, window))
    assert dict(seen) == {"predict": 4, "predict_text": 1, "preview": 5, "forward": 5}


def test_states_without_a_potential_are_not_decoded(make_run, monkeypatch) -> None:
    run = make_run(objective=DB, **SETTINGS)
    window = first_window(run)
    seen = counted(run, monkeypatch)
    current = current_of(run, window, states=(1, 3))
    update(run.learner, current)
    assert seen["preview"] == 8
    assert not current.window.potentials[:, [0, 2]].any()


def test_whole_trajectories_look_in_their_first_pass(make_run, monkeypatch) -> None:
    objective = {"name": "db", "returns": 1.0}
    run = make_run(objective=objective, **SETTINGS)
    window = first_window(run)
    seen = counted(run, monkeypatch)
    update(run.learner, current_of(run, window))
    assert (seen["predict"], seen["predict_text"], seen["preview"]) == (32, 0, 16)


def test_potentials_of_the_rollout_cost_an_update_nothing(make_run, monkeypatch) -> None:
    run = make_run(objective=DB)
    window = first_window(run)
    seen = counted(run, monkeypatch)
    update(run.learner, window)
    assert (seen["predict"], seen["predict_text"], seen["preview"]) == (16, 0, 0)
    warm_up(run.learner, window)
    assert seen["predict"] == 16


OBJECTIVES = {
    "db": {},
    "kl": {"clip": 0.03},
    "kl with statistics of the window": {"clip": 0.03, "normalise": True},
}


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradients_are_those_of_potentials_computed_beforehand(make_run, name) -> None:
    objective = {"name": name.split()[0], "returns": 0.0, **OBJECTIVES[name]}
    run = make_run(objective=objective, **SETTINGS)
    window = first_window(run)
    shake(run)
    expected = gradients(run, window.with_potentials(all_current(run, window)))
    learner = run.learner
    run = make_run(objective=objective, **SETTINGS)
    shake(run)
    found: list[torch.Tensor] = []
    parameters = [*run.policy.parameters(), *run.learner.objective_parameters]
    run.learner.optimizer.register_step_pre_hook(
        lambda *_: found.extend(parameter.grad.clone() for parameter in parameters)
    )
    settings = learner.settings.model_copy(update={"max_grad_norm": 1e12})
    again = replace(run.learner, settings=settings)
    update(again, current_of(run, window))
    for a, b in zip(found, expected, strict=True):
        # a pixel on the edge of two grey levels may round either way: a few bytes of the file
        torch.testing.assert_close(a, b, rtol=0.02, atol=0.02 * float(b.abs().max()) + 1e-9)
