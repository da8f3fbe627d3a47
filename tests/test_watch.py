"""Looks at held-out seeds while a run goes on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from dagflow import train
from dagflow.evaluate import win_rate
from dagflow.watch import Watch


def records(folder: Path) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines if '"held_out.' in line]


def test_a_run_is_looked_at_before_and_after_each_epoch(make_run) -> None:
    run = make_run(
        evaluate={"watched": 8, "images_per_prompt": 4, "rewards": {"jpeg-incompressibility": {}}}
    )
    train.start(run)
    first, *later = records(run.folder)
    assert [first["epoch"], *(record["epoch"] for record in later)] == [0, 1, 2]
    assert first["held_out.win_rate"] == 0.5
    assert first["held_out.reward_change"] == first["held_out.drift.kl"] == 0
    for record in later:
        assert record.keys() >= first.keys()
        assert record["held_out.drift.kl"] > 0
        assert record["held_out.reward_change"] == pytest.approx(
            record["held_out.reward_mean"] - first["held_out.reward_mean"], abs=1e-5
        )
        rewards = [record[f"held_out.rewards.jpeg-{k}compressibility"] for k in ("", "in")]
        assert rewards[0] == pytest.approx(-rewards[1])
        assert record["held_out.jpeg_kb"] == pytest.approx(-rewards[0])
    assert 1 <= first["held_out.vendi"] <= 4
    assert json.loads((run.folder / "samples" / "prompts.json").read_text()) == ["a cat", "a dog"]


def test_looks_can_be_rare_or_absent(make_run) -> None:
    run = make_run(epochs=3, evaluate={"every": 2, "images": 0})
    train.start(run)
    assert [record["epoch"] for record in records(run.folder)] == [0, 2, 3]
    run = make_run(output=str(run.folder) + "2", evaluate={"watched": 0, "images": 0})
    train.start(run)
    assert not records(run.folder)
    assert Image.open(run.folder / "samples" / "epoch-0002.png").size[0] > 0


def test_the_base_model_stays_the_same(make_run) -> None:
    """Whatever was trained meanwhile: a resumed run compares with the same images."""
    run = make_run()
    fresh = Watch(run).look(run, 0, {})
    weights = run.policy.weights()
    run.policy.set_weights({name: value + 0.1 for name, value in weights.items()})
    late = Watch(run).look(run, 1, {})
    assert torch.equal(fresh.base.rewards, late.base.rewards)
    assert not torch.equal(late.base.rewards, late.now.rewards)


def test_win_rate_counts_ties_half() -> None:
    base, now = torch.tensor([0.0, 1, 2, 3]), torch.tensor([1.0, 1, 1, 4])
    assert win_rate(base, now) == (2 + 0.5) / 4


def test_a_reward_that_is_not_normalised_yet_has_no_mean(make_run) -> None:
    """On a scale that moves from look to look; paired changes are on one scale."""
    run = make_run(
        epochs=3,
        rewards={"jpeg-compressibility": {"normalise_epochs": 2}},
        evaluate={"watched": 4, "images": 0},
    )
    train.start(run)
    shown = ["held_out.reward_mean" in record for record in records(run.folder)]
    assert shown == [False, False, True, True]
    assert all("held_out.reward_change" in record for record in records(run.folder))
