"""A real run, and variants of it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dagflow import train
from dagflow.plugins import load_plugins
from dagflow.prepare import prepare
from tests.conftest import Silent, short_config
from tests.page.variants import as_older_versions_wrote_it, with_known_numbers

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
