"""What is published: the wheel, the source archive, and what they say of themselves."""

from __future__ import annotations

import email.parser
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import entry_points, version
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement
from packaging.version import Version

import dagflow
from tools import lowest

ROOT = Path(__file__).parents[2]
LARGEST = 12e6  # bytes, of either


def build(project: Path, folder: Path, *targets: str) -> list[Path]:
    words = [word for target in targets for word in ("-t", target)]
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder), *words],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def archives(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel, and the source archive."""
    wheel, source = build(ROOT, tmp_path_factory.mktemp("dist"), "sdist", "wheel")
    return wheel, source


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def metadata(wheel: Path) -> Metadata:
    [text] = [data for name, data in contents(wheel).items() if name.endswith("/METADATA")]
    return Metadata.from_email(text, validate=True)


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(
    archives: tuple[Path, Path],
) -> None:
    due = {
        str(path.relative_to(ROOT))
        for package in ("dagflow", "dagflow_rewards")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    found = {name for name in contents(archives[0]) if ".dist-info/" not in name}
    assert found == due
    for name in ("py.typed", "models/tiny/model_index.json", "recipes/tiny.toml"):
        assert f"dagflow/{name}" in found
    assert len([name for name in found if name.endswith(".jinja")]) > 5
    assert archives[0].stat().st_size < LARGEST


def test_the_source_archive_builds_the_same_wheel(
    archives: tuple[Path, Path], tmp_path: Path
) -> None:
    with tarfile.open(archives[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    [source] = tmp_path.iterdir()
    [again] = build(source, tmp_path / "dist", "wheel")
    assert contents(again) == contents(archives[0])


def test_the_source_archive_is_what_is_kept_but_for_pictures(
    archives: tuple[Path, Path],
) -> None:
    with tarfile.open(archives[1]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    kept = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if kept.returncode == 0:  # in a checkout
        due = {line for line in kept.stdout.splitlines() if (ROOT / line).is_file()}
        assert names - {"PKG-INFO"} == {n for n in due if not n.startswith("docs/images/")}
    assert not {
        name for name in names if name.startswith(("docs/images", ".venv", "build", "runs"))
    }
    assert {"LICENSE", "Makefile", "constraints.txt", "tests/conftest.py"} <= names
    assert archives[1].stat().st_size < LARGEST


@pytest.mark.skipif(
    Version(version("packaging")) < Version("26"), reason="does not know this form of metadata yet"
)
def test_the_metadata_is_valid_and_right(archives: tuple[Path, Path]) -> None:
    said = metadata(archives[0])
    assert (said.name, str(said.version)) == ("dagflow-align", dagflow.__version__)
    assert str(said.requires_python) == ">=3.11"
    assert said.license_expression == "Apache-2.0"
    assert said.license_files == ["LICENSE"]
    assert said.description_content_type == "text/markdown"
    assert said.description == (ROOT / "README.md").read_text(encoding="utf-8")
    with tarfile.open(archives[1]) as archive:
        [name] = [name for name in archive.getnames() if name.endswith("/PKG-INFO")]
        file = archive.extractfile(name)
        assert file is not None
        assert email.parser.BytesParser().parse(file)["Version"] == dagflow.__version__


def test_the_wheels_entry_points_are_the_installed_ones(archives: tuple[Path, Path]) -> None:
    [text] = [data for name, data in contents(archives[0]).items() if "entry_points" in name]
    for point in entry_points(group="dagflow"):
        if point.dist and point.dist.name == "dagflow-align":
            assert f"{point.name} = {point.value}" in text.decode()


def test_every_dependency_has_a_lower_bound_and_its_pin_is_not_below_it() -> None:
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    )
    bounds = dict(line.split("==") for line in lowest.constraints())
    assert bounds.keys() <= pins.keys()
    for name, bound in bounds.items():
        assert Requirement(f"{name}>={bound}").specifier.contains(pins[name]), name
