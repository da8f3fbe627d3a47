"""Tab completion of names."""

from __future__ import annotations

from typing import get_args

from dagflow import recipe
from dagflow.plugins import Kind, load_plugins


def recipes(incomplete: str) -> list[tuple[str, str]]:
    return [
        (name, recipe.recipe_help(path))
        for name, path in recipe.recipes().items()
        if name.startswith(incomplete)
    ]


def rewards(incomplete: str) -> list[tuple[str, str]]:
    return _provided("reward", incomplete)


def objectives(incomplete: str) -> list[tuple[str, str]]:
    return _provided("objective", incomplete)


def prompts(incomplete: str) -> list[tuple[str, str]]:
    return _provided("prompts", incomplete)


def trackers(incomplete: str) -> list[str]:
    from dagflow.config import Tracker

    known = (*get_args(Tracker), "none")
    return [name for name in known if name.startswith(incomplete)]


def _provided(kind: Kind, incomplete: str) -> list[tuple[str, str]]:
    return [
        (item.name, item.help)
        for item in load_plugins().provided
        if item.kind == kind and item.name.startswith(incomplete)
    ]
