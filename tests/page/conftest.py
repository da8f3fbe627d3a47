"""A real run, variants of it, and a browser where there is one."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dagflow import train
from dagflow.plugins import load_plugins
from dagflow.prepare import prepare
from tests.conftest import Silent, short_config
from tests.page.variants import as_older_versions_wrote_it, with_known_numbers

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
)  # fmt: skip
PROMPTS = ["a cat <b>bold</b>", "</script><script>window.hacked = 1</script> \" onload='x'"]


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As the engine leaves it."""
    folder = tmp_path_factory.mktemp("runs") / "plain"
    evaluate = {"rewards": {"jpeg-incompressibility": {}}, "images": 12, "watched": 4}
    settings = short_config(output=str(folder), epochs=3, evaluate=evaluate)
    train.start(prepare(settings, load_plugins(), Silent(), lambda: False))
    return folder


@pytest.fixture(scope="session")
def rich(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With numbers that are known, an alarm, and prompts that would do harm."""
    folder = with_known_numbers(run, tmp_path_factory.mktemp("rich") / "rich")
    (folder / "samples" / "prompts.json").write_text(json.dumps(PROMPTS))
    return folder


@pytest.fixture(scope="session")
def older(run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_older_versions_wrote_it(run, tmp_path_factory.mktemp("older") / "older")


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as running:
        chromium = running.chromium.launch(executable_path=program, args=FLAGS)
        yield chromium
        chromium.close()
