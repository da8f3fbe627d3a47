"""The distributions in plugins/, installed from wheels."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.distributions.wheels import SHORT, install_wheels, run_tests
from tests.test_layers import imports

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted(path.parent for path in (ROOT / "plugins").glob("*/pyproject.toml"))
TESTED = [path for path in EXAMPLES if path.name != "dagflow-originals"]  # `make parity` tries that
PROVIDED = {
    ("reward", "redness", "dagflow-redness"),
    ("prompts", "wildcards", "dagflow-wildcards"),
    ("objective", "reinforce", "dagflow-objective-reinforce"),
}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install_wheels(EXAMPLES, tmp_path_factory.mktemp("examples"))


def test_each_is_listed(dagflow, site: Path) -> None:
    listed = json.loads(dagflow("list-plugins", "--json", PYTHONPATH=str(site)).stdout)
    assert not listed["broken"]
    found = {(item["kind"], item["name"], item["distribution"]) for item in listed["plugins"]}
    assert found >= PROVIDED


def test_a_wheel_holds_the_plugin_and_no_tests(site: Path) -> None:
    names = {path.name for path in site.iterdir() if not path.name.startswith("dagflow_")}
    assert names - {"__pycache__"} == {"redness.py", "reinforce.py"}
    assert (site / "dagflow_wildcards" / "word_lists" / "animal.txt").is_file()


def test_their_own_tests_pass(site: Path, tmp_path: Path) -> None:
    output = run_tests(TESTED, site, tmp_path)
    assert " passed" in output
    assert "failed" not in output


def test_they_train_together(dagflow, site: Path, tmp_path: Path) -> None:
    words = ("--reward", "redness", "--prompts", "wildcards", "--objective", "reinforce")
    options = (*SHORT, "-s", "rollout.images_per_prompt=2", "--output", "run")
    done = dagflow("train", *words, *options, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    updates = [line for line in lines if "update" in line]
    assert updates[-1]["beta"] > 0
    assert all(line["advantage_abs"] > 0 for line in updates if line["beta"] > 0)
    assert {"ratio", "policy_grad_norm"} <= updates[-1].keys()


@pytest.mark.parametrize("project", EXAMPLES, ids=lambda path: path.name)
def test_only_the_public_api_is_imported(project: Path) -> None:
    """`from dagflow import X` names X of `dagflow.__all__`; tests may import the kit as well."""
    import dagflow as public

    for file in project.rglob("*.py"):
        allowed = {"dagflow"} | {f"dagflow.{name}" for name in public.__all__}
        if "tests" in file.relative_to(project).parts:
            from dagflow import conformance

            names = {f"dagflow.conformance.{name}" for name in conformance.__all__}
            allowed |= {"dagflow.conformance", *names}
        used = {name for name in imports(file) if name.split(".")[0] == "dagflow"}
        assert not used - allowed, file
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                assert node.value.id != "dagflow" or node.attr in public.__all__, file


def test_each_project_is_complete() -> None:
    for project in EXAMPLES:
        files = {path.name for path in project.iterdir()}
        assert {"pyproject.toml", "README.md", "LICENSE"} <= files, project
        assert ("tests" in files) == (project in TESTED), project
