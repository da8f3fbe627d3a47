"""Ask all checks, in an order that gives each what it needs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from time import perf_counter

from dagflow.checks.adapters import adapter_checks
from dagflow.checks.machine import machine_checks, place_checks
from dagflow.checks.mathematics import mathematics_checks
from dagflow.checks.model import model_checks
from dagflow.checks.patient import Patient
from dagflow.checks.plugins import plugin_checks
from dagflow.checks.result import Check, Finding, Result, failed, skipped
from dagflow.checks.rewards import reward_checks
from dagflow.checks.weights import weight_checks
from dagflow.errors import RunError, UserError, raised


def all_checks(patient: Patient, lora: Path | None) -> list[Check]:
    """Everything that can be asked about a run that has not begun."""
    config, registry = patient.config, patient.registry
    return [
        *machine_checks(),
        *weight_checks(config, registry),
        *plugin_checks(config, registry),
        *model_checks(),
        *mathematics_checks(),
        *adapter_checks(lora),
        *reward_checks(config),
        *place_checks(),
    ]


def examine(
    patient: Patient, checks: list[Check], begins: Callable[[Check, int], None]
) -> Iterator[Result]:
    """Each check's answer, as it comes. A check is not asked if one that it needs has failed.

    `begins` is told of each before it is asked, with the number of its steps.
    """
    _quiet_libraries()
    blocked: dict[str, str] = {}  # by the name of a check, which failure it comes from
    for check in checks:
        begins(check, check.steps(patient))
        began = perf_counter()
        why = next((blocked[name] for name in check.needs if name in blocked), None)
        found = skipped(f"not asked, because '{why}' failed") if why else _asked(patient, check)
        if why or found.status == "failed":
            blocked[check.name] = why or check.name
        change = found.change or (check.change if found.status == "failed" else "")
        seconds = perf_counter() - began
        yield Result(
            check.group, check.name, found.status, found.found, found.limit, change, seconds
        )


def _asked(patient: Patient, check: Check) -> Finding:
    """The check's finding; whatever it raises becomes one."""
    try:
        return check.ask(patient)
    except (UserError, RunError) as error:
        return failed(str(error).rstrip("."))
    except (Exception, SystemExit) as error:
        return failed(f"the check '{check.name}' {raised(error)}")


def _quiet_libraries() -> None:
    """Silence the libraries: the checks say what matters."""
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.set_verbosity(diffusers.utils.logging.CRITICAL)
    transformers.utils.logging.set_verbosity(transformers.utils.logging.CRITICAL)
    transformers.utils.logging.disable_progress_bar()
