"""N processes take the same step as one, to the order in which numbers are added."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

USUALLY = 1e-5  # the largest relative difference of a gradient
# A replayed trajectory was sampled once and retraced again, and its residuals nearly cancel.
LARGEST = {"replay": 5e-5}
OF_WHOLE_WINDOWS = {"kl-normalised", "kl-returns", "tb", "vargrad", "subtb", "rtb", "uneven"}
OF_WHOLE_WINDOWS |= {"ddpo", "grpo"}
OF_SHARDS = {"sharded": 2, "sharded-uneven": 3}  # how many passes there are is agreed on first
Result = tuple[dict[str, torch.Tensor], dict[str, dict[str, int]]]


def found_by(size: int, folder: Path) -> Result:
    """What so many processes find."""
    file = folder / f"{size}.safetensors"
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    program = [f"--nproc-per-node={size}", "-m", "tests.processes.gradients", str(file)]
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
    assert one.keys() == many.keys()
    for name, values in one.items():
        case, _, what = name.partition("/")
        expected, found = values.double(), many[name].double()
        assert expected.norm() > 0, name
        error = float((found - expected).norm() / expected.norm())
        assert error <= (0 if what == "prompts" else LARGEST.get(case, USUALLY)), name
    for case, counts in traffic.items():
        _travels_once(case, counts, one)


def _travels_once(case: str, counts: dict[str, int], tensors: dict[str, torch.Tensor]) -> None:
    """Gradients do, in a step; the authors average them once in each transition."""
    assert counts["reductions"] == 1, case
    sizes = [tensors.get(f"{case}/{name}", torch.empty(0)).numel() for name in ("policy", "flow")]
    assert counts["reduced_bytes"] == 4 * sum(sizes), case
    usual = 2 if case in OF_WHOLE_WINDOWS else 1
    assert counts["meetings"] == OF_SHARDS.get(case, usual), case
    assert counts["meeting_bytes"] < 20_000, case
