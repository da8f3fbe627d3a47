"""Random and mutated input: a message and exit code 2, or a run; no traceback, no fragment."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import tomlkit
import torch
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from typer.testing import CliRunner

from dagflow import UserError
from dagflow.cli import app
from dagflow.config import Config

QUICK: dict[str, Any] = {
    "epochs": 1,
    "model": "world:gaussians-2d",
    "output": "run",
    "rewards": {"truth": {"name": "world-density", "world": "gaussians-2d"}},
    "objective": {"name": "db", "beta": 1.0, "log_density": "sum", "flow_channels": [8]},
    "prompts": {"name": "texts", "texts": ["the world"]},
    "rollout": {"samples_per_epoch": 4, "images_per_prompt": 2, "num_inference_steps": 3},
    "update": {"batch_size": 6, "flow_warmup": 1},
    "evaluate": {"images": 2, "grid": 1},
}


def keys(model: type[BaseModel], before: str = "") -> Iterator[str]:
    """The paths of all settings."""
    for name, field in model.model_fields.items():
        yield before + name
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield from keys(field.annotation, f"{before}{name}.")


OF_REWARDS = [f"rewards.truth.{key}" for key in ("name", "weight", "normalise_epochs", "timeout")]
PATHS = [*keys(Config), *OF_REWARDS, "rewards.other.name", "objective.clip", "objective.loss"]
WORDS = ["kl", "tb", "grpo", "mean", "sum", "none", "current", "tiny", "world:no", "file:no.txt"]
REWARDS = ["jpeg-compressibility", "no", "", "=", "a=b", "world-density=2", "world-density=nan"]
texts = st.text(max_size=8)
models = st.one_of(st.sampled_from(["world:gaussians-1d", "ddpm:"]), texts)
values = st.one_of(
    st.sampled_from([-1, 0, 1, 2, 3, 7, 1000, -0.5, 0.0, 0.3, 1.0, 1.5, 1e9, 1e-9]),
    st.sampled_from([float("nan"), float("inf"), True, False, "", "1", "auto", "auto:KL=2"]),
    st.sampled_from([[], [1], [8, 8], ["a"], ["a", ""], {}, {"name": "db"}, {"odd": 1}]),
    st.sampled_from(WORDS),
    texts,
)
paths = st.one_of(st.sampled_from(PATHS), st.text("abc._- =é", max_size=8))
options = st.one_of(
    st.tuples(st.just("--reward"), st.sampled_from(REWARDS)),
    st.tuples(st.just("--objective"), st.one_of(st.sampled_from(["kl", "vargrad", "no"]), texts)),
    st.tuples(st.just("--prompts"), st.one_of(st.sampled_from(["animals", "file:", "no"]), texts)),
    st.tuples(st.just("--prompt"), texts),
    st.tuples(st.just("--model"), models),
    st.tuples(st.just("--seed"), st.sampled_from(["0", "-1", "x", "9" * 30])),
    st.tuples(st.just("--eval-reward"), st.sampled_from(["jpeg-compressibility", "truth", "no"])),
    st.tuples(st.just("--num-processes"), st.sampled_from(["0", "x"])),
    st.tuples(st.just("--node-rank"), st.sampled_from(["-1", "3"])),
    st.tuples(st.just("--nnodes"), st.sampled_from(["0", "2"])),
    st.tuples(st.just("--resume"), st.sampled_from([".", "no", "no@1", "@", "no@"])),
    st.tuples(st.just("-s"), texts),
)


@st.composite
def assignments(draw: st.DrawFn) -> tuple[str, str]:
    value = draw(values)
    written = draw(texts) if isinstance(value, dict) else _toml(value)
    return "-s", f"{draw(paths)}={written}"


def _toml(value: Any) -> str:
    with contextlib.suppress(Exception):
        return tomlkit.item(value).as_string()
    return str(value)


@st.composite
def recipes(draw: st.DrawFn) -> str:
    """A recipe with a few settings replaced, or also with its text damaged."""
    tree: dict[str, Any] = deepcopy(QUICK)
    for path in draw(st.lists(st.sampled_from(PATHS), max_size=2)):
        *tables, key = path.split(".")
        place: Any = tree
        for table in tables:
            place = place.setdefault(table, {})
            if not isinstance(place, dict):
                break
        else:
            place[key] = deepcopy(draw(values))
    try:
        text = tomlkit.dumps(tree)
    except Exception:  # of what TOML cannot say
        return draw(texts)
    if draw(st.booleans()):
        return text
    cut = draw(st.integers(0, len(text)))
    return text[:cut] + draw(texts) + text[cut + draw(st.integers(0, 3)) :]


@pytest.fixture(scope="module")
def command() -> Any:
    """The command line, as `main` puts it together."""
    from dagflow.cli import main

    if not app.registered_commands:
        with contextlib.suppress(SystemExit), pytest.MonkeyPatch.context() as patch:
            patch.setattr("sys.argv", ["dagflow", "--version"])
            main()
    return CliRunner()


def outcome(command: Any, recipe: str, arguments: list[str]) -> None:
    """Raise AssertionError unless it ended well, or with a message and without a trace."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("recipe.toml").write_text(recipe, encoding="utf-8", errors="replace")
        done = command.invoke(app, ["train", "recipe.toml", *arguments])
        error = done.exception
        if isinstance(error, UserError):
            assert str(error).strip(), "a mistake without a message"
            assert set(os.listdir()) == {"recipe.toml"}, os.listdir()
        elif done.exit_code == 2 and isinstance(error, SystemExit):
            assert set(os.listdir()) == {"recipe.toml"}, os.listdir()
        else:
            if error is not None and not isinstance(error, SystemExit):
                raise AssertionError("a traceback for the user") from error
            assert done.exit_code == 0, done.output


def only_so_far(run: Any, place: str = "") -> Any:
    """In place of training: everything that can be wrong with the input is known by now."""
    raise SystemExit(0)


def check(command: Any, recipe: str, more: list[tuple[str, str]]) -> None:
    arguments = [word for pair in more for word in pair]
    note(f"{recipe}\n{arguments}")
    torch.set_num_threads(1)
    outcome(command, recipe, arguments)


fuzz = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    derandomize=True,
)
several = st.lists(st.one_of(options, assignments()), max_size=3)


@settings(fuzz, max_examples=150)
@given(recipe=recipes(), more=several)
def test_input_is_refused_or_prepared(command: Any, recipe: str, more: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dagflow.train.start", only_so_far)
        patch.setattr("dagflow.train.resume", only_so_far)
        check(command, recipe, more)


@pytest.mark.slow
@settings(fuzz, max_examples=2000)
@given(recipe=recipes(), more=several)
def test_much_input_is_refused_or_prepared(command: Any, recipe: str, more: Any) -> None:
    test_input_is_refused_or_prepared.hypothesis.inner_test(command, recipe, more)


SMALL = {"objective", "update.learning_rate", "objective.anneal", "objective.returns"}
SMALL |= {"replay.share", "replay.backward", "rollout.potential", "update.regulariser", "seed"}


@settings(fuzz, max_examples=15)
@given(more=st.lists(st.tuples(st.sampled_from(sorted(SMALL)), values), max_size=3))
def test_what_is_not_refused_runs(command: Any, more: Any) -> None:
    settings = [("-s", f"{path}={_toml(value)}") for path, value in more]
    check(command, tomlkit.dumps(QUICK), settings)
