"""Do the plugins load, and does everything that the configuration names exist?"""

from __future__ import annotations

from functools import partial

from dagflow.checks.patient import Patient
from dagflow.checks.result import Check, Finding, failed, ok
from dagflow.config import Config, OpenTable
from dagflow.plugins import DISABLE_VARIABLE, Broken, Kind, Registry
from dagflow.prepare import load_prompts, maker_of


def plugin_checks(config: Config, registry: Registry) -> list[Check]:
    """One check for the plugins that load, one for each that does not, and one for each name."""
    found = [Check("plugins", "loading", loading, "the plugins that are installed")]
    for item in registry.broken:
        ask = partial(broken, item=item)
        found.append(Check("plugins", f"plugin {item.entry_point}", ask, item.distribution))
    for kind, label, name, table in named(config):
        ask = partial(provided, kind=kind, name=name, table=table)
        setting = f"rewards.{label}" if kind == "reward" else kind
        found.append(Check("plugins", f"{kind} {label}", ask, f"{setting}.name, or its options"))
    source = config.prompts.name.partition(":")[0]
    needs = (f"prompts {source}", files_check("prompts", source))
    found.append(Check("plugins", "prompt source", prompts, "prompts.name (--prompts)", needs))
    return found


def files_check(kind: Kind, label: str) -> str:
    """The name of the check of a plugin's files, if it reads any."""
    return f"files of {kind} {label}"


def named(config: Config) -> list[tuple[Kind, str, str, OpenTable]]:
    """Kind, label, name and table of everything that the configuration names."""
    rewards = {**config.rewards, **config.evaluate.rewards}
    found: list[tuple[Kind, str, str, OpenTable]] = [
        ("reward", label, table.name or label, table) for label, table in rewards.items()
    ]
    prompts, colon, path = config.prompts.name.partition(":")
    table = config.prompts.model_copy(update={"path": path}) if colon else config.prompts
    found.append(("prompts", prompts, prompts, table))
    found.append(("objective", config.objective.name, config.objective.name, config.objective))
    return found


def loading(patient: Patient) -> Finding:
    registry = patient.registry
    names: dict[Kind, str] = {
        "reward": "rewards",
        "prompts": "prompt sources",
        "objective": "objectives",
    }
    counts = (f"{len(registry.names(kind))} {name}" for kind, name in names.items())
    off = f"; switched off: {', '.join(registry.disabled)}" if registry.disabled else ""
    return ok(", ".join(counts) + off)


def broken(patient: Patient, item: Broken) -> Finding:
    """A plugin that could not be loaded."""
    return failed(
        f"{item.entry_point} of {item.distribution} {item.version} does not load: {item.reason}",
        f"fix, update or uninstall {item.distribution}, or {DISABLE_VARIABLE}={item.entry_point}",
    )


def provided(patient: Patient, kind: Kind, name: str, table: OpenTable) -> Finding:
    """Raises UserError for a name that no plugin provides, and for wrong options."""
    maker_of(patient.registry, kind, name, table)
    item = patient.registry.find(kind, name)
    return ok(f"{item.distribution} {item.version}")


def prompts(patient: Patient) -> Finding:
    """Raises UserError or PluginError if the source cannot be built or is not a prompt source."""
    _, patient.prompts = load_prompts(patient.config, patient.registry)
    return ok(f"{len(patient.prompts)} prompts, such as '{patient.prompts[0].text}'")
