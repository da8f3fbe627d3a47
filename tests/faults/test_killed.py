"""SIGKILL at random instants: no run is lost, and each ends as if nothing had happened."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("objective", ["db", "kl"])
def test_a_run_survives_its_kills(tmp_path: Path, objective: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.killed", str(tmp_path), objective, "25"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    counts = json.loads(done.stdout.splitlines()[-1])
    print(counts)
    assert counts["kills"] == 25
    assert counts["lost"] == counts["unreadable latest"] == counts["different in the end"] == 0
