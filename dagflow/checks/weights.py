"""Are the published files that rewards and prompts read here, and are they genuine?"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from dagflow import weights
from dagflow.checks.patient import Patient
from dagflow.checks.plugins import files_check, named
from dagflow.checks.result import Check, Finding, failed, ok
from dagflow.config import Config, OpenTable
from dagflow.errors import UserError
from dagflow.plugins import Kind, Registry
from dagflow.prepare import maker_of
from dagflow.weights import WeightFile


def weight_checks(config: Config, registry: Registry) -> list[Check]:
    """A check for everything that the configuration names and that declares files it reads."""
    found = []
    for kind, label, name, table in named(config):
        item = next((x for x in registry.provided if (x.kind, x.name) == (kind, name)), None)
        files = weights.files_read_by(item.factory) if item else ()
        if files:
            ask = partial(here, kind=kind, name=name, table=table, files=files)
            title, provided = files_check(kind, label), f"{kind} {label}"
            found.append(Check("weights", title, ask, f"weights of {provided}", (provided,)))
    return found or [Check("weights", "files", none, "nothing")]


def none(patient: Patient) -> Finding:
    return ok("nothing in this run reads published files")


def here(
    patient: Patient, kind: Kind, name: str, table: OpenTable, files: Sequence[WeightFile]
) -> Finding:
    """Every needed file is on this machine, and is what was published."""
    missing = [file for file in files if weights.find(file) is None]
    if missing:  # some may belong to options that were not chosen
        try:
            with weights.nothing_fetched():
                maker_of(patient.registry, kind, name, table)()
        except weights.Missing as error:
            commands = " && ".join(map(weights.pull_command, missing))
            return failed(str(error).rstrip("."), f"run {commands}")
    present = [(file, path) for file in files if (path := weights.find(file))]
    for file, path in present:
        try:
            weights.check(file, path)
        except UserError as error:
            return failed(str(error), f"delete it, and run {weights.pull_command(file)}")
    return ok(", ".join(file.name for file, _ in present) or "the folder `weights`", "sha256")
