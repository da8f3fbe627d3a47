"""Worlds from the command line: the quick guard of `make worlds`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

QUICK = [
    *("train", "world", "--model", "world:gaussians-1d", "--output", "run"),
    *("-s", "epochs=120", "-s", "evaluate.images=4000"),
]


@pytest.mark.parametrize(
    ("objective", "reward", "most"),
    [("tb", "world-density", 0.15), ("kl", "world-density", 0.15), ("rtb", "world-ratio", 0.15)],
)
def test_training_approaches_a_known_target(dagflow, tmp_path: Path, objective, reward, most):
    """From 0.34; what chance alone does to so few samples is 0.01."""
    done = dagflow(
        *QUICK, "--objective", objective, "--reward", f"{reward}:gaussians-1d",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    distances = report["distances"]
    assert distances["base"]["total_variation"] > 0.28
    assert distances["trained"]["total_variation"] < most
    assert distances["trained"]["energy"] < distances["base"]["energy"]
    assert distances["reference"]["total_variation"] < 0.05
    assert "from the target" in done.stdout
    assert "slope" in done.stdout
    assert Image.open(tmp_path / "run" / "samples" / "truth.png").size[0] > 500


def test_a_trained_world_is_sampled(dagflow, tmp_path: Path) -> None:
    done = dagflow(
        *("train", "world", "--model", "world:digits", "--reward", "world-density:digits"),
        *("--output", "run", "-s", "epochs=1", "-s", "evaluate.images=100"),
    )
    assert done.returncode == 0, done.stderr
    drawn = dagflow("sample", "run", "--prompt", "x", "-n", "3", "--output", "drawn")
    assert drawn.returncode == 0, drawn.stderr
    assert len(list((tmp_path / "drawn").glob("0*.png"))) == 3


def test_an_unknown_world_is_refused(dagflow) -> None:
    done = dagflow("train", "world", "--model", "world:ring", "--output", "run")
    assert done.returncode == 2
    assert "Worlds: gaussians-1d, gaussians-2d, digits" in " ".join(done.stderr.split())


def test_beta_from_a_divergence(dagflow, tmp_path: Path) -> None:
    words = [
        *("train", "world", "--reward", "world-ratio:gaussians-2d"),
        *("-s", "epochs=2", "-s", "evaluate.images=100", "-s", "objective.beta=auto:KL=0.1"),
    ]
    done = dagflow(*words, "--objective", "rtb", "--output", "run")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert 0.2 < report["temperature"]["beta"] < 1  # at beta = 1 the divergence is 0.25
    refused = dagflow(*words, "--objective", "tb", "--output", "other")
    assert refused.returncode == 2
    assert "rtb" in refused.stderr


def test_a_reward_budget_decides_the_epochs(dagflow, tmp_path: Path) -> None:
    words = ["-s", "rollout.samples_per_epoch=64", "-s", "update.batch_size=640"]
    words += ["-s", "evaluate.images=100", "-s", "update.flow_warmup=1"]
    done = dagflow("train", "world", "--output", "run", *words, "-s", "reward_budget=200")
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["reward_calls"] == 192
    assert "epochs = 3" in (tmp_path / "run" / "config.toml").read_text()
    less = dagflow("train", "world", "--output", "less", *words, "-s", "reward_budget=20")
    assert less.returncode == 2
    assert "64 images" in " ".join(less.stderr.split())
