"""What the contracts of all three kinds have in common."""

from __future__ import annotations

import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any, ClassVar, NoReturn

import pytest

from dagflow.errors import PluginError, UserError
from dagflow.plugins import DISABLE_VARIABLE, GROUP, HEAVY, Kind, Provided, load_plugins

IMPORT_LIMIT = 120  # seconds
VARIOUS = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
PROBE = """
import json, os, sys
path, heavy = json.loads(sys.stdin.read())
sys.path[:] = path
from dagflow.plugins import load_plugins
load_plugins()
print("\\n" + json.dumps([name for name in heavy if name in sys.modules]), flush=True)
os._exit(0)  # before anything else is printed
"""


def advise(message: str) -> NoReturn:
    """Fail the running test with this message alone, which says what to do."""
    pytest.fail(message, pytrace=False)


class Contract:
    """One installed plugin under test: its name, and the options to build it with."""

    kind: ClassVar[Kind]
    name: ClassVar[str]
    options: ClassVar[Mapping[str, Any]] = {}

    @property
    def label(self) -> str:
        return f"{self.kind} '{self.name}'"

    def provided(self) -> Provided:
        """The plugin as it is registered."""
        try:
            return load_plugins().find(self.kind, self.name)
        except UserError as error:
            advise(f"{error} Is the distribution installed (`pip install -e .`)?")

    def build(self, *first: object) -> Any:
        """A new one, as the engine builds it; an objective is given the policy first."""
        try:
            return load_plugins().maker(self.kind, self.name, self.options)(*first)
        except (UserError, PluginError) as error:
            advise(
                f"{error} The kit builds it with the options {dict(self.options)}; if it needs "
                f"others, give them by --dagflow-option key=value, or as `options` of the class."
            )

    def test_import_is_light(self) -> None:
        """Loading the plugin imports no heavy library."""
        loaded = heavy_imports(self.provided().distribution)
        if loaded:
            advise(
                f"{self.label}: loading the plugin imports {', '.join(loaded)}, which every "
                f"`dagflow --help` with it installed would wait for. Move these imports into the "
                f"factory, or into a module that the factory imports."
            )

    def test_options_are_documented(self) -> None:
        """The factory has a docstring, which names every option that has no default."""
        item = self.provided()
        text = own_docstring(item.factory)
        if not text:
            advise(
                f"{self.label}: its factory {item.factory!r} has no docstring. `dagflow "
                f"list-plugins` shows its first line as help: say there what it is."
            )
        for key, option in item.options.items():
            required = option.default is option.empty and option.kind not in VARIOUS
            if required and not re.search(rf"\b{re.escape(key)}\b", text, re.IGNORECASE):
                advise(
                    f"{self.label}: the option '{key}' has no default, and the factory's docstring "
                    f"does not mention it. Give it a default, or say what it is."
                )


def heavy_imports(distribution: str) -> list[str]:
    """Which of `HEAVY` are imported when the plugins of one distribution load, in a new process."""
    owners = {point.dist.name for point in entry_points(group=GROUP) if point.dist}
    disabled = {os.environ.get(DISABLE_VARIABLE, ""), *(owners - {distribution})}
    environment = {**os.environ, DISABLE_VARIABLE: ",".join(disabled)}
    done = subprocess.run(
        [sys.executable, "-c", PROBE],
        input=json.dumps([sys.path, HEAVY]),
        env=environment,
        capture_output=True,
        text=True,
        timeout=IMPORT_LIMIT,
        check=False,
    )
    if done.returncode:
        advise(f"loading the plugins of {distribution} ended the process:\n{done.stderr}")
    found: list[str] = json.loads(done.stdout.splitlines()[-1])
    return found


def own_docstring(factory: Any) -> str:
    """A factory's docstring; none that it inherits, and none that `dataclass` made up."""
    text = (factory.__doc__ or "").strip()
    made_up = text.startswith(f"{getattr(factory, '__name__', '')}(") and "\n" not in text
    return "" if made_up else text
