"""benchmarks/remote_hostile.py attacks a server of its own; the table in the docs is its output."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.remote.conftest import ROOT


def test_attacks_are_refused_and_leave_the_server_as_it_was() -> None:
    script = ROOT / "benchmarks" / "remote_hostile.py"
    done = subprocess.run(
        [sys.executable, str(script), "--times", "2", "--json"],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(done.stdout)
    assert result["alive"]
    assert result["wrong"] == []
    assert result["good requests afterwards"] == {"200": 2}
    assert result["good requests during the slow ones"]["200"] > 5
    at_once = result["attacks"]["1000 good requests at once"]
    assert sum(at_once.values()) == 1000
    assert at_once["200"] >= 64
    growth = result["memory after, MB"] - result["memory before, MB"]
    assert growth < 60, result
