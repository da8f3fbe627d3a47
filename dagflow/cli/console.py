"""Results go to stdout, everything else to stderr; colour on a terminal only."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

UNLIMITED = 1000  # columns, of a table that a program reads

out = Console(soft_wrap=True, highlight=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def print_whole(table: Table) -> None:
    """A table that cuts nothing off where no terminal limits it."""
    out.print(table, soft_wrap=False, width=None if out.is_terminal else UNLIMITED)


def fact(label: str, value: object) -> None:
    """One line of a summary, such as where something is; nothing in the value is markup."""
    out.print(f"{label:<9} {value}", markup=False)


def complain(word: str, message: str) -> None:
    """One readable message on stderr."""
    err.print(f"[bold red]{word}:[/bold red] {escape(message)}")
