"""Where a run's numbers come from: one line of RUN/sessions.jsonl for each start or resume.

The host's name is left out on purpose, because runs are shown to others.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dagflow import __version__
from dagflow.errors import NotSaved

FILE = "sessions.jsonl"
PACKAGES = ("torch", "diffusers", "peft", "transformers", "accelerate")


def record(folder: Path, processes: int) -> None:
    """Append what is known about this session to the run's file."""
    try:
        with (folder / FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(session(processes)) + "\n")
    except OSError as error:
        raise NotSaved(f"{folder / FILE} cannot be written: {error}") from error


def session(processes: int) -> dict[str, Any]:
    """Time, command, code, versions and hardware; None where the machine does not say."""
    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["dagflow", *sys.argv[1:]]),
        "dagflow": __version__,
        "commit": _commit(Path(__file__).parents[1]),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "devices": _devices(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": _memory(),
        "processes": processes,
    }


def _commit(folder: Path) -> str | None:
    """The commit of dagflow's checkout, if any, with `-dirty` if its files have changed."""
    if not (folder / ".git").exists():
        return None
    commit = _git(folder, "rev-parse", "HEAD")
    changed = _git(folder, "status", "--porcelain", "--untracked-files=no")
    return f"{commit}-dirty" if commit and changed else commit


def _git(folder: Path, *words: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _devices() -> list[str]:
    """Names of the CUDA devices that this process sees."""
    import torch

    return [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())]


def _processor() -> str | None:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or None
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine() or None


def _memory() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (AttributeError, ValueError, OSError):
        return None
