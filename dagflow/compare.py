"""Several objectives on one task: each run with `dagflow train`, and their reports summarised."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from dagflow import __version__
from dagflow.intervals import student
from dagflow.report import has_ended

VERSION = 1  # of the format


@dataclass(frozen=True)
class Contest:
    """One run of a comparison."""

    objective: str
    seed: int
    folder: Path
    arguments: tuple[str, ...]  # of `dagflow train`
    settings: tuple[str, ...]  # what they amount to: the recipe's content and the other settings

    @property
    def report(self) -> Path:
        return self.folder / "report.json"

    @property
    def written(self) -> Path:
        """Where the settings are kept, so that a change is noticed."""
        return self.folder.with_name(f"{self.folder.name}.json")

    @property
    def has_changed(self) -> bool:
        """Whether the folder holds a run with other settings."""
        if not self.written.is_file():
            return self.folder.exists()
        before = json.loads(self.written.read_text(encoding="utf-8"))
        return tuple(before) not in (self.settings, self.arguments)  # older ones kept the latter


@dataclass(frozen=True)
class Failed:
    """A run that ended without a report."""

    contest: Contest
    message: str


def run_all(
    contests: Sequence[Contest], jobs: int, begun: Callable[[Contest], None]
) -> Iterator[Contest | Failed]:
    """Run those that have no report yet, `jobs` at a time; yields each as it ends.

    An interrupted run resumes. If this call is interrupted, the runs under way are asked to save
    and end.
    """
    under_way: set[subprocess.Popen[str]] = set()

    def one(contest: Contest) -> Contest | Failed:
        begun(contest)
        return _run(contest, under_way)

    with ThreadPoolExecutor(jobs) as pool:
        futures = [pool.submit(one, contest) for contest in contests]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in list(under_way):
                process.send_signal(signal.SIGINT)
            raise


def _run(contest: Contest, under_way: set[subprocess.Popen[str]]) -> Contest | Failed:
    if has_ended(contest.folder):
        return contest
    begun = (contest.folder / "config.toml").is_file()
    arguments = ("--resume", str(contest.folder)) if begun else contest.arguments
    contest.written.parent.mkdir(parents=True, exist_ok=True)
    contest.written.write_text(json.dumps(contest.settings), encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, "-m", "dagflow", "train", *arguments],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # so that Ctrl-C reaches it once, through us
    )
    under_way.add(process)
    errors = process.communicate()[1]
    under_way.discard(process)
    if process.returncode == 0 and has_ended(contest.folder):
        return contest
    lines = errors.strip().splitlines() or [f"exit code {process.returncode}"]
    return Failed(contest, "\n".join(lines[-3:]))


def result(contests: Sequence[Contest]) -> dict[str, Any]:
    """Reports by objective, with the mean and 95 % interval of each number over seeds."""
    objectives: dict[str, Any] = {}
    for contest in contests:
        entry = objectives.setdefault(contest.objective, {"reports": []})
        entry["reports"].append(json.loads(contest.report.read_text(encoding="utf-8")))
    for entry in objectives.values():
        entry["summary"] = _summary(entry["reports"])
    return {"version": VERSION, "dagflow": __version__, "objectives": objectives}


def _summary(reports: Sequence[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """A summary of every number in the reports, by its path, such as `reward.trained`."""
    flat = [dict(_numbers(report)) for report in reports]
    names = [name for name in flat[0] if all(name in other for other in flat)]
    return {name: interval([numbers[name] for numbers in flat]) for name in names}


def interval(values: Sequence[float]) -> dict[str, float]:
    """Mean, and half the width of its 95 % confidence interval (0 for a single value)."""
    count = len(values)
    if count < 2:
        return {"mean": values[0], "half_width": 0.0}
    return {"mean": fmean(values), "half_width": student(count) * stdev(values) / count**0.5}


def _numbers(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _numbers(value, f"{prefix}{key}.")
        elif isinstance(value, (int, float)) and key not in ("seed", "version"):
            yield f"{prefix}{key}", float(value)
