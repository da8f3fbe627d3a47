"""The commands and the code in the documentation do what it says."""

from __future__ import annotations

import os
import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest

from tests.conftest import SHORT_OPTIONS

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]


def blocks(page: str, language: str) -> list[str]:
    """The fenced code of one language on a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(page: str) -> list[list[str]]:
    """Every `dagflow ...` line in the console blocks of a page."""
    lines = [line for block in blocks(page, "console") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("dagflow ")]


def put_redness(folder: Path, page: str) -> None:
    """Install the page's example plugin, as pip would."""
    [source] = [block for block in blocks(page, "python") if "class Redness" in block]
    [project] = [block for block in blocks(page, "toml") if "entry-points" in block]
    (folder / "redness.py").write_text(source)
    [(name, module)] = tomllib.loads(project)["project"]["entry-points"]["dagflow"].items()
    info = folder / "dagflow_redness-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: dagflow-redness\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[dagflow]\n{name} = {module}\n")


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_documented_commands_work(dagflow, tmp_path: Path, page: str) -> None:
    """In the order of the page, with training cut short."""
    variables = {"PYTHONPATH": str(tmp_path)}
    if page == "docs/plugins.md":
        put_redness(tmp_path, page)
    for words in commands(page):
        new_run = words[0] == "train" and "--resume" not in words
        short = SHORT_OPTIONS if new_run else []
        done = dagflow(*words, *short, **variables)
        assert done.returncode == 0, (words, done.stderr)


def test_the_readmes_reward_trains_and_is_as_short_as_promised(dagflow, tmp_path: Path) -> None:
    put_redness(tmp_path, "README.md")
    code = (tmp_path / "redness.py").read_text().splitlines()
    assert len([line for line in code if line.strip()]) <= 12
    done = dagflow("train", "--reward", "redness", *SHORT_OPTIONS, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    listed = dagflow("list-plugins", PYTHONPATH=str(tmp_path), COLUMNS="200").stdout
    assert "dagflow-redness 1.0" in listed


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, "CONTRIBUTING.md"]:
        text = (ROOT / page).read_text(encoding="utf-8")
        for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
            assert (ROOT / page).parent.joinpath(target).exists(), f"{page}: {target}"


def test_every_metric_of_a_run_is_explained(dagflow, tmp_path: Path) -> None:
    import json

    assert dagflow("train", "--output", "run", *SHORT_OPTIONS).returncode == 0
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    names = {name for line in lines for name in json.loads(line)}
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    assert not {name for name in names if f"`{name}`" not in page}


def test_module_can_be_run(tmp_path: Path) -> None:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-m", "dagflow", "--version"],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.startswith("dagflow ")
