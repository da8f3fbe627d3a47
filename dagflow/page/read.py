"""Reads a run directory, finished or under way, written by this version or an older one."""

from __future__ import annotations

import json
import os
import socket
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from dagflow.config import Config, RewardTable
from dagflow.engine.checkpoint import checkpoints
from dagflow.errors import UserError
from dagflow.folder import OWNER
from dagflow.intervals import student
from dagflow.provenance import FILE as SESSIONS

Record = Mapping[str, Any]


@dataclass(frozen=True)
class RunData:
    """What a run has written so far."""

    folder: Path
    name: str  # unique among the runs on a page
    config_text: str
    config: Record
    steps: tuple[Record, ...]  # of optimizer steps
    epochs: tuple[Record, ...]  # of epochs, and of the base model as epoch 0
    alarms: tuple[Record, ...]
    timings: tuple[Record, ...]
    sessions: tuple[Record, ...]
    report: Record  # empty before the end
    prompts: tuple[str, ...]  # of the pictures in the grids; none in older runs
    reward_calls: int | None
    newest_checkpoint: str  # its name; empty if there is none
    is_running: bool

    @property
    def epochs_done(self) -> int:
        return max((int(e["epoch"]) for e in self.epochs if "reward_mean" in e), default=0)

    @property
    def epochs_due(self) -> int:
        return int(number(self.config.get("epochs")) or 0)

    @property
    def state(self) -> str:
        if self.is_running:
            return "running"
        said = bool(self.report) and self.report.get("ended", True)
        ended = said or self.epochs_done >= self.epochs_due
        return "finished" if ended else "not finished"

    @property
    def seconds(self) -> float:
        """Total over all epochs; what was done twice after an interruption counts once."""
        laps = [v for line in self.timings for k, v in line.items() if k.endswith("_seconds")]
        return sum(value for lap in laps if (value := number(lap)) is not None)

    @property
    def rewards(self) -> list[str]:
        """Labels of the rewards that are trained on."""
        return list(self.table("rewards"))

    @property
    def look_errors(self) -> float:
        """How many standard errors on either side of the mean of a look's images make 95 %."""
        table = self.table("evaluate")
        counts = (number(table.get(name)) or 0.0 for name in ("watched", "grid"))
        return student(max(2, *map(int, counts)))

    def table(self, *path: str) -> Record:
        """A table of the configuration; empty where there is none."""
        place: Any = self.config
        for key in path:
            place = place.get(key) if isinstance(place, Mapping) else None
        return place if isinstance(place, Mapping) else {}


def number(value: Any) -> float | None:
    """A finite number, or None for anything else."""
    known = isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
    return float(value) if known else None


def at(tree: Any, *path: str) -> Any:
    """A value in nested tables; None if something on the way is missing."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def read(folders: Sequence[Path]) -> list[RunData]:
    """Read runs. Raises UserError if a folder is not a run, or is given twice."""
    seen = [folder.resolve() for folder in folders]
    if twice := [folder for folder in folders if seen.count(folder.resolve()) > 1]:
        raise UserError(f"'{twice[0]}' is given twice.")
    return [_read(folder, name) for folder, name in zip(folders, _names(seen), strict=True)]


def _names(folders: Sequence[Path]) -> list[str]:
    """The folders' own names, with as many parents as needed to tell them apart."""
    for parts in range(1, 20):
        names = ["/".join(folder.parts[-parts:]) for folder in folders]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _read(folder: Path, name: str) -> RunData:
    text, config = _config(folder)
    metrics = _of_epochs(_lines(folder / "metrics.jsonl"))
    report = _json(folder / "report.json")
    report = report if isinstance(report, dict) else {}
    saved = checkpoints(folder / "checkpoints")
    calls = at(_json(saved[-1] / "state.json"), "reward_calls") if saved else None
    return RunData(
        folder=folder,
        name=name,
        config_text=text,
        config=config,
        steps=tuple(line for line in metrics if "update" in line),
        epochs=tuple(line for line in metrics if not {"update", "alarm"} & line.keys()),
        alarms=tuple(line for line in metrics if "alarm" in line and "update" not in line),
        timings=tuple(_of_epochs(_lines(folder / "timings.jsonl"))),
        sessions=tuple(_lines(folder / SESSIONS)),
        report=report,
        prompts=_prompts(folder),
        reward_calls=calls if isinstance(calls, int) else report.get("reward_calls"),
        newest_checkpoint=saved[-1].name if saved else "",
        is_running=_is_running(folder),
    )


def _of_epochs(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines of epochs and their steps; not those of the warm-up, nor foreign ones."""
    return [line for line in lines if number(line.get("epoch")) is not None]


def _config(folder: Path) -> tuple[str, dict[str, Any]]:
    file = folder / "config.toml"
    if not folder.is_dir():
        raise UserError(f"'{folder}' is not a folder. Give a run directory, such as runs/NAME.")
    if not file.is_file():
        inside = sorted(path.parent for path in folder.glob("*/config.toml"))
        hint = f" Did you mean '{inside[0]}'?" if inside else ""
        raise UserError(f"'{folder}' is not a run directory: it has no config.toml.{hint}")
    try:
        text = file.read_text(encoding="utf-8")
        return text, tomllib.loads(text)
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(f"'{file}' cannot be read: {error}") from error


def _lines(file: Path) -> list[dict[str, Any]]:
    """All complete lines: the last one may be half written."""
    if not file.is_file():
        return []
    found = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        if isinstance(record, dict):
            found.append(record)
    return found


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _prompts(folder: Path) -> tuple[str, ...]:
    texts = _json(folder / "samples" / "prompts.json")
    return tuple(str(text) for text in texts) if isinstance(texts, list) else ()


def _is_running(folder: Path) -> bool:
    """Whether the run's owner is alive; one on another machine is assumed to be."""
    owner = _json(folder / OWNER)
    if not isinstance(owner, dict) or owner.get("host") != socket.gethostname():
        return isinstance(owner, dict)
    try:
        os.kill(int(owner.get("pid", 0)), 0)
    except PermissionError:  # it is another user's process, and alive
        return True
    except (OSError, ValueError, TypeError):
        return False
    return True


def changed_settings(config: Record) -> list[tuple[str, str]]:
    """Settings that differ from dagflow's defaults, by path, and options of plugins."""
    defaults = dict(_flat(Config().model_dump(mode="json")))
    of_reward = RewardTable().model_dump(mode="json")
    found = []
    for path, value in _flat(config):
        parts = path.split(".")
        in_reward = "rewards" in parts[:2]
        usual = of_reward.get(parts[-1]) if in_reward else defaults.get(path)
        if path != "output" and (value != usual or path.endswith(".weight")):
            found.append((path, json.dumps(value, ensure_ascii=False, default=str)))
    return found


def _flat(tree: Record, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value
