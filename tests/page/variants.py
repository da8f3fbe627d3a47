"""Copies of a real run's directory: with numbers that are known, and as older versions wrote it."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

STATISTICS = {
    "brightness": 0.45,
    "saturation": 0.5,
    "colour_entropy": 5.5,
    "edge_density": 0.2,
    "jpeg_kb": 1.4,
}
SHIFTS = (-0.4, -0.2, -0.8, -1.83, -1.2)
ALARM = {"epoch": 2, "alarm": "edge_density", "shift": -1.83, "limit": 1.0, "gain": 0.92}
NEW_IN_REPORTS = (
    "checkpoint", "prompts", "features", "rewards", "per_image", "vendi", "statistics", "drift",
    "from_base", "ranked",
)  # fmt: skip
Record = dict[str, Any]


def with_known_numbers(run: Path, folder: Path, seed: int = 0) -> Path:
    """Held-out records of a run that goes well, with an alarm, and a report that says the same."""
    shutil.copytree(run, folder)
    random.seed(seed)

    def known(record: Record) -> Record:
        return record | held_out(record["epoch"]) if "held_out.win_rate" in record else record

    rewrite(folder / "metrics.jsonl", known)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(ALARM) + "\n")
    report = json.loads((folder / "report.json").read_text())
    assert set(NEW_IN_REPORTS) <= report.keys()
    totals = {"base": -1.41, "trained": -1.29, "standard_error_of_change": 0.015}
    statistics = {
        name: {"base": value, "trained": value * 0.8, "shift": shift}
        for (name, value), shift in zip(STATISTICS.items(), SHIFTS, strict=True)
    }
    report |= {
        "reward": {**totals, "interval": [0.09, 0.15], "win_rate": 0.9},
        "diversity": {"base": 0.21, "trained": 0.17},
        "vendi": {"base": 3.4, "trained": 2.6},
        "statistics": statistics,
        "drift": {"kl": 14.2, "noise_pred": 0.02, "latents": 0.15},
    }
    (folder / "report.json").write_text(json.dumps(report))
    return folder


def held_out(epoch: int) -> dict[str, float]:
    gain = 0.03 * epoch + random.gauss(0, 0.01) * bool(epoch)
    return {
        "held_out.reward_mean": -1.41 + gain,
        "held_out.reward_std": 0.13,
        "held_out.reward_change": gain,
        "held_out.reward_change_error": 0.012 * bool(epoch),
        "held_out.win_rate": 0.5 + min(0.45, 2.5 * max(gain, 0)),
        "held_out.rewards.jpeg-compressibility": -1.41 + gain,
        "held_out.diversity": 0.21 - 0.008 * epoch,
        "held_out.vendi": 3.4 - 0.15 * epoch,
        **{f"held_out.{k}": v * (1 - 0.04 * epoch) for k, v in STATISTICS.items()},
        "held_out.drift.kl": 1.7 * epoch**1.3,
        "held_out.drift.noise_pred": 0.004 * epoch,
        "held_out.drift.latents": 0.05 * epoch**0.7,
    }


def as_older_versions_wrote_it(run: Path, folder: Path) -> Path:
    """Without held-out records, without the names of prompts, without a line of provenance."""
    shutil.copytree(run, folder)

    def older(record: Record) -> Record:
        return {key: value for key, value in record.items() if not key.startswith("held_out.")}

    rewrite(folder / "metrics.jsonl", older, keep=lambda record: len(record) > 1)
    report = json.loads((folder / "report.json").read_text())
    report = {key: value for key, value in report.items() if key not in NEW_IN_REPORTS}
    for key in ("interval", "win_rate"):
        report["reward"].pop(key)
    report |= {"version": 1, "diversity": {"base": None, "trained": None}}
    (folder / "report.json").write_text(json.dumps(report))
    for name in ("prompts.json", "ranked-base.png", "ranked-trained.png"):
        (folder / "samples" / name).unlink()
    (folder / "sessions.jsonl").unlink()
    return folder


def rewrite(
    file: Path,
    change: Callable[[Record], Record],
    keep: Callable[[Mapping[str, Any]], bool] = lambda record: True,
) -> None:
    """Change each record of a file of JSON lines."""
    records = [change(json.loads(line)) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(record) + "\n" for record in records if keep(record)))
