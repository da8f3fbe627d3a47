"""`pytest --dagflow-KIND NAME`, run as a person would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import put_plugin

SOURCE = """
    import dagflow
    def coloured(colour: str = "red", twice: bool = False):
        "A cat and a dog."
        return [f"a {colour} cat"] * (1 + twice) + ["", "a dog"]
    @dagflow.hookimpl
    def dagflow_register_prompt_sources(): return {"coloured": coloured}
"""
Pytest = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_pytest(tmp_path: Path) -> Pytest:
    """pytest in an empty folder."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def test_the_kit_runs_alone_with_no_test_file_and_names_its_checks(
    run_pytest: Pytest, tmp_path: Path
) -> None:
    (tmp_path / "test_own.py").write_text("def test_mine(): assert 0")
    done = run_pytest("-v", "--dagflow-prompts", "animals", "--dagflow-reward",
                      "jpeg-compressibility")  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "reward jpeg-compressibility::odd_image_sizes PASSED" in done.stdout
    assert "prompts animals::is_a_finite_sequence PASSED" in done.stdout
    assert "test_mine" not in done.stdout


def test_given_paths_are_run_as_well(run_pytest: Pytest, tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text("def test_mine(): pass")
    done = run_pytest("-v", "test_own.py", "--dagflow-prompts", "animals")
    assert done.returncode == 0, done.stdout
    assert "test_mine PASSED" in done.stdout
    assert "prompts animals::items_are_texts PASSED" in done.stdout


def test_without_its_options_the_plugin_does_nothing(run_pytest: Pytest, tmp_path: Path) -> None:
    (tmp_path / "test_own.py").write_text(
        "def test_mine():\n"
        "    import sys\n"
        "    names = {name for name in sys.modules if name.startswith('dagflow.conformance.')}\n"
        "    assert names == {'dagflow.conformance.pytest_plugin'}\n"
        "    assert not {'torch', 'numpy', 'pydantic', 'typer'} & set(sys.modules)\n"
    )
    done = run_pytest()
    assert done.returncode == 0, done.stdout


def test_a_failure_is_advice_without_a_traceback_and_options_are_read_as_toml(
    run_pytest: Pytest, tmp_path: Path
) -> None:
    put_plugin(tmp_path, "coloured", SOURCE)
    options = ("--dagflow-option", "colour=blue", "--dagflow-option", "twice=true")
    done = run_pytest("--dagflow-prompts", "coloured", *options)
    assert done.returncode == 1
    assert "prompts 'coloured': item 2 is ''. Leave out blank texts." in done.stdout
    assert "dagflow/conformance" not in done.stdout
    assert "1 failed" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--dagflow-reward", "jpg-compressibility"], "Did you mean 'jpeg-compressibility'?"),
        (["--dagflow-prompts", "animals", "--dagflow-option", "a=1"], "has no option 'a'"),
        (["--dagflow-prompts", "animals", "--dagflow-option", "a"], "not of the form key=value"),
        (["--dagflow-option", "a=1"], "goes with exactly one"),
    ],
)
def test_a_wrong_call_is_a_usage_error(run_pytest: Pytest, arguments, message: str) -> None:
    done = run_pytest(*arguments)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
