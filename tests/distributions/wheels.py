"""Build plugin projects as wheels and install them into a folder, as a user would."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.conftest import SHORT_OPTIONS

# the shortest run of any objective: without the option of the built-in ones
SHORT = [
    *(
        word
        for pair in zip(SHORT_OPTIONS[::2], SHORT_OPTIONS[1::2], strict=True)
        for word in pair
        if not pair[1].startswith("objective.")
    ),
    *("-s", "epochs=1", "-s", "evaluate.images=2", "-s", "evaluate.grid=0"),
]


def install_wheels(projects: Iterable[Path], folder: Path) -> Path:
    """Build the projects' wheels and install them into `folder`/site; returns that."""
    wheels, site = folder / "wheels", folder / "site"
    offline = ("--no-deps", "--no-index", "--quiet")
    pip("wheel", *offline, "--no-build-isolation", "-w", str(wheels), *map(str, projects))
    pip("install", *offline, "--target", str(site), *map(str, sorted(wheels.glob("*.whl"))))
    return site


def pip(*arguments: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def run_tests(projects: Iterable[Path], site: Path, folder: Path) -> str:
    """The projects' own tests against what is installed, not the source beside them."""
    tests = [str(project / "tests") for project in projects]
    (folder / "pytest.ini").write_text("[pytest]\n")
    done = subprocess.run(
        [
            *(sys.executable, "-P", "-m", "pytest", "--import-mode=importlib"),
            *("-p", "no:cacheprovider", "-c", "pytest.ini", *tests),
        ],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
