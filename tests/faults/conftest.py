"""Runs of a world that are begun by the command and left alone, for a test to disturb."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

COMMAND = str(Path(sys.executable).with_name("dagflow"))
WORLD = [
    *("train", "world-2d", "-s", "rollout.samples_per_epoch=16", "-s", "update.flow_warmup=5"),
    *("-s", "rollout.num_inference_steps=5", "-s", "update.batch_size=20"),
    *("-s", "evaluate.images=0", "-s", "evaluate.grid=2", "-s", "checkpoint.every=1"),
    *("-s", "objective.flow_channels=[16, 16]", "-s", "rollout.potential=rollout"),
]
WITH_REPLAY = ["--objective", "db", "-s", "replay.share=0.25", "-s", "replay.backward=0.25"]
TWO_REWARDS = [
    *("-s", "rewards.truth.normalise_epochs=2", "-s", "rewards.again.name=world-density"),
    *("-s", "rewards.again.world=gaussians-2d", "-s", "rewards.again.weight=0.5"),
]
PATIENCE = 120  # seconds


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Begin a command in an empty directory; whatever is left of it is killed in the end."""
    begun: list[subprocess.Popen[str]] = []

    def call(*arguments: str, **options: Any) -> subprocess.Popen[str]:
        command = [*options.pop("before", []), *options.pop("instead", [COMMAND])]
        process = subprocess.Popen(
            [*command, *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )
        begun.append(process)
        return process

    yield call
    for process in begun:
        if process.poll() is None:
            process.kill()
        process.communicate()


def wait_for(there: Callable[[], object], what: str) -> None:
    """Until it is there."""
    end = time.monotonic() + PATIENCE
    while not there():
        assert time.monotonic() < end, f"{what} did not come"
        time.sleep(0.02)


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and what it said, once it has ended."""
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out + err
