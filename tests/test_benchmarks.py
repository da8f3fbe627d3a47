"""What benchmarks/vs_literal.py compares is the same; how long it takes is not tested."""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture
def vs_literal(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import vs_literal

    return vs_literal


@pytest.mark.parametrize("name", ["db", "kl"])
def test_gradients_are_those_of_the_literal_procedure(vs_literal, name) -> None:
    assert vs_literal.difference(name, 4) < 1e-4


def test_each_state_is_decoded_once_instead_of_twice(vs_literal) -> None:
    options = Namespace(samples=4, steps=4, rounds=1, chunk=64)
    table = vs_literal.table(vs_literal.Model("tiny", "tiny"), options)
    names, _, _, passes, decoded = (list(column.cells) for column in table.columns)
    rows = dict(zip(names, zip(map(float, passes), map(float, decoded), strict=True), strict=True))
    assert rows["literal"] == (7, 9)  # x0hat at both ends of 4 transitions, but not of the image
    assert rows["current"] == (0, 5)
    assert rows["rollout"] == rows["rollout, preview decoder"] == (0, 5)
    assert rows["rollout, a quarter of the steps"] == (0, 2)
    assert rows[vs_literal.LIMIT] == (0, 0)


def test_throughput_counts_work_against_what_the_device_can_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import throughput

    options = Namespace(samples=2, steps=2, chunk=2, rounds=1)
    table = throughput.epochs(throughput.Model("tiny", "tiny"), options, compiled=False)
    [row] = zip(*(column.cells for column in table.columns), strict=True)
    assert row[0] == "plain"
    _, sampled, _, whole, _ = (float(cell.rstrip("%")) for cell in row[1:])
    assert 0 < whole < sampled
