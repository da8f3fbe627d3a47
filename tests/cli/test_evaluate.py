"""`dagflow evaluate`, and what may change of evaluation when a run resumes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import SHORT_OPTIONS


def test_evaluate_from_the_command_line(dagflow: Callable[..., Any], tmp_path: Path) -> None:
    done = dagflow("train", "--output", "run", *SHORT_OPTIONS)
    assert done.returncode == 0, done.stderr
    assert "better in" in done.stdout
    asked = ("--images", "6", "--eval-reward", "jpeg-incompressibility")
    done = dagflow("evaluate", "run", "run@1", *asked)
    assert done.returncode == 0, done.stderr
    for word in ("epoch-0002", "epoch-0001", "jpeg-incompressibility (measured)", "brightness"):
        assert word in done.stdout
    text = (tmp_path / "run" / "report.json").read_text()
    report = json.loads(text)
    assert (report["checkpoint"], report["images"], report["ended"]) == ("epoch-0001", 6, True)
    measured, trained = (report["rewards"][f"jpeg-{k}compressibility"] for k in ("in", ""))
    assert (measured["trained_on"], trained["trained_on"]) == (False, True)
    assert measured["base"] == -trained["base"]
    assert measured["win_rate"] + trained["win_rate"] == pytest.approx(1)

    for words, message in [
        (("evaluate", "run", "run@9"), "has no checkpoint 'epoch-0009'"),
        (("evaluate", "run", "--eval-reward", "jpeg-compressibility"), "was trained on it"),
        (("evaluate", "run", "--features", "./nothing"), "there is no such folder"),
        (("evaluate", "elsewhere"), "is not a run directory"),
        (("train", "--resume", "run", "-s", "evaluate.grid=4"), "evaluate.grid cannot change"),
        (("train", "-s", "alarms.action=stop", "-s", "evaluate.watched=0"), "alarms.action"),
        (("report", "run", "--output", "run/config.toml"), "must end in .html"),
    ]:
        refused = dagflow(*words)
        assert refused.returncode == 2, refused.stderr
        assert message in refused.stderr
    assert (tmp_path / "run" / "report.json").read_text() == text  # nor has run@9 changed run's
    assert (tmp_path / "run" / "config.toml").read_text().startswith("# Fully resolved")
