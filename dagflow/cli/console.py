"""Results go to stdout, everything else to stderr; colour only on a terminal."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape
from rich.table import Table

UNLIMITED = 1000  # columns of a table that a program reads

out = Console(soft_wrap=True, highlight=False, emoji=False)
err = Console(stderr=True, soft_wrap=True, highlight=False, emoji=False)


def print_whole(table: Table) -> None:
    """Print a table, cutting nothing off unless a terminal limits its width."""
    out.print(table, soft_wrap=False, width=None if out.is_terminal else UNLIMITED)


def fact(label: str, value: object) -> None:
    """Print one line of a summary, such as a path; the value is not read as markup."""
    out.print(f"{label:<9} {value}", markup=False)


def complain(word: str, message: str) -> None:
    """Print one readable message on stderr."""
    err.print(f"[bold red]{word}:[/bold red] {escape(message)}")
