"""The plugin API changes along with its version, and keeps its promises within one."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import pytest

import dagflow
from tools.plugin_api import api, breaks

FOLDER = Path(__file__).with_name("plugin_api")
HOW = "raise dagflow.PLUGIN_API, then run `python -m tools.plugin_api` into a file of that name"


def version(file: Path) -> tuple[int, int]:
    major, minor = file.stem.split(".")
    return int(major), int(minor)


def files() -> list[Path]:
    return sorted(FOLDER.glob("*.json"), key=version)


def read(file: Path) -> dict[str, str]:
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return found


def test_the_api_is_what_was_written_down_for_its_version() -> None:
    newest = files()[-1]
    assert version(newest) == dagflow.PLUGIN_API
    assert api() == read(newest), HOW


def test_within_a_major_version_the_api_only_grows() -> None:
    for older, newer in pairwise(files()):
        assert read(older) != read(newer), newer
        if version(older)[0] == version(newer)[0]:
            assert not breaks(read(older), read(newer)), newer


def test_it_holds_the_names_the_hooks_the_kit_and_what_they_take() -> None:
    found = api()
    heads = {name.partition("(")[0].partition(".")[0] for name in found}
    assert set(dagflow.__all__) <= heads
    assert {
        "dagflow_register_rewards()",
        "dagflow.conformance.RewardContract",
        "Reward.__call__(images)",
        "Transitions(log_pf)",
        "Objective.needs",
        "WeightFile.name",
        "locate()",
    } <= found.keys()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"locate(folder)": None}, ["locate(folder) is gone"]),
        ({"Prompt(text)": "0, x: bytes"}, ["Prompt(text) was '0, "]),
        ({"Prompt(seed)": "2, x: int"}, ["Prompt(seed) is new and has no default"]),
        ({"Objective.name": "str"}, ["Objective.name is new"]),
        ({"Prompt(seed)": "2, x: int = 0"}, []),
        ({"fetch(file)": "0, x: WeightFile", "fetch()": "Path"}, []),
        ({"Needs(images)": "10, x: bool = False"}, []),
    ],
)
def test_what_breaks_a_plugin_is_told_from_what_does_not(
    change: dict[str, str | None], said: list[str]
) -> None:
    changed = {**api(), **change}
    found = breaks(api(), {name: text for name, text in changed.items() if text is not None})
    assert len(found) == len(said)
    assert all(text.startswith(start) for text, start in zip(found, said, strict=True))
