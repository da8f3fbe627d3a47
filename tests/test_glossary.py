"""Every number that a run writes is explained in one place."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dagflow import train
from dagflow.glossary import GROUPS, TIMINGS, TITLES, explain


def lines(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def paths(tree: dict[str, object], prefix: str = "") -> list[str]:
    """Of all values in nested tables, such as `reward.base`."""
    return [
        path
        for key, value in tree.items()
        for path in (
            paths(value, f"{prefix}{key}.") if isinstance(value, dict) else [f"{prefix}{key}"]
        )
    ]


@pytest.mark.parametrize("objective", ["kl", "db", "tb"])
def test_every_key_of_a_real_run_is_explained(make_run, tmp_path: Path, objective: str) -> None:
    rollout = {"samples_per_epoch": 4, "images_per_prompt": 2}
    measured = {"rewards": {"jpeg-incompressibility": {}}}
    train.start(make_run(objective={"name": objective}, rollout=rollout, evaluate=measured))
    folder = tmp_path / "run"
    written = {
        "metrics": {key for line in lines(folder / "metrics.jsonl") for key in line},
        "timings": {key for line in lines(folder / "timings.jsonl") for key in line},
        "report": set(paths(json.loads((folder / "report.json").read_text()))),
    }
    assert {"loss", "temperature.log_z", "eval_rewards.jpeg-incompressibility.mean"} <= (
        written["metrics"]
    )
    for file, keys in written.items():
        assert not {key for key in keys if explain(key) is None}, file
    assert written["timings"] <= TIMINGS.keys()  # none by the pattern for any other stage


def test_labels_are_filled_in_and_exact_keys_come_first() -> None:
    mean = explain("rewards.aesthetic.mean")
    assert mean is not None
    assert mean.name == "Reward aesthetic"
    assert mean.better == "higher"
    both = explain("correlation.one.other")
    assert both is not None
    assert both.name == "Correlation of one and other"
    update = explain("update_seconds")
    assert update is not None
    assert update.name == "Update"
    other = explain("held_out_seconds")
    assert other is not None
    assert other.name == "held out"
    assert explain("nonsense") is None
    assert explain("xrewards.aesthetic.mean") is None


def test_the_same_key_may_mean_something_else_in_another_record() -> None:
    assert explain("gain") != explain("gain", "alarm")


def test_terms_say_something() -> None:
    assert GROUPS.keys() == TITLES.keys()
    for terms in GROUPS.values():
        for key, term in terms.items():
            assert term.name, key
            assert term.meaning.endswith("."), key
