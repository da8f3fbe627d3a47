"""The page of all commands, from their `--help`."""

from __future__ import annotations

import re

import typer
from typer.cli import get_docs_for_click

from dagflow.cli import complete

HEAD = """# Commands

All of `dagflow --help`, written by `make reference`. The [tutorials](tutorials/first-run.md) show
the commands at work; exit codes are in [training](training.md#stop-and-go-on).
"""
LISTS = re.compile(r"\*\*Commands\*\*:\n\n(?:\* .*\n)+\n")  # cut short by typer; headings follow
USAGE = re.compile(r"\*\*Usage\*\*:\n\n```console\n\$ (.*)\n```")
BOLD = re.compile(r"\[bold\](.*?)\[/bold\]")
LINE = re.compile(r"^Example: (.*)$", re.MULTILINE)
EXAMPLE = re.compile(r"^  (?=\S)", re.MULTILINE)
BETWEEN = re.compile(r"^(    .*)\n\n(?=    )", re.MULTILINE)


def page() -> str:
    """Markdown, from the commands themselves."""
    command = typer.main.get_command(complete())
    text = get_docs_for_click(obj=command, ctx=typer.Context(command), indent=1, name="dagflow")
    text = USAGE.sub(r"**Usage**:\n\n    \1", LISTS.sub("", text))
    text = LINE.sub(r"Example:\n\n  \1", BOLD.sub(r"`\1`", text))
    text = BETWEEN.sub("\\1\n", EXAMPLE.sub("    ", text))
    return f"{HEAD}\n{text.rstrip()}\n"
