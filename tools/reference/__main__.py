"""Write the reference pages that follow from the code: `python -m tools.reference`.

They are kept in the repository so that they can be read there; a test keeps them current.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tools.reference import commands, metrics, settings

DOCS = Path(__file__).parents[2] / "docs"
PAGES: dict[str, Callable[[], str]] = {
    "commands.md": commands.page,
    "metrics.md": metrics.page,
    "settings.md": settings.page,
}


def main() -> None:
    for name, page in PAGES.items():
        (DOCS / name).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
