"""What a check is, and what it says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from dagflow.checks.patient import Patient

Status = Literal["ok", "warning", "failed", "skipped"]
Group = Literal["machine", "plugins", "weights", "model", "mathematics", "rewards"]
GROUPS: tuple[Group, ...] = ("machine", "plugins", "weights", "model", "mathematics", "rewards")


@dataclass(frozen=True)
class Finding:
    """What one check found."""

    status: Status
    found: str  # what was measured
    limit: str = ""  # what it was held against
    change: str = ""  # the setting to change or the command to run; of a failure never empty


@dataclass(frozen=True)
class Check:
    """One question, answered by `ask`, which may raise whatever it likes."""

    group: Group
    name: str
    ask: Callable[[Patient], Finding]
    change: str  # what to change where `ask` raises, or does not say
    needs: tuple[str, ...] = ()  # checks without whose success this one says nothing
    steps: Callable[[Patient], int] = lambda _: 0  # of the progress that it shows; 0: unknown


@dataclass(frozen=True)
class Result:
    """A check that was asked, or that could not be."""

    group: Group
    name: str
    status: Status
    found: str
    limit: str
    change: str
    seconds: float


def ok(found: str, limit: str = "") -> Finding:
    return Finding("ok", found, limit)


def warning(found: str, change: str, limit: str = "") -> Finding:
    return Finding("warning", found, limit, change)


def failed(found: str, change: str = "", limit: str = "") -> Finding:
    return Finding("failed", found, limit, change)


def skipped(found: str) -> Finding:
    return Finding("skipped", found)
