"""Prompt sources and objectives out of contract are reported by name."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dagflow import PluginError, Prompt
from dagflow import train as training
from dagflow.config import ObjectiveTable
from dagflow.engine.prompts import as_prompts, heldout_prompts
from dagflow.plugins import Provided, load_plugins
from dagflow.prepare import prepare
from dagflow.types import Needs
from tests.conftest import Silent

PROMPTS = (Prompt("a"), Prompt("b"))


class Endless:
    """A sequence that never raises IndexError."""

    def __len__(self) -> int:
        return 2

    def __getitem__(self, place: int) -> str:
        return "a"


class Leaving(list[str]):
    def __iter__(self) -> Any:
        sys.exit(4)

    def __len__(self) -> int:
        return 1


def leave(*_: object) -> Any:
    sys.exit(3)


def test_a_source_out_of_contract_is_reported_by_name() -> None:
    with pytest.raises(PluginError, match=r"'mine': item 0 is Prompt\(5\), which has no text"):
        as_prompts("mine", [Prompt(5)])  # type: ignore[arg-type]
    for source in ("a cat", {"a cat": 1}, {"a cat"}, None):
        kind = type(source).__name__
        with pytest.raises(PluginError, match=f"prompts 'mine' is a {kind}; expected a list"):
            as_prompts("mine", source)  # type: ignore[arg-type]
    assert as_prompts("mine", ["a cat", ""])[1].text == ""  # a picture of anything
    with pytest.raises(PluginError, match="the metadata of item 0 is NoneType"):
        as_prompts("mine", [Prompt("a cat", None)])  # type: ignore[arg-type]
    with pytest.raises(PluginError, match="'mine' raised SystemExit: 4"):
        as_prompts("mine", Leaving())


def test_a_sequence_is_as_long_as_it_says() -> None:
    assert [prompt.text for prompt in as_prompts("mine", Endless())] == ["a", "a"]


def test_heldout_prompts_may_be_an_array_and_must_be_had() -> None:
    class Source(list):
        heldout = np.array(["a", "b"])

    class Raising(list):
        @property
        def heldout(self):
            raise ValueError("no file")

    assert [p.text for p in heldout_prompts("mine", Source(), PROMPTS)] == ["a", "b"]
    with pytest.raises(PluginError, match="prompts 'mine' raised ValueError: no file"):
        heldout_prompts("mine", Raising(), PROMPTS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"needs": None}, "has no `needs`"),
        ({"flow": staticmethod(lambda *_: 1 / 0)}, "objective Mine raised ZeroDivisionError"),
        (
            {"flow": staticmethod(lambda x, *_: x)},
            r"`flow` returned the shape",
        ),
        ({"__call__": leave}, "objective Mine raised SystemExit"),
        (
            {"__call__": lambda _, batch: (batch.log_pf, {"none": batch.log_pf[:0]})},
            "objective Mine: its metric 'none' is an empty tensor",
        ),
        ({"__call__": lambda _, batch: batch.log_pf}, "Mine: it returned Tensor; expected a loss"),
        ({"__call__": lambda _, batch: (batch.log_pf,)}, "it returned 1 values; expected a loss"),
        ({"__call__": lambda _, batch: (0.5, {})}, "its loss is float; expected a tensor"),
        (
            {"__call__": lambda _, batch: (batch.log_pf.detach(), {})},
            "its loss has no gradient; compute it from log_pf",
        ),
        ({"__call__": lambda _, batch: (batch.log_pf, [])}, "its metrics are list; expected"),
        (
            {"__call__": lambda _, batch: (batch.log_pf, {"one": 1.0})},
            "its metric 'one' is float; expected a tensor",
        ),
        (
            {"__call__": lambda _, batch: (batch.log_pf, {"loss": batch.log_pf})},
            "its metric 'loss' has a name that the engine uses",
        ),
    ],
)
def test_an_objective_out_of_contract_is_reported_by_name(make_run, change, message) -> None:
    def call(_: object, batch: Any) -> Any:
        return batch.log_pf, {}

    body = {"needs": Needs(log_flow=True), "flow": staticmethod(lambda x, *_: x.mean((1, 2, 3)))}
    mine = type("Mine", (), {"__call__": call, **body, **change})
    with pytest.raises(PluginError, match=message):
        training.start(with_objective(make_run, lambda policy: mine()))


def with_objective(make_run, factory: Callable[..., Any]) -> Any:
    """A run with an objective of nobody's."""
    registry = load_plugins()
    mine = Provided("objective", "mine", factory, "dist-mine", "1.5")
    registry = replace(registry, provided=(*registry.provided, mine))
    settings = make_run().config.model_copy(
        update={"objective": ObjectiveTable(name="mine", beta=5.0)}
    )
    return prepare(settings, registry, Silent())


def test_what_a_factory_does_to_torch_stays_with_it(make_run) -> None:
    def factory(policy: Any) -> Any:
        torch.set_default_dtype(torch.float64)
        torch.set_grad_enabled(False)
        return load_plugins().maker("objective", "tb", {})(policy)

    with_objective(make_run, factory)
    assert torch.get_default_dtype() is torch.float32
    assert torch.is_grad_enabled()
