"""What a check is, and what it reports."""

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
    limit: str = ""  # what it was compared with
    change: str = ""  # the setting to change, or the command to run


@dataclass(frozen=True)
class Check:
    """One question, answered by `ask`, which may raise anything."""

    group: Group
    name: str
    ask: Callable[[Patient], Finding]
    change: str  # what to change if `ask` raises or does not say
    needs: tuple[str, ...] = ()  # checks that must succeed for this one to mean anything
    steps: Callable[[Patient], int] = lambda _: 0  # how many steps of progress; 0: unknown


@dataclass(frozen=True)
class Result:
    """The result of a check, even of one that could not be asked."""

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
