"""What plugins may use of dagflow, as names and texts, and which changes would break them.

After raising `dagflow.PLUGIN_API`, run

    python -m tools.plugin_api > tests/plugin_api/MAJOR.MINOR.json
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import is_dataclass
from typing import Any

import dagflow
from dagflow import conformance, hookspecs

VALUES = {"PLUGIN_API", "__version__", "hookimpl"}  # of which only the type is promised


def api() -> dict[str, str]:
    """Names in the public API, the conformance kit and the hooks, with their parameters."""
    found = {f"dagflow.conformance.{name}": "class" for name in conformance.__all__}
    for name in dagflow.__all__:
        found |= dict(_described(name, getattr(dagflow, name)))
    hooks = {name: hook for name, hook in vars(hookspecs).items() if name.startswith("dagflow_")}
    for name, hook in hooks.items():
        found |= dict(_callable(name, hook))
    return dict(sorted(found.items()))


def _described(name: str, value: Any) -> Iterator[tuple[str, str]]:
    if name in VALUES:
        yield name, type(value).__name__
    elif inspect.isfunction(value):
        yield from _callable(name, value)
    elif inspect.isclass(value):
        yield name, " ".join(["class", *(base.__name__ for base in value.__bases__)])
        yield from _members(name, value)
    else:
        yield name, str(value)


def _members(name: str, value: type) -> Iterator[tuple[str, str]]:
    """The parameters of a record, or the attributes of other classes."""
    if is_dataclass(value):
        yield from _callable(name, value)
    else:
        known = inspect.get_annotations(value)
        yield from ((f"{name}.{key}", text) for key, text in known.items())
    for key, member in vars(value).items():
        if isinstance(member, property):
            yield f"{name}.{key}", "property"
        elif inspect.isfunction(member) and (key == "__call__" or not key.startswith("_")):
            yield from _callable(f"{name}.{key}", member)


def _callable(name: str, function: Callable[..., Any]) -> Iterator[tuple[str, str]]:
    """Each parameter by its position, and the result."""
    signature = inspect.signature(function)
    if inspect.isfunction(function):
        yield f"{name}()", str(signature.return_annotation)
    for place, (key, given) in enumerate(signature.parameters.items()):
        kind = "" if given.annotation is given.empty else f": {given.annotation}"
        default = "" if given.default is given.empty else f" = {given.default!r}"
        yield f"{name}({key})", f"{place}, {given.kind.description}{kind}{default}"


def breaks(older: Mapping[str, str], newer: Mapping[str, str]) -> list[str]:
    """What in `newer` may break a plugin written for `older`."""
    gone = [f"{name} is gone" for name in older if name not in newer]
    changed = [
        f"{name} was '{text}' and is '{newer[name]}'"
        for name, text in older.items()
        if newer.get(name, text) != text
    ]
    callables = {name.partition("(")[0] for name in older if "(" in name}
    protocols = {name for name, text in older.items() if "Protocol" in text}
    new = {name: text for name, text in newer.items() if name not in older}
    required = [
        f"{name} is new and has no default"
        for name, text in new.items()
        if name.partition("(")[0] in callables and " = " not in text
    ]
    owed = [f"{name} is new" for name in new if name.partition(".")[0] in protocols]
    return [*gone, *changed, *required, *owed]


if __name__ == "__main__":
    print(json.dumps(api(), indent=1))
