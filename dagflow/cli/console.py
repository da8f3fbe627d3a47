"""Results go to stdout, everything else to stderr; colour on a terminal only."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

out = Console(soft_wrap=True, highlight=False)
err = Console(stderr=True, soft_wrap=True, highlight=False)


def complain(word: str, message: str) -> None:
    """One readable message on stderr."""
    err.print(f"[bold red]{word}:[/bold red] {escape(message)}")
