"""Print the lower bounds of pyproject.toml as pip's constraints: `python tools/lowest.py`."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from pathlib import Path

from packaging.requirements import Requirement

PROJECT = Path(__file__).parents[1] / "pyproject.toml"


def constraints() -> Iterator[str]:
    """`name==version` for every dependency. Raises ValueError for one without a lower bound."""
    project = tomllib.loads(PROJECT.read_text(encoding="utf-8"))["project"]
    for text in project["dependencies"]:
        needed = Requirement(text)
        bounds = [bound.version for bound in needed.specifier if bound.operator == ">="]
        if len(bounds) != 1:
            raise ValueError(f"pyproject.toml: '{text}' has no lower bound")
        yield f"{needed.name}=={bounds[0]}"


if __name__ == "__main__":
    print("\n".join(constraints()))
