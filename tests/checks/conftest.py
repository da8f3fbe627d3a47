"""A copy of the embedded model to spoil, and the doctor's answer."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

import dagflow as package
from dagflow.cli import doctor as command
from dagflow.policies.loading import EMBEDDED

QUICK = ["-s", "rollout.num_inference_steps=4", "-s", "update.batch_size=8"]


@dataclass(frozen=True)
class Answer:
    """What `dagflow doctor --json` said."""

    code: int
    checks: dict[str, dict[str, Any]]  # by name

    @property
    def failed(self) -> list[str]:
        return [name for name, check in self.checks.items() if check["status"] == "failed"]

    @property
    def blocked(self) -> set[str]:
        """Names of the failures for which others were not asked."""
        said = [check["found"] for check in self.checks.values()]
        return {text.split("'")[1] for text in said if text.startswith("not asked, because")}


def answer(code: int, text: str) -> Answer:
    """Read `--json`, and see that every failure names what to change."""
    record = json.loads(text)
    checks = {check["name"]: check for check in record["checks"]}
    assert len(checks) == len(record["checks"])
    assert record["ok"] == (code == 0)
    for check in checks.values():
        assert check["change"] or check["status"] != "failed", check
    return Answer(code, checks)


@pytest.fixture
def doctor(dagflow: Callable[..., Any]) -> Callable[..., Answer]:
    """Run the installed command on a short rollout, with modules from a folder beside its own."""

    def call(*arguments: str, plugins: Path | None = None, **variables: str) -> Answer:
        if plugins:
            paths = (str(plugins), os.environ.get("PYTHONPATH", ""))
            variables["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        done = dagflow("doctor", *arguments, *QUICK, "--json", **variables)
        assert done.returncode in (0, 1), done.stderr
        return answer(done.returncode, done.stdout)

    return call


@pytest.fixture
def inside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., Answer]:
    """The same in this process, which has imported everything already."""
    app = typer.Typer(pretty_exceptions_enable=False)
    command.register(app)

    def call(*arguments: str, plugins: Path | None = None) -> Answer:
        monkeypatch.chdir(tmp_path)
        if plugins:
            monkeypatch.syspath_prepend(plugins)
        done = CliRunner().invoke(app, [*arguments, *QUICK, "--json"])
        assert isinstance(done.exception, SystemExit | None), done.exception
        return answer(done.exit_code, done.stdout)

    return call


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the embedded model."""
    source = Path(package.__file__).parent / EMBEDDED["tiny"]
    return Path(shutil.copytree(source, tmp_path / "model"))


def edit(file: Path, **changes: Any) -> None:
    """Change values of a JSON file."""
    tree = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**tree, **changes}), encoding="utf-8")
