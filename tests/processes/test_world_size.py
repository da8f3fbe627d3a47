"""N processes take the same step as one, to the order in which numbers are added."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

USUALLY = 1e-5  # the largest relative difference of a gradient
# A retraced trajectory is less likely than a sampled one, which amplifies rounding. All of it is
# rounding: see the test in float64.
LARGEST = {"replay": 5e-5}
IN_DOUBLE = 1e-12
OF_WHOLE_WINDOWS = {"kl-normalised", "kl-returns", "tb", "vargrad", "subtb", "rtb", "uneven"}
OF_WHOLE_WINDOWS |= {"ddpo", "grpo"}
OF_SHARDS = {"sharded": 2, "sharded-uneven": 3}  # how many passes there are is agreed on first
Differences = Iterator[tuple[str, float]]
Result = tuple[dict[str, torch.Tensor], dict[str, dict[str, int]]]


def found_by(size: int, folder: Path, *options: str) -> Result:
    """What so many processes find."""
    file = folder / f"{size}.safetensors"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    program = [f"--nproc-per-node={size}", "-m", "tests.processes.gradients", str(file), *options]
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [*launcher, *program],
        cwd=root,
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return load_file(file), json.loads(file.with_suffix(".json").read_text())


@pytest.mark.parametrize("size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_gradients_are_those_of_one_process(tmp_path: Path, size: int) -> None:
    (one, _), (many, traffic) = found_by(1, tmp_path), found_by(size, tmp_path)
    for name, error in _differences(one, many):
        case, _, what = name.partition("/")
        assert error <= (0 if what == "prompts" else LARGEST.get(case, USUALLY)), name
    for case, counts in traffic.items():
        _travels_once(case, counts, one)


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
def test_what_differs_is_rounding(tmp_path: Path, size: int) -> None:
    (one, _), (many, _) = (found_by(n, tmp_path, "--double") for n in (1, size))
    for name, error in _differences(one, many):
        if name.endswith(("/policy", "/flow")):
            assert error <= IN_DOUBLE, name


def _differences(one: dict[str, torch.Tensor], many: dict[str, torch.Tensor]) -> Differences:
    """Relative, by name."""
    assert one.keys() == many.keys()
    for name, values in one.items():
        expected, found = values.double(), many[name].double()
        assert expected.norm() > 0, name
        yield name, float((found - expected).norm() / expected.norm())


def _travels_once(case: str, counts: dict[str, int], tensors: dict[str, torch.Tensor]) -> None:
    """Gradients do, in a step; the authors average them once in each transition."""
    assert counts["reductions"] == 1, case
    sizes = [tensors.get(f"{case}/{name}", torch.empty(0)).numel() for name in ("policy", "flow")]
    assert counts["reduced_bytes"] == 4 * sum(sizes), case
    usual = 2 if case in OF_WHOLE_WINDOWS else 1
    assert counts["meetings"] == OF_SHARDS.get(case, usual), case
    assert counts["meeting_bytes"] < 20_000, case
