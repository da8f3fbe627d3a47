"""The page of all settings, from the schema of the configuration and the plugins' signatures."""

from __future__ import annotations

import inspect
import json
from collections.abc import Iterable, Iterator
from typing import Any

from dagflow.config import Config
from dagflow.plugins import OWN_DISTRIBUTION, Provided, load_plugins
from tools.reference.tables import table

Schema = dict[str, Any]

HEAD = """# Settings

Every setting of a recipe, written by `make reference`. On the command line, give a setting as
`-s KEY.PATH=VALUE`, such as `-s update.batch_size=64`; in a recipe, put it in the table that its
heading names. [Recipes](recipes.md) set many of them; a run's `config.toml` records those that it
used.
"""
OPEN = "Other keys are options of the named {}: see [below](#{})."
PLUGINS = {
    "reward": ("rewards.LABEL", "Options of rewards"),
    "objective": ("objective", "Options of objectives"),
    "prompts": ("prompts", "Options of prompt sources"),
}
BOUNDS = {
    "minimum": "from {}",
    "exclusiveMinimum": "above {}",
    "maximum": "to {}",
    "exclusiveMaximum": "below {}",
}
TYPES = {
    "array": "list",
    "boolean": "`true`, `false`",
    "integer": "whole number",
    "null": "nothing",
    "number": "number",
    "string": "text",
}


def page() -> str:
    """Markdown, a table of settings for each table of a recipe, then the plugins' options."""
    schema = Config.model_json_schema()
    parts = [HEAD]
    for path, part in _tables(schema, schema["$defs"]):
        parts.append(_section(path, part))
    provided = [item for item in load_plugins().provided if item.distribution == OWN_DISTRIBUTION]
    for kind, (path, title) in PLUGINS.items():
        parts.append(_options(path, title, [item for item in provided if item.kind == kind]))
    return "\n".join(parts)


def _tables(schema: Schema, known: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """The root, then every table below it, each with its path."""
    yield path, schema
    for key, field in schema["properties"].items():
        inner = field.get("additionalProperties")
        labelled = isinstance(inner, dict)
        if reference := (inner if labelled else field).get("$ref"):
            below = f"{path}.{key}".lstrip(".") + (".LABEL" if labelled else "")
            yield from _tables(known[reference.rpartition("/")[2]], known, below)


def _section(path: str, schema: Schema) -> str:
    rows = [
        (f"`{key}`", f"`{json.dumps(field['default'])}`", _values(field), field["description"])
        for key, field in schema["properties"].items()
        if "$ref" not in field and "additionalProperties" not in field
    ]
    lines = [f"## `[{path}]`" if path else "## At the top", ""]
    lines += [table(("setting", "default", "values", "what it is"), rows), ""]
    for place, title in PLUGINS.values():
        if path.removeprefix("evaluate.") == place:
            what = title.removeprefix("Options of ").removesuffix("s")
            lines += [OPEN.format(what, title.lower().replace(" ", "-")), ""]
    return "\n".join(lines)


def _values(field: Schema) -> str:
    """The allowed values in words: the type and its bounds, or the choices."""
    if "anyOf" in field:
        return " or ".join(_values(choice) for choice in field["anyOf"])
    if "enum" in field:
        return ", ".join(f"`{json.dumps(choice)}`" for choice in field["enum"])
    bounds = [text.format(field[key]) for key, text in BOUNDS.items() if key in field]
    return " ".join([TYPES[field["type"]], *bounds])


def _options(path: str, title: str, provided: Iterable[Provided]) -> str:
    rows = [
        (f"`{item.name}`", ", ".join(_option(each) for each in item.options.values()), item.help)
        for item in sorted(provided, key=lambda item: item.name)
    ]
    listed = table(("name", "options and their defaults", "what it is"), rows)
    return f"## {title}\n\nKeys of `[{path}]`, in addition to those above.\n\n{listed}\n"


def _option(parameter: inspect.Parameter) -> str:
    if parameter.kind is parameter.VAR_KEYWORD:
        return "any others"
    if parameter.default is parameter.empty:
        return f"`{parameter.name}` (required)"
    return f"`{parameter.name} = {parameter.default!r}`"
