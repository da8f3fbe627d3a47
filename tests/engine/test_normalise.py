from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dagflow.engine.checkpoint import checkpoints
from dagflow.engine.normalise import Statistics, learn, normalised, summary
from dagflow.engine.scoring import WeightedReward, total
from dagflow.errors import Interrupted
from dagflow.train import resume, start

TWO = {
    "jpeg-compressibility": {"normalise_epochs": 1, "weight": 2.0},
    "jpeg-incompressibility": {"weight": 0.5, "quality": 50},
}
MEASURED = {"other": {"name": "jpeg-incompressibility"}}


def reward(label: str, weight: float = 1.0, epochs: int = 0) -> WeightedReward:
    return WeightedReward(label, lambda images, prompts: images, weight, normalise_epochs=epochs)


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=5), seed=st.integers(0, 99))
def test_statistics_by_batches_are_those_of_all_scores(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    scores = 100 + torch.randn(sum(sizes))
    found: dict[str, Statistics] = {}
    for epoch, part in enumerate(scores.split(sizes)):
        found = learn([reward("one", epochs=9)], found, part[None], epoch)
    assert found["one"].mean == pytest.approx(float(scores.double().mean()), rel=1e-9)
    deviation = float(scores.double().std(correction=0))
    assert found["one"].deviation == pytest.approx(max(deviation, 1e-6), rel=1e-6, abs=1e-9)


def test_statistics_freeze_and_only_normalised_rewards_have_them() -> None:
    rewards = [reward("one", epochs=1), reward("two")]
    raw = torch.tensor([[1.0, 3.0], [5.0, 9.0]])
    after = learn(rewards, {}, raw, 0)
    assert after == {"one": Statistics(2, 2.0, 2.0)}
    assert learn(rewards, after, 10 * raw, 1) == after


def test_a_normalised_reward_has_mean_zero_and_the_weights_deviation() -> None:
    raw = torch.tensor([[1.0, 3.0, 8.0]])
    rewards = [reward("one", weight=2.0, epochs=1)]
    values = total(normalised(rewards, learn(rewards, {}, raw, 0)), raw)
    assert float(values.mean()) == pytest.approx(0, abs=1e-6)
    assert float(values.std(correction=0)) == pytest.approx(2.0)


def test_a_constant_reward_survives_normalisation() -> None:
    raw = torch.full((1, 4), 0.3)
    rewards = [reward("one", epochs=1)]
    values = total(normalised(rewards, learn(rewards, {}, raw, 0)), raw)
    assert values.abs().max() < 0.1


def test_shares_add_up_and_correlation_is_pearsons_of_the_raw_scores() -> None:
    raw = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    rewards = [reward("a", 2.0), reward("b", -1.0), reward("c", 0.0)]
    numbers = summary(rewards, raw, beta=10.0)
    assert sum(numbers[f"rewards.{x}.share"] for x in "abc") == pytest.approx(1.0)
    assert numbers["rewards.a.share"] > numbers["rewards.b.share"] > 0
    assert numbers["rewards.c.share"] == 0
    expected = float(torch.corrcoef(raw)[0, 1])
    assert numbers["correlation.a.b"] == pytest.approx(expected, abs=1e-5)
    assert numbers["rewards.b.effective_beta"] == -10.0


def test_a_run_of_two_rewards_logs_each_and_resumes_to_the_same_numbers(
    make_run, tmp_path: Path
) -> None:
    changes = {"rewards": TWO, "evaluate": {"images": 2, "grid": 0, "rewards": MEASURED}}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    outcome = start(make_run(**changes, output=str(whole)))
    assert outcome.evaluation.comparison.trained.scores.keys() == TWO.keys() | MEASURED.keys()

    asked = {"phase": "", "count": 0}

    def stop() -> bool:
        asked["count"] += asked["phase"] == "update 2"
        return asked["count"] == 2

    run = make_run(stop, **changes, output=str(parts))
    run.watcher.phase = lambda name, total, epoch: asked.update(phase=f"{name} {epoch}")
    with pytest.raises(Interrupted):
        start(run)
    state = json.loads((checkpoints(parts / "checkpoints")[-1] / "state.json").read_text())
    assert state["statistics"].keys() == {"jpeg-compressibility"}
    resume(make_run(**changes, output=str(parts)))
    assert (whole / "metrics.jsonl").read_bytes() == (parts / "metrics.jsonl").read_bytes()

    lines = [json.loads(line) for line in (whole / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if "reward_mean" in line]
    first = epochs[0]
    beta = first["rewards.jpeg-incompressibility.effective_beta"] / 0.5
    assert first["rewards.jpeg-compressibility.effective_beta"] > 2 * beta > 0
    assert first["eval_rewards.other.mean"] == -first["rewards.jpeg-compressibility.mean"]
    assert "correlation.jpeg-compressibility.jpeg-incompressibility" in first
