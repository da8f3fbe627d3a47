"""The commands and the code in the documentation do what it says."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from dagflow import Needs, Transitions, conformance, hookspecs, types
from dagflow.conformance.pytest_plugin import KINDS
from tests.conftest import SHORT_OPTIONS, WITHOUT_FLOW
from tests.distributions.wheels import install_wheels, run_tests

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")))]


def blocks(page: str, language: str) -> list[str]:
    """The fenced code of one language on a page."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def commands(page: str, program: str = "dagflow") -> list[list[str]]:
    """The arguments of every `dagflow ...` line in the console blocks of a page."""
    lines = [line for block in blocks(page, "console") for line in block.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{program} ")]


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


def follow_the_tutorial(folder: Path) -> Path:
    """Write the two files of the tutorial, as a reader would, and install them with pip."""
    page = "docs/plugins.md"
    folder.mkdir()
    (folder / "redness.py").write_text(blocks(page, "python")[0])
    (folder / "pyproject.toml").write_text(blocks(page, "toml")[0])
    return install_wheels([folder], folder)


def follow_the_first_reward(project: Path) -> Path:
    """Put the tutorial's two files into the project that `new-plugin` wrote, and install it."""
    page = "docs/tutorials/first-reward.md"
    reward, test = blocks(page, "python")
    module = f"{project.name.replace('-', '_')}.py"
    (project / module).write_text(reward)
    (project / "tests" / f"test_{module}").write_text(test)
    [shown] = blocks(page, "toml")
    whole = tomllib.loads((project / "pyproject.toml").read_text(encoding="utf-8"))
    assert merged_tree(whole, tomllib.loads(shown)) == whole
    folder = project.parent / "installed"
    folder.mkdir()
    site = install_wheels([project], folder)
    assert " passed" in run_tests([project], site, folder)
    return site


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_documented_commands_work(dagflow, tmp_path: Path, page: str) -> None:
    """In the order of the page, with training cut short."""
    variables = {"PYTHONPATH": str(tmp_path)}
    if page == "docs/plugins.md":
        variables["PYTHONPATH"] = str(follow_the_tutorial(tmp_path / "redness"))
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (32, 32), "red").save(tmp_path / "pictures" / "red.png")
    for words in commands(page):
        new_run = words[0] == "train" and "--resume" not in words
        short = SHORT_OPTIONS if new_run or words[0] == "compare" else []
        if set(words) & {*WITHOUT_FLOW, "compare"}:
            short = [*short[:4], *short[6:]]  # without objective.flow_channels
        done = dagflow(*words, *short, **variables)
        assert done.returncode == 0, (words, done.stderr)
        if words[0] == "new-plugin" and page == "docs/tutorials/first-reward.md":
            variables["PYTHONPATH"] = str(follow_the_first_reward(tmp_path / words[1]))
    for words in commands(page, "pytest"):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", *words],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert " passed" in done.stdout


def test_the_readmes_reward_trains_and_is_as_short_as_promised(dagflow, tmp_path: Path) -> None:
    put_redness(tmp_path, "README.md")
    code = (tmp_path / "redness.py").read_text().splitlines()
    assert len([line for line in code if line.strip()]) <= 12
    done = dagflow("train", "--reward", "redness", *SHORT_OPTIONS, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    listed = dagflow("list-plugins", PYTHONPATH=str(tmp_path), COLUMNS="200").stdout
    assert "dagflow-redness 1.0" in listed


def test_the_first_reward_is_as_short_as_promised() -> None:
    code = blocks("docs/tutorials/first-reward.md", "python")[0].splitlines()
    assert len([line for line in code if line.strip()]) <= 12


def test_the_tutorials_files_are_the_examples() -> None:
    example = ROOT / "plugins" / "dagflow-redness"
    page = "docs/plugins.md"
    assert blocks(page, "python")[0] == (example / "redness.py").read_text(encoding="utf-8")
    shown = tomllib.loads(blocks(page, "toml")[0])
    whole = tomllib.loads((example / "pyproject.toml").read_text(encoding="utf-8"))
    assert merged_tree(whole, shown) == whole


def merged_tree(tree: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with another on top, table by table."""
    return {**tree} | {
        key: merged_tree(tree.get(key, {}), value) if isinstance(value, dict) else value
        for key, value in other.items()
    }


def signatures(source: str) -> dict[str, str]:
    """Every function's arguments and result, as text, by name."""
    return {
        node.name: f"({ast.unparse(node.args)}) -> {node.returns and ast.unparse(node.returns)}"
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef)
    }


def test_the_hooks_and_the_objective_have_the_documented_signatures() -> None:
    shown = [signatures(block) for block in blocks("docs/plugins.md", "python")]
    hooks = signatures(Path(hookspecs.__file__).read_text(encoding="utf-8"))
    assert hooks in shown
    tree = ast.parse(Path(types.__file__).read_text(encoding="utf-8"))
    [protocol] = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Objective"]
    assert signatures(ast.unparse(protocol)) in shown


def test_every_need_and_every_field_is_documented() -> None:
    text = (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8")
    names = [field.name for record in (Needs, Transitions) for field in fields(record)]
    assert not [name for name in names if f"`{name}`" not in text]


def test_the_checks_of_the_kit_are_documented_and_no_others() -> None:
    text = (ROOT / "docs" / "conformance.md").read_text(encoding="utf-8")
    contracts = [getattr(conformance, name) for name in conformance.__all__]
    names = {name for contract in contracts for name in dir(contract) if name.startswith("test_")}
    documented = set(re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE))
    assert documented == {name.removeprefix("test_") for name in names}
    options = {"--dagflow-option", *(f"--dagflow-{kind}" for kind in KINDS)}
    assert set(re.findall(r"--dagflow-\w+", text)) == options


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
    names = {name.replace("jpeg-compressibility", "LABEL") for name in names}
    page = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert not {name for name in names if f"| `{name}` |" not in page}


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
