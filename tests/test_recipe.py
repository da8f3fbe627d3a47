from __future__ import annotations

import re
from pathlib import Path

import pytest

from dagflow import UserError, config
from dagflow.plugins import load_plugins
from dagflow.recipe import read_recipe, recipe_help, recipes
from tests.conftest import SHORT_OPTIONS

BASES = {"paper", "single-gpu-24gb"}  # to be extended, or given a --reward
PAPERS = ("aesthetic", "compressibility", "hpsv2", "imagereward", "incompressibility")


@pytest.mark.parametrize("name", recipes())
def test_recipes_are_complete_and_name_what_exists(name: str) -> None:
    resolved = config.resolve(read_recipe(name))
    registry = load_plugins()
    for label, table in resolved.rewards.items():
        registry.maker("reward", table.name or label, table.options)
    registry.maker("objective", resolved.objective.name, resolved.objective.options)
    registry.maker("prompts", resolved.prompts.name, resolved.prompts.options)
    assert bool(resolved.rewards) == (name not in BASES)
    assert recipe_help(recipes()[name])


@pytest.mark.parametrize("scale", ["paper", "single-gpu-24gb", "tiny"])
def test_every_reward_of_the_paper_has_a_recipe_of_every_size(scale: str) -> None:
    rewards = {name: list(read_recipe(f"{scale}-{name}")["rewards"]) for name in PAPERS}
    assert rewards == {
        "aesthetic": ["aesthetic"],
        "compressibility": ["jpeg-compressibility"],
        "hpsv2": ["hpsv2"],
        "imagereward": ["imagereward"],
        "incompressibility": ["jpeg-incompressibility"],
    }


def test_the_papers_recipes_make_two_updates_an_epoch() -> None:
    resolved = config.resolve(read_recipe("paper-aesthetic"))
    assert resolved.updates_per_epoch == 2
    assert resolved.beta(0) == 0
    assert resolved.beta(100) == resolved.beta(199) == 100


def test_a_recipe_extends_others_and_replaces_their_rewards(tmp_path: Path) -> None:
    own = tmp_path / "own.toml"
    own.write_text('extends = "tiny"\nepochs = 2\n[rewards.b]\n[update]\nbatch_size = 64\n')
    (tmp_path / "own2.toml").write_text(f'extends = ["{own}", "paper"]\nseed = 3\n')
    tree, tiny = read_recipe(str(own)), read_recipe("tiny")
    assert tree["epochs"] == 2
    assert list(tree["rewards"]) == ["b"]
    assert tree["update"] == {**tiny["update"], "batch_size": 64}
    both = read_recipe(str(tmp_path / "own2.toml"))
    assert (both["seed"], both["epochs"], list(both["rewards"])) == (3, 100, ["b"])
    assert "extends" not in both


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("epochs = = 3", r"'broken\.toml' is not a TOML file"),
        ("extends = 3", r"extends = 3: expected names of recipes or files"),
        ('extends = "tinny"', r"no recipe or file 'tinny'. Did you mean 'tiny'\?"),
        ('extends = "broken.toml"', r"in a circle: broken\.toml extends broken\.toml\."),
        ('extends = "a\\u0000b"', r"'a\\x00b' is not a TOML file: embedded null"),
        ('extends = "."', r"\. cannot be read: Is a directory"),
    ],
)
def test_a_bad_recipe_is_named(
    content: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("broken.toml").write_text(content)
    with pytest.raises(UserError, match=message):
        read_recipe("broken.toml")


def test_a_file_extends_the_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text('extends = "tiny"\nepochs = 7\n')
    (tmp_path / "own.toml").write_text('extends = "base.toml"\n')
    assert read_recipe(str(tmp_path / "own.toml"))["epochs"] == 7


def test_a_shown_recipe_is_a_recipe(dagflow, tmp_path: Path) -> None:
    done = dagflow("recipes", "--show", "single-gpu-24gb-hpsv2")
    assert done.returncode == 0, done.stderr
    (tmp_path / "shown.toml").write_text(done.stdout)
    assert read_recipe(str(tmp_path / "shown.toml")) == read_recipe("single-gpu-24gb-hpsv2")
    assert "single-gpu-24gb-hpsv2.toml" in done.stdout.splitlines()[0]
    assert "TMLR 2025" in done.stdout
    listed = dagflow("recipes")
    assert all(name in listed.stdout for name in recipes())
    assert dagflow("recipes", "--show", "papper").returncode == 2


@pytest.mark.parametrize("scale", ["paper", "single-gpu-24gb", "tiny"])
@pytest.mark.parametrize("objective", ["db", "kl"])
def test_the_papers_recipes_train_the_embedded_model(
    scale: str, objective: str, dagflow, tmp_path: Path
) -> None:
    done = dagflow("train", f"{scale}-compressibility", "--objective", objective, "--model", "tiny",
                   "--output", "run", *SHORT_OPTIONS, "-s", "evaluate.grid=0",
                   "-s", "update.timestep_fraction=1", "-s", "dtype=float32")  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "checkpoints" / "epoch-0002").is_dir()


def test_the_documented_recipe_of_ones_own_resolves(tmp_path: Path) -> None:
    page = Path(__file__).parents[1] / "docs" / "recipes.md"
    [own] = re.findall(r"```toml\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "own.toml").write_text(own)
    resolved = config.resolve(read_recipe(str(tmp_path / "own.toml")))
    assert list(resolved.rewards) == ["aesthetic"]
    assert resolved.update.learning_rate == 1e-4
