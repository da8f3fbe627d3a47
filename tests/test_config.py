from __future__ import annotations

import tomllib
from datetime import date

import pytest

from dagflow import UserError, config
from dagflow.cli.train import _resumed
from dagflow.config_file import dump
from dagflow.recipe import read_recipe


def test_a_dumped_configuration_reads_back_equal() -> None:
    tree = {
        "epochs": 3,
        "rewards": {"small": {"name": "jpeg-compressibility", "weight": 2, "limits": {"low": 3}}},
        "objective": {"name": "kl", "clip": 0.5, "flow_channels": [8, 16]},
        "prompts": {"name": "texts", "texts": ['a "quoted" cat', "ünïcode", "back\\slash"]},
        "lora": {"targets": ["to_q"]},
    }
    resolved = config.resolve(tree)
    assert config.resolve(tomllib.loads(dump(resolved))) == resolved


def test_overrides_are_toml_values_or_plain_text() -> None:
    tree = read_recipe("tiny")
    config.override(
        tree,
        ["epochs=3", "update.learning_rate=1e-5", "objective.flow_channels=[8]",
         "prompts.name=file:a=b.txt", "rewards.jpeg-compressibility.weight = 2"],
    )  # fmt: skip
    resolved = config.resolve(tree)
    assert resolved.epochs == 3
    assert resolved.update.learning_rate == 1e-5
    assert resolved.objective.options["flow_channels"] == [8]
    assert resolved.prompts.name == "file:a=b.txt"
    assert resolved.rewards["jpeg-compressibility"].weight == 2


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("epoch=3", "there is no setting 'epoch'. Did you mean 'epochs'? Known here: epochs, stop"),
        ("update.batchsize=3", "no setting 'update.batchsize'. Did you mean 'batch_size'?"),
        ("epochs=many", "epochs = 'many': input should be a valid integer"),
        ("epochs=0", "epochs = 0: input should be greater than 0"),
        ("rollout.potential=later", "input should be 'rollout', 'current' or 'none'"),
        ("update.batch_size=5000", "update.batch_size = 5000 is more than the"),
        ("lora.targets=to_q", "lora.targets = 'to_q': input should be a list, such as ["),
        ("rollout.images_per_prompt=3", "images_per_prompt = 3 does not divide"),
        ("epochs", "'epochs' is not of the form key.path=value"),
        ("epochs.x=3", "'epochs.x': 'epochs' is a value, not a table"),
        ("rewards=3", "rewards = 3: input should be a valid dictionary"),
        ("rewards.a=3", "rewards.a = 3: input should be a valid dictionary"),
    ],
)
def test_wrong_settings_get_one_clear_message(assignment: str, message: str) -> None:
    tree = read_recipe("tiny")

    def apply() -> None:
        config.override(tree, [assignment])
        config.resolve(tree)

    with pytest.raises(UserError) as caught:
        apply()
    assert message in str(caught.value)


def test_every_mistake_has_its_own_line() -> None:
    with pytest.raises(UserError) as caught:
        config.resolve({"epoch": 1, "seed": -1})
    assert len(str(caught.value).splitlines()) == 2


def test_beta_rises_over_as_many_updates_however_many_epochs_a_resumed_run_has(tmp_path) -> None:
    text = "epochs = 10\n[objective]\nanneal = 0.7\n"
    for epochs, anneal in ((4, 1.75), (10, 0.7), (14, 0.5)):
        (tmp_path / "config.toml").write_text(text)
        found = _resumed(tmp_path, [f"epochs={epochs}"])
        assert found.objective.anneal == pytest.approx(anneal)
        config.resolve(found.model_dump(mode="json"))  # as the next resume reads it
    assert _resumed(tmp_path, []).objective.anneal == 0.7


def test_a_run_resumes_whatever_its_options_are(tmp_path) -> None:
    text = "[rewards.mine]\ncap = inf\nfloor = nan\nday = 2026-11-26\n"
    (tmp_path / "config.toml").write_text(text)
    options = _resumed(tmp_path, ["epochs=3"]).rewards["mine"].options
    assert (options["cap"], options["day"]) == (float("inf"), date(2026, 11, 26))
    with pytest.raises(UserError, match="rewards cannot change"):
        _resumed(tmp_path, ["rewards.mine.cap=1"])
