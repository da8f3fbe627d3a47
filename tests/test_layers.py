"""Imports point one way, and listing imports no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import dagflow

ROOT = Path(dagflow.__file__).parent
ORDER = [
    "errors", "files", "intervals", "glossary", "provenance", "types", "reward_rules", "profiling",
    "counting", "weights", "hookspecs", "plugins", "conformance", "scaffold", "recipe",
    "config", "config_file",
    "diffusion", "worlds", "policies", "engine", "measures", "evaluate", "alarms", "truth",
    "report", "compare", "charts", "score", "folder", "page", "draw", "tracking", "prepare",
    "card", "export", "estimate", "collect", "watch", "outcome", "trouble", "session", "train",
    "checks", "cli",
]  # fmt: skip
STAGES = ["prompts", "rollout", "transitions", "metrics", "pictures"]


def imports(file: Path) -> set[str]:
    """Full names of the modules that a file imports, at any depth."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def layer(module: str) -> str:
    return module.split(".")[1] if module.startswith("dagflow.") else ""


@pytest.mark.parametrize("file", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_left_only(file: Path) -> None:
    own = file.relative_to(ROOT).parts[0].removesuffix(".py")
    others = {layer(module) for module in imports(file)} & set(ORDER)
    if own in ORDER:
        assert not {other for other in others if ORDER.index(other) > ORDER.index(own)}


@pytest.mark.parametrize("folder", ["objectives", "prompt_sources", "remote", "../dagflow_rewards"])
def test_plugins_import_the_public_api_and_themselves_only(folder: str) -> None:
    for file in (ROOT / folder).rglob("*.py"):
        inside = {layer(module) for module in imports(file)} & {*ORDER, "engine", "config"}
        assert not inside, file


def test_the_core_imports_no_plugin() -> None:
    plugins = {"objectives", "prompt_sources", "remote"}
    for file in ROOT.rglob("*.py"):
        if file.relative_to(ROOT).parts[0] in plugins:
            continue
        names = imports(file)
        assert not {n for n in names if n.startswith("dagflow_rewards")}, file
        listens = file.relative_to(ROOT).as_posix() in ("cli/serve.py", "cli/report.py")
        server = {"remote"} if listens else set()
        assert not {layer(n) for n in names} & plugins - server, file


def test_a_server_imports_nothing_of_diffusion() -> None:
    """So that it runs beside whatever versions a reward needs."""
    modules = ["cli.serve", "engine.scoring", "policies.loading", "remote.listen", "remote.server"]
    program = "".join(f"import dagflow.{module}\n" for module in modules)
    heavy = "{'diffusers', 'transformers', 'peft', 'accelerate'}"
    program += f"import sys; print({heavy} & {{*sys.modules}})"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout == "set()\n", done.stderr


def test_a_run_does_without_the_kit_and_the_scaffold() -> None:
    for file in ROOT.rglob("*.py"):
        own = file.relative_to(ROOT).parts[0]
        found = {layer(name) for name in imports(file)} - {own}
        assert "conformance" not in found, file
        assert "scaffold" not in found or own == "cli", file


def test_the_scaffold_stands_on_the_lowest_layers_alone() -> None:
    for file in (ROOT / "scaffold").rglob("*.py"):
        assert {layer(name) for name in imports(file)} & set(ORDER) <= {"errors", "files"}, file


@pytest.mark.parametrize("stage", STAGES)
def test_stages_import_no_other_stage(stage: str) -> None:
    names = imports(ROOT / "engine" / f"{stage}.py")
    assert not {name for name in names if name.startswith("dagflow.engine")}


@pytest.mark.parametrize(
    "statement",
    [
        "import dagflow",
        "from dagflow.plugins import load_plugins; load_plugins()",
        *(
            f"sys.argv = ['dagflow', *{words}.split()]; from dagflow.cli import main; main()"
            for words in (
                "'--help'",
                "'list-plugins'",
                "'recipes'",
                "'train --help'",
                "'serve --help'",
                "'new-plugin a-name --help'",
            )
        ),
    ],
)
def test_no_torch_is_imported(statement: str) -> None:
    program = (
        "import atexit, sys\n"
        "heavy = ('torch', 'diffusers', 'transformers', 'numpy', 'starlette', 'uvicorn')\n"
        "heavy += ('httpx2', 'safetensors')\n"
        "atexit.register(lambda: print('HEAVY', [m for m in heavy if m in sys.modules]))\n"
        f"{statement}"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "HEAVY []" in done.stdout
