"""Find plugins, survive broken ones, build one by name."""

from __future__ import annotations

import inspect
import math
import os
import re
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, is_dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal, get_type_hints

import pluggy

from dagflow import __version__, hookspecs
from dagflow.errors import PluginError, UserError, blaming, described, did_you_mean

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

GROUP = "dagflow"
OWN_DISTRIBUTION = "dagflow-align"
DISABLE_VARIABLE = "DAGFLOW_DISABLE_PLUGINS"

HEAVY = (
    "torch", "torchvision", "transformers", "diffusers", "tensorflow", "jax", "onnxruntime", "cv2",
    "scipy", "pandas", "sklearn",
)  # fmt: skip

NAME = re.compile(r"[^\s:=@]+")  # what --reward NAME:ARGUMENT=WEIGHT can say

Kind = Literal["reward", "prompts", "objective"]
HOOKS: dict[str, Kind] = {
    "dagflow_register_rewards": "reward",
    "dagflow_register_prompt_sources": "prompts",
    "dagflow_register_objectives": "objective",
}
# Keys that the engine itself reads in the tables that name plugins; no option may have these names.
OWN_KEYS: dict[Kind, set[str]] = {
    "reward": {"name", "weight", "normalise_epochs", "timeout"},
    "prompts": {"name"},
    "objective": {"name", "beta", "anneal", "log_density"},
}


@dataclass(frozen=True)
class Provided:
    """One reward, prompt source or objective that a plugin offers under a name."""

    kind: Kind
    name: str
    factory: Callable[..., Any]
    distribution: str
    version: str

    @property
    def options(self) -> dict[str, inspect.Parameter]:
        """The factory's parameters that a user may set; an objective's first one is the policy."""
        parameters = dict(inspect.signature(self.factory).parameters)
        if self.kind == "objective" and parameters:
            parameters.pop(next(iter(parameters)))
        return parameters

    @property
    def label(self) -> str:
        """For messages."""
        return f"{self.kind} '{self.name}' of {self.distribution} {self.version}"

    @property
    def help(self) -> str:
        """The first line of the factory's docstring."""
        return next(iter((inspect.getdoc(self.factory) or "").splitlines()), "")


@dataclass(frozen=True)
class Broken:
    """A plugin that cannot be used, and why."""

    entry_point: str
    distribution: str
    version: str
    reason: str
    traceback: str = ""


@dataclass(frozen=True)
class Cost:
    """The cost of importing one plugin."""

    entry_point: str
    distribution: str
    seconds: float
    heavy: tuple[str, ...]  # heavy packages that this plugin was the first to import


@dataclass(frozen=True)
class Registry:
    """Everything the installed plugins offer."""

    provided: tuple[Provided, ...]
    broken: tuple[Broken, ...]
    costs: tuple[Cost, ...] = ()
    disabled: tuple[str, ...] = ()  # entry points that DAGFLOW_DISABLE_PLUGINS disables

    def names(self, kind: Kind) -> list[str]:
        return sorted({item.name for item in self.provided if item.kind == kind})

    def find(self, kind: Kind, name: str) -> Provided:
        """The one item of that kind and name.

        Raises UserError if there is none (listing what exists, the nearest match and the plugins
        that did not load) or if two distributions provide it.
        """
        found = [item for item in self.provided if (item.kind, item.name) == (kind, name)]
        if len(found) > 1:
            owners = " and ".join(f"{item.distribution} {item.version}" for item in found)
            raise UserError(
                f"{kind} '{name}' is provided twice, by {owners}. Uninstall one, or list one of "
                f"them in {DISABLE_VARIABLE}."
            )
        if not found:
            raise UserError(self._unknown(kind, name))
        return found[0]

    def author(self, kind: Kind, name: str) -> str:
        """The distribution that provides it, or "" if none does."""
        of_it = (x.distribution for x in self.provided if (x.kind, x.name) == (kind, name))
        return next(of_it, "")

    def maker(
        self, kind: Kind, name: str, options: Mapping[str, Any], beside: Iterable[str] = ()
    ) -> Callable[..., Any]:
        """Check name and options; return a function that calls the factory with them.

        The function passes its own arguments before the options: for an objective, the PolicySpec.
        `beside`: the engine's own keys in the same table, which the user may have misspelt. Raises
        UserError for an unknown name or option or a value of the wrong type, and PluginError if
        the factory has an option named like one of the engine's keys. The returned function raises
        PluginError if the factory raises.
        """
        item = self.find(kind, name)
        if taken := sorted(item.options.keys() & OWN_KEYS[kind]):
            raise PluginError(
                f"{item.label} has an option '{taken[0]}', which is dagflow's own key in a recipe, "
                f"so nobody can set it: its author has to rename it"
            )
        checked = _check_options(item, options, beside)

        def make(*first: object) -> Any:
            with blaming(item.label, UserError):
                return item.factory(*first, **checked)

        return make

    def _unknown(self, kind: Kind, name: str) -> str:
        names = self.names(kind)
        message = (
            f"there is no {kind} called '{name}'.{did_you_mean(name, names)} "
            f"Installed: {', '.join(names) or 'none'}."
        )
        if self.broken:
            failed = ", ".join(item.entry_point for item in self.broken)
            why = f" ({self.broken[0].reason})" if len(self.broken) == 1 else ""
            message += f" Plugins that did not load (see `dagflow list-plugins`): {failed}{why}."
        if self.disabled:
            message += f" Disabled by {DISABLE_VARIABLE}: {', '.join(self.disabled)}."
        return message


def load_plugins() -> Registry:
    """Import every plugin named by an entry point, except the disabled ones.

    `DAGFLOW_DISABLE_PLUGINS`, a comma-separated list of entry-point or distribution names, is read
    before anything is imported. What plugins print goes to standard error.
    """
    from importlib.metadata import entry_points  # `dagflow --help` does without it

    manager = pluggy.PluginManager(GROUP)
    manager.add_hookspecs(hookspecs)
    names = {name.strip() for name in os.environ.get(DISABLE_VARIABLE, "").split(",")}
    provided: list[Provided] = []
    broken: list[Broken] = []
    costs: list[Cost] = []
    disabled: list[str] = []
    for entry_point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
        distribution, version = _origin(entry_point)
        if {entry_point.name, distribution} & names:
            disabled.append(entry_point.name)
            continue
        started, before = time.perf_counter(), _heavy_modules()
        try:
            with redirect_stdout(sys.stderr):
                provided += _load_one(manager, entry_point)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin may call sys.exit, which must not end dagflow
            reason = str(error) if isinstance(error, PluginError) else described(error)
            details = traceback.format_exc()
            broken.append(Broken(entry_point.name, distribution, version, reason, details))
        heavy = tuple(sorted(_heavy_modules() - before))
        seconds = time.perf_counter() - started
        costs.append(Cost(entry_point.name, distribution, seconds, heavy))
    return Registry(tuple(provided), tuple(broken), tuple(costs), tuple(disabled))


def _heavy_modules() -> set[str]:
    return {name for name in HEAVY if name in sys.modules}


def _origin(entry_point: EntryPoint) -> tuple[str, str]:
    distribution = entry_point.dist
    return (distribution.name, distribution.version) if distribution else ("unknown", "")


def _load_one(manager: pluggy.PluginManager, entry_point: EntryPoint) -> list[Provided]:
    _check_requirement(entry_point)
    plugin = entry_point.load()
    if manager.is_registered(plugin):
        raise PluginError(f"{entry_point.value} is already the plugin {manager.get_name(plugin)}")
    _check_hook_names(manager, plugin)
    manager.register(plugin, f"{entry_point.name} of {' '.join(_origin(entry_point))}")
    callers = manager.get_hookcallers(plugin) or []
    if not callers:
        raise PluginError(f"no hook found: mark one of {', '.join(HOOKS)} with @dagflow.hookimpl")
    return [item for caller in callers for item in _ask(caller, plugin, entry_point)]


def _check_requirement(entry_point: EntryPoint) -> None:
    """Before the plugin is imported, raise PluginError if it requires another dagflow version."""
    from packaging.requirements import InvalidRequirement, Requirement
    from packaging.utils import canonicalize_name

    for text in (entry_point.dist.requires if entry_point.dist else None) or []:
        try:
            needed = Requirement(text)
        except InvalidRequirement:  # pip's job
            continue
        applies = needed.marker is None or needed.marker.evaluate({"extra": ""})
        if canonicalize_name(needed.name) != OWN_DISTRIBUTION or not applies:
            continue
        if not needed.specifier.contains(__version__, prereleases=True):
            raise PluginError(f"needs {OWN_DISTRIBUTION}{needed.specifier}; this is {__version__}")


def _check_hook_names(manager: pluggy.PluginManager, plugin: object) -> None:
    for name in dir(plugin):
        if manager.parse_hookimpl_opts(plugin, name) is not None and name not in HOOKS:
            raise PluginError(f"unknown hook {name}.{did_you_mean(name, HOOKS)}")


def _ask(caller: pluggy.HookCaller, plugin: object, entry_point: EntryPoint) -> Iterator[Provided]:
    [implementation] = [impl for impl in caller.get_hookimpls() if impl.plugin is plugin]
    answer = implementation.function()
    if not isinstance(answer, Mapping):
        raise PluginError(
            f"{caller.name} returned {type(answer).__name__}; expected a mapping of name to factory"
        )
    for name, factory in answer.items():
        if not isinstance(name, str) or not callable(factory):
            raise PluginError(f"{caller.name}: {name!r} -> {factory!r} is not a name and a factory")
        if not NAME.fullmatch(name):
            raise PluginError(
                f"{caller.name}: {name!r} cannot be said on the command line; use no spaces and "
                f"none of : = @"
            )
        # Some built-in types have no signature and cannot take options: this raises for them.
        if {"images", "prompts"} <= inspect.signature(factory).parameters.keys():
            raise PluginError(
                f"{caller.name}: '{name}' is itself a reward; register what makes it: its class, "
                f"or a function that returns it"
            )
        yield Provided(HOOKS[caller.name], name, factory, *_origin(entry_point))


def _check_options(
    item: Provided, options: Mapping[str, Any], beside: Iterable[str]
) -> dict[str, Any]:
    parameters = item.options
    various = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for key in options:
        if key not in parameters and not takes_any:
            raise UserError(
                f"{item.kind} '{item.name}' has no option '{key}'."
                f"{did_you_mean(key, [*parameters, *beside])} "
                f"Its options: {', '.join(parameters) or 'none'}."
            )
    for key, parameter in parameters.items():
        required = parameter.default is parameter.empty and parameter.kind not in various
        if required and key not in options:
            raise UserError(f"{item.kind} '{item.name}' needs the option '{key}'.")
    hints = _hints(item.factory)
    others = next((key for key, p in parameters.items() if p.kind is p.VAR_KEYWORD), "")
    return {
        key: _check_value(item, key, value, hints.get(key if key in parameters else others, Any))
        for key, value in _like_defaults(options, parameters, hints).items()
    }


def _like_defaults(
    options: Mapping[str, Any],
    parameters: Mapping[str, inspect.Parameter],
    hints: Mapping[str, Any],
) -> dict[str, Any]:
    """Without annotations, texts as the type of the default, if they can be: `--reward NAME:5`."""
    from pydantic import TypeAdapter, ValidationError

    found = dict(options)
    for key, parameter in parameters.items():
        value, kind = options.get(key), type(parameter.default)
        if key not in hints and isinstance(value, str) and kind in (bool, int, float):
            with suppress(ValidationError):
                found[key] = TypeAdapter(kind).validate_python(value)
    return found


def _hints(factory: Callable[..., Any]) -> dict[str, Any]:
    """The annotations of the parameters, as far as they can be resolved.

    Those that refer to lazily imported names cannot.
    """
    function = _function(factory)
    found: dict[str, Any] = {}
    for name, annotation in getattr(function, "__annotations__", {}).items():
        alone = SimpleNamespace(__annotations__={name: annotation})
        try:
            names = getattr(inspect.unwrap(function), "__globals__", {})
            found |= get_type_hints(alone, globalns=names, include_extras=True)
        except Exception:
            continue
    return found


def _function(factory: Callable[..., Any]) -> Any:
    """The function whose parameters are the factory's."""
    if isinstance(factory, partial):
        return _function(factory.func)
    if inspect.isclass(factory):
        made_by_new: bool = factory.__init__ is object.__init__
        return factory.__new__ if made_by_new else factory.__init__
    return factory if inspect.isroutine(factory) else type(factory).__call__


def _check_value(item: Provided, key: str, value: Any, hint: Any) -> Any:
    from pydantic import PydanticUserError, TypeAdapter, ValidationError

    if isinstance(value, float) and math.isnan(value):
        raise UserError(f"{item.kind} '{item.name}', option '{key}': nan is not a number.")
    if is_dataclass(hint) and isinstance(value, Mapping):
        known = list(inspect.signature(hint).parameters)  # type: ignore[arg-type]
        if foreign := next((name for name in value if name not in known), None):
            raise UserError(
                f"{item.kind} '{item.name}', option '{key}' has no '{foreign}'."
                f"{did_you_mean(foreign, known)} It has: {', '.join(known)}."
            )
    try:
        return TypeAdapter(hint).validate_python(value)
    except PydanticUserError:  # an annotation that pydantic cannot check
        return value
    except ValidationError as error:
        reason = error.errors()[0]["msg"]
        raise UserError(
            f"{item.kind} '{item.name}', option '{key}': {value!r} is not valid. {reason}."
        ) from None
