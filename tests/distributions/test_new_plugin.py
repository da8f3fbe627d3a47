"""`dagflow new-plugin`: what it writes installs, lists, passes its tests and trains, unedited."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

import dagflow
from dagflow import UserError, scaffold
from tests.distributions.wheels import SHORT, install_wheels, run_tests

KINDS = ("reward", "prompts", "objective")


def test_a_project_of_each_kind_installs_lists_tests_and_trains(dagflow, tmp_path: Path) -> None:
    projects = []
    for kind in KINDS:
        done = dagflow("new-plugin", f"dagflow-fresh-{kind}", "--kind", kind)
        assert done.returncode == 0, done.stderr
        assert f"dagflow train --{kind} fresh-{kind}" in done.stdout
        projects.append(tmp_path / f"dagflow-fresh-{kind}")
        assert (projects[-1] / ".gitignore").is_file()
    site = install_wheels(projects, tmp_path)
    listed = json.loads(dagflow("list-plugins", "--json", PYTHONPATH=str(site)).stdout)
    assert not listed["broken"]
    assert {(kind, f"fresh-{kind}") for kind in KINDS} <= {
        (item["kind"], item["name"]) for item in listed["plugins"]
    }
    run_tests(projects, site, tmp_path)
    words = [word for kind in KINDS for word in (f"--{kind}", f"fresh-{kind}")]
    done = dagflow("train", *words, *SHORT, PYTHONPATH=str(site))
    assert done.returncode == 0, done.stderr


def test_a_folder_in_use_is_refused_and_left_alone(dagflow, tmp_path: Path) -> None:
    (tmp_path / "dagflow-mine").mkdir()
    (tmp_path / "dagflow-mine" / "notes.txt").write_text("mine")
    done = dagflow("new-plugin", "dagflow-mine", "--kind", "reward")
    assert done.returncode == 2
    assert "'dagflow-mine' exists and is not empty" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["dagflow-mine"]
    assert [path.name for path in (tmp_path / "dagflow-mine").iterdir()] == ["notes.txt"]


def test_a_name_that_is_installed_already_is_refused(dagflow, tmp_path: Path) -> None:
    done = dagflow("new-plugin", "dagflow-animals", "--kind", "prompts")
    assert done.returncode == 2
    assert "prompts 'animals' is already installed" in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("my reward", "not a name for a distribution"),
        ("-sharp", "not a name for a distribution"),
        ("dagflow-", "not a name for a distribution"),
        ("../sharp", "not a name for a distribution"),
        ("schärfe", "not a name for a distribution"),
        ("", "not a name for a distribution"),
        ("3d", "not a valid name"),
        ("import", "not a valid name"),
        ("torch", "hide an installed module"),
        ("DagFlow", "hide an installed module"),
        ("dagflow.rewards", "hide an installed module"),
        ("dagflow-align", "replace the installed 'dagflow-align'"),
        ("pyyaml", "replace the installed 'PyYAML'"),
    ],
)
def test_a_name_that_cannot_work_is_refused(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        scaffold.words_for(name, "reward")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["x", "dagflow-3d", "Sharp.Edges_2", "dagflow-prompt", "a-class"])
def test_any_valid_name_makes_modules_that_compile(name: str, kind: str) -> None:
    files = scaffold.render(scaffold.words_for(name, kind))
    for path, text in files.items():
        assert "{{" not in text + str(path)
        if path.suffix == ".py":
            compile(text, str(path), "exec")
    project = tomllib.loads(files[Path("pyproject.toml")])
    assert project["project"]["name"] == name
    assert project["project"]["dependencies"] == [f"dagflow-align>={dagflow.__version__}"]
    [(_, module)] = project["project"]["entry-points"]["dagflow"].items()
    assert {f"{module}.py", module} & {path.parts[0] for path in files}


def test_nothing_is_left_where_writing_fails(tmp_path: Path, monkeypatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left"):
        scaffold.write_project(scaffold.words_for("dagflow-new", "reward"), tmp_path / "new")
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_and_a_deep_one_will_do(tmp_path: Path) -> None:
    words = scaffold.words_for("dagflow-new", "reward")
    (tmp_path / "empty").mkdir()
    for folder in (tmp_path / "empty", tmp_path / "a" / "b" / "c"):
        files = scaffold.write_project(words, folder)
        assert all((folder / file).is_file() for file in files)
