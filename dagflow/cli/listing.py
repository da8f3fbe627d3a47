"""`dagflow list-plugins` and `dagflow recipes`."""

from __future__ import annotations

import inspect
import json
from collections.abc import Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from dagflow import PLUGIN_API, recipe
from dagflow.cli import names
from dagflow.cli.console import out
from dagflow.plugins import (
    DISABLE_VARIABLE,
    OWN_DISTRIBUTION,
    Broken,
    Cost,
    Provided,
    load_plugins,
)

WIDE = 120  # columns


def register(app: typer.Typer) -> None:
    app.command("list-plugins")(list_plugins)
    app.command("recipes")(recipes)


def list_plugins(
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    verbose: Annotated[
        bool,
        typer.Option(
            "-v", "--verbose", help="Also show import times, and tracebacks of broken plugins."
        ),
    ] = False,
) -> None:
    """Show every reward, prompt source and objective, and the plugins that did not load."""
    registry = load_plugins()
    if as_json:
        records = {
            "plugin_api": PLUGIN_API,
            "plugins": [_record(item) for item in registry.provided],
            "broken": [vars(item) for item in registry.broken],
            "disabled": list(registry.disabled),
        }
        typer.echo(json.dumps(records, indent=2))
        return
    out.print(_table(registry.provided, wide=out.width >= WIDE), soft_wrap=False)
    if registry.disabled:
        out.print(f"off     {escape(', '.join(registry.disabled))} (by {DISABLE_VARIABLE})")
    for broken in registry.broken:
        _print_broken(broken, verbose)
    if verbose:
        out.print("plugin API {}.{}".format(*PLUGIN_API))
        _print_costs(registry.costs)


def recipes(
    show: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Print this recipe in full.", autocompletion=names.recipes
        ),
    ] = None,
) -> None:
    """Show the built-in recipes: complete runs for `dagflow train RECIPE`."""
    known = recipe.recipes()
    if show is not None:
        text = recipe.document(show).as_string().strip()
        typer.echo(f"# {show}, from {known.get(show, show)}\n{text}")
        return
    table = Table("recipe", "what it is", box=None)
    for name, path in known.items():
        table.add_row(name, recipe.recipe_help(path))
    out.print(table, soft_wrap=False)
    out.print("To print one in full, with its file: dagflow recipes --show NAME")


def _table(provided: Sequence[Provided], wide: bool) -> Table:
    """A column for each fact or, where there is no room, the facts below one another in one."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for heading in ("kind", "name"):
        table.add_column(heading, no_wrap=True)
    facts = ("distribution", "options", "help")
    for heading in facts if wide else [", ".join(reversed(facts))]:
        table.add_column(heading, overflow="fold")
    for item in sorted(provided, key=lambda item: (item.kind, item.name)):
        options = ", ".join(f"{key}={_text(value)}" for key, value in _options(item).items())
        cells = [
            escape(text) for text in (f"{item.distribution} {item.version}", options, item.help)
        ]
        if not wide:
            cells = ["\n".join(cell for cell in reversed(cells) if cell)]
        table.add_row(item.kind, escape(item.name), *cells)
    return table


def _print_broken(broken: Broken, verbose: bool) -> None:
    origin = f"{broken.entry_point} of {broken.distribution} {broken.version}"
    out.print(f"[bold red]broken[/bold red]  {escape(origin)}: {escape(broken.reason)}")
    if verbose:
        out.print(escape(broken.traceback.rstrip()), style="dim")


def _print_costs(costs: Sequence[Cost]) -> None:
    """How much each third-party plugin adds to the start of every command."""
    for cost in costs:
        if cost.distribution != OWN_DISTRIBUTION:
            heavy = f" (imports {', '.join(cost.heavy)})" if cost.heavy else ""
            origin = escape(f"{cost.entry_point} of {cost.distribution}")
            out.print(f"loaded  {origin} in {1000 * cost.seconds:.0f} ms{heavy}")


def _options(item: Provided) -> dict[str, Any]:
    return {key: _default(parameter) for key, parameter in item.options.items()}


def _default(parameter: inspect.Parameter) -> Any:
    if parameter.kind is parameter.VAR_KEYWORD:
        return "any others"
    return "required" if parameter.default is parameter.empty else parameter.default


def _text(value: Any) -> str:
    try:
        return str(value)
    except Exception:  # the class is a plugin's
        return type(value).__name__


def _plain(value: Any) -> Any:
    """As JSON, or else as text."""
    try:
        return json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError):
        return _text(value)


def _record(item: Provided) -> dict[str, Any]:
    return {
        "kind": item.kind,
        "name": item.name,
        "distribution": item.distribution,
        "version": item.version,
        "options": {key: _plain(value) for key, value in _options(item).items()},
        "help": item.help,
    }
