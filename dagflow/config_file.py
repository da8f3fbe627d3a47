"""The configuration as the TOML file of a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tomlkit

from dagflow.config import Config, Table


def dump(config: Config) -> str:
    """The fully resolved configuration as TOML, each setting explained in a comment."""
    document = tomlkit.document()
    document.add(
        tomlkit.comment("Fully resolved: with another output, this file alone repeats the run.")
    )
    _fill(document, config)
    return tomlkit.dumps(document)


def _fill(container: Any, table: Table) -> None:
    """Plain values first, then tables, as TOML requires."""
    values = dict(table)
    for key, value in values.items():
        if not isinstance(value, Table | dict):
            item = tomlkit.item(list(value) if isinstance(value, tuple) else value)
            field = type(table).model_fields.get(key)
            if field and field.description:
                item.comment(field.description)
            container.add(key, item)
    for key, value in values.items():
        if isinstance(value, Table):
            container.add(key, tomlkit.table())
            _fill(container[key], value)
        elif isinstance(value, dict):
            container.add(key, _tables(value))


def _tables(entries: Mapping[str, Any]) -> Any:
    """The rewards by label, or a plugin's option that is itself a table."""
    result = tomlkit.table()
    for label, entry in entries.items():
        if isinstance(entry, Table):
            result.add(label, tomlkit.table())
            _fill(result[label], entry)
        else:
            result.add(label, entry)
    return result
