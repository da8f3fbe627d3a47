"""Several objectives on one task: each run by `dagflow train`, and what their reports say."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dagflow import __version__

VERSION = 1  # of the format
# 97.5 % quantiles of Student's t by degrees of freedom from 1; later ones as the normal's
STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26, 2.23, 2.20, 2.18, 2.16, 2.14)
NORMAL = 1.96


@dataclass(frozen=True)
class Contest:
    """One run of a comparison."""

    objective: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]  # of `dagflow train`

    @property
    def report(self) -> Path:
        return self.folder / "report.json"


@dataclass(frozen=True)
class Failed:
    """A run that ended without a report."""

    contest: Contest
    message: str


def run_all(
    contests: Sequence[Contest], jobs: int, begun: Callable[[Contest], None]
) -> Iterator[Contest | Failed]:
    """Run those that have no report yet, `jobs` at a time; yields each as it ends.

    A run that was interrupted goes on.
    """

    def one(contest: Contest) -> Contest | Failed:
        begun(contest)
        return _run(contest)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, contest) for contest in contests]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _run(contest: Contest) -> Contest | Failed:
    if contest.report.is_file():
        return contest
    begun = (contest.folder / "config.toml").is_file()
    arguments = ("--resume", str(contest.folder)) if begun else contest.arguments
    done = subprocess.run(
        [sys.executable, "-m", "dagflow", "train", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0 and contest.report.is_file():
        return contest
    lines = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
    return Failed(contest, "\n".join(lines[-3:]))


def result(contests: Sequence[Contest]) -> dict[str, Any]:
    """Reports by objective, with mean and 95 % interval over seeds of each number."""
    objectives: dict[str, Any] = {}
    for contest in contests:
        entry = objectives.setdefault(contest.objective, {"reports": []})
        entry["reports"].append(json.loads(contest.report.read_text(encoding="utf-8")))
    for entry in objectives.values():
        entry["summary"] = _summary(entry["reports"])
    return {"version": VERSION, "dagflow": __version__, "objectives": objectives}


def _summary(reports: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Of every number in the reports by its path, such as `reward.trained`."""
    flat = [dict(_numbers(report)) for report in reports]
    names = [name for name in flat[0] if all(name in other for other in flat)]
    return {name: interval([numbers[name] for numbers in flat]) for name in names}


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean, and half the width of its 95 % confidence interval (0 for a single value)."""
    count = len(values)
    if count < 2:
        return {"mean": values[0], "half_width": 0.0}
    quantile = STUDENT[count - 2] if count - 2 < len(STUDENT) else NORMAL
    return {"mean": fmean(values), "half_width": quantile * stdev(values) / count**0.5}


def _numbers(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and key not in ("seed", "version"):
            yield f"{prefix}{key}", float(value)
