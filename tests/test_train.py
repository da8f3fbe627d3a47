"""When a run ends early."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest
import torch

from dagflow.config import EvaluateTable
from dagflow.engine.checkpoint import checkpoints
from dagflow.engine.scoring import WeightedReward
from dagflow.errors import Interrupted
from dagflow.prepare import Run
from dagflow.train import resume, start

ONE_CALL_AN_EPOCH = {
    "rollout": {"potential": "none"},
    "evaluate": {"images": 0, "grid": 0, "watched": 0},
}
EVALUATED = EvaluateTable(images=2, grid=0, watched=0)


def rising(run: Run, step: float, begin: int = 0) -> Run:
    """The run with a reward of deviation 1 whose mean rises by `step` from epoch to epoch."""
    calls = count(begin)

    def score(images, prompts):
        values = images.mean((1, 2, 3))
        return (values - values.mean()) / values.std() + step * next(calls)

    return replace(run, rewards=(WeightedReward("rising", score, 1.0),))


def records(folder: Path, key: str) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if key in line]


def test_a_run_ends_when_it_has_gained_enough_and_may_go_on(make_run) -> None:
    changes = {**ONE_CALL_AN_EPOCH, "epochs": 4}
    outcome = start(rising(make_run(**changes, stop_at_gain=1.5), step=1.0))
    assert outcome.stopped is not None
    assert outcome.stopped.epochs == 2
    assert outcome.stopped.gain == pytest.approx(2.0, abs=1e-5)
    assert outcome.checkpoint.name == "epoch-0002"
    assert len(records(make_run().folder, "reward_mean")) == 2

    again = resume(rising(make_run(**changes, stop_at_gain=1.5), step=1.0, begin=10))
    assert again.stopped is not None
    assert again.stopped.gain == pytest.approx(10.0, abs=1e-5)  # over the first epoch of all
    on = resume(rising(make_run(**changes), step=1.0))
    assert on.stopped is None
    assert on.checkpoint.name == "epoch-0004"


def test_a_run_that_stops_is_saved_before_it_is_evaluated(make_run) -> None:
    asked = []
    changes = {**ONE_CALL_AN_EPOCH, "epochs": 4, "checkpoint": {"every": 10}}
    run = make_run(lambda: bool(asked), **changes, stop_at_gain=1.5)
    run = rising(replace(run, config=run.config.model_copy(update={"evaluate": EVALUATED})), 1.0)
    run.watcher.phase = lambda name, total, epoch: asked.extend([name] * (name == "evaluate"))
    with pytest.raises(Interrupted):
        start(run)
    assert checkpoints(run.folder / "checkpoints")[-1].name == "epoch-0002"


def test_a_reward_that_does_not_vary_stops_nothing(make_run) -> None:
    run = make_run(**ONE_CALL_AN_EPOCH, epochs=2, stop_at_gain=0.5)
    calls = count()
    constant = WeightedReward("constant", lambda i, p: torch.full((4,), 0.3 + next(calls)), 1.0)
    assert start(replace(run, rewards=(constant,))).stopped is None


def test_a_normalised_rewards_gain_counts_from_the_last_epoch_that_moves_it(make_run) -> None:
    run = rising(make_run(**ONE_CALL_AN_EPOCH, epochs=6, stop_at_gain=1.5), step=1.0)
    [item] = run.rewards
    outcome = start(replace(run, rewards=(replace(item, normalise_epochs=3),)))
    assert outcome.stopped is not None
    assert outcome.stopped.epochs == 4  # 2 deviations above the third
    gains = [line["gain"] for line in records(run.folder, "gain")]
    assert gains == pytest.approx([0, 0, 0, 1], abs=1e-4)


def test_the_best_is_found_among_what_compares(make_run) -> None:
    """While statistics move, no gain is known, and none is a lower bound of those to come."""
    run = rising(make_run(**ONE_CALL_AN_EPOCH, epochs=5), step=-1.0)
    [item] = run.rewards
    start(replace(run, rewards=(replace(item, normalise_epochs=3),)))
    assert (run.folder / "checkpoints" / "best").resolve().name == "epoch-0002"


def test_a_falling_reward_stops_nothing(make_run) -> None:
    run = make_run(**ONE_CALL_AN_EPOCH, epochs=3, stop_at_gain=0.5)
    assert start(rising(run, step=-1.0)).stopped is None
    assert checkpoints(run.folder / "checkpoints")[-1].name == "epoch-0003"


@pytest.mark.parametrize("potential", ["rollout", "current", "none"])
@pytest.mark.parametrize("objective", ["db", "kl", "subtb"])
def test_every_image_that_a_reward_is_asked_about_in_training_is_counted(
    make_run, potential: str, objective: str
) -> None:
    asked = []

    def score(images, prompts):
        asked.append(len(images))
        return images.mean((1, 2, 3))

    run = make_run(
        objective={"name": objective},
        rollout={"potential": potential, "potential_steps": 2},
        update={"flow_warmup": 2},
        evaluate={"images": 0, "grid": 0, "watched": 0},
        epochs=2,
    )
    outcome = start(replace(run, rewards=(WeightedReward("counting", score, 1.0),)))
    position = json.loads((outcome.checkpoint / "state.json").read_text())
    assert position["reward_calls"] == sum(asked)


@pytest.mark.parametrize("moment", ["previews", "warm-up", "update"])
def test_what_was_asked_before_a_break_is_counted_once(make_run, tmp_path, moment: str) -> None:
    changes = {
        "rollout": {"potential": "current"},
        "evaluate": {"images": 0, "grid": 0, "watched": 0},
        "epochs": 1,
    }
    whole = start(make_run(**changes, output=str(tmp_path / "whole"))).checkpoint
    asked: list[str] = []
    run = make_run(lambda: moment in asked, **changes)
    run.watcher.phase = lambda name, total, epoch: asked.append(name)
    with pytest.raises(Interrupted):
        start(run)
    resumed = resume(make_run(**changes)).checkpoint
    states = [json.loads((folder / "state.json").read_text()) for folder in (whole, resumed)]
    assert states[0]["reward_calls"] == states[1]["reward_calls"]
