"""`NAME[:ARGUMENT][=WEIGHT]`: a reward as written on the command line."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from dagflow import UserError
from dagflow.plugins import Registry


def tables(
    texts: Iterable[str], registry: Registry, option: str = "--reward", unweighted: str = ""
) -> dict[str, dict[str, Any]]:
    """The table of each reward under its label.

    ARGUMENT is the value of the reward's first option, such as the URL in `remote:URL`; the label
    is then made from both. `unweighted`: why no weight is allowed, if none is. Raises UserError for
    a weight that is not a number or not allowed, for an argument to a reward without options, and
    for a reward that is given twice.
    """
    result: dict[str, dict[str, Any]] = {}
    for text in texts:
        name, argument, weight = _parts(text, option)
        if weight is not None and unweighted:
            raise UserError(f"{option} {text}: {unweighted}, so it takes no weight.")
        table: dict[str, Any] = {} if weight is None else {"weight": weight}
        label = name
        if argument is None and name in result:
            raise UserError(f"{option} {name} is given twice.")
        if argument is not None:
            label = _free(_label(name, argument), result)
            table = {"name": name, _first_option(name, registry): argument, **table}
        result[label] = table
    return result


def _parts(text: str, option: str) -> tuple[str, str | None, float | None]:
    """Name, argument and weight. In an argument, `=` begins a weight only before a number."""
    name, colon, rest = text.partition(":")
    if not colon:
        name, equals, number = text.partition("=")
        return name, None, _number(text, number, option) if equals else None
    argument, equals, number = rest.rpartition("=")
    if equals and re.fullmatch(r"[-+]?[\d.]+(e[-+]?\d+)?", number, re.IGNORECASE):
        return name, argument, _number(text, number, option)
    return name, rest, None


def _number(text: str, number: str, option: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise UserError(f"{option} {text}: the weight '{number}' is not a number.") from None


def _first_option(name: str, registry: Registry) -> str:
    options = list(registry.find("reward", name).options)
    if not options:
        raise UserError(f"reward '{name}' has no options, so it takes no argument after ':'.")
    return options[0]


def _label(name: str, argument: str) -> str:
    """A readable label that works as a TOML key, in a path for `-s` and as a folder's name."""
    what = re.sub(r"^\w+://", "", argument).partition("@")[0]
    return f"{name}-" + re.sub(r"\W+", "-", what, flags=re.ASCII).strip("-")


def _free(label: str, taken: Iterable[str]) -> str:
    number, free = 2, label
    while free in taken:
        free = f"{label}-{number}"
        number += 1
    return free
