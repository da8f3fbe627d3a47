"""A real run's directory with what evaluation and alarms add, its numbers made up but plausible."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from dagflow.engine import pictures

STATISTICS = {
    "brightness": 0.45,
    "saturation": 0.5,
    "colour_entropy": 5.5,
    "edge_density": 0.2,
    "jpeg_kb": 1.4,
}
IMAGES = 12


def enriched(source: Path, folder: Path, seed: int = 0) -> Path:
    """A copy of the run with held-out records, an alarm, a whole report and ranked pictures."""
    shutil.copytree(source, folder)
    random.seed(seed)
    lines = (source / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    written = [{"epoch": 0, **held_out(0)}]
    for line in map(json.loads, lines):
        is_epoch = "reward_mean" in line
        written.append({**line, **held_out(line["epoch"])} if is_epoch else line)
    alarm = {"epoch": 2, "alarm": "edge_density", "shift": -1.83, "limit": 1.0, "gain": 0.92}
    written.append(alarm)
    text = "".join(json.dumps(record) + "\n" for record in written)
    (folder / "metrics.jsonl").write_text(text, encoding="utf-8")
    add_report(folder)
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


def add_report(folder: Path) -> None:
    """report.json of version 2, and the pictures that it ranks."""
    report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
    base = [random.gauss(-1.41, 0.13) for _ in range(IMAGES)]
    trained = [value + random.gauss(0.12, 0.05) for value in base]
    prompts = ["a cat", "a dog", "a <b>horse</b>", "a monkey & a bird"] * (IMAGES // 4)
    change = fmean(trained) - fmean(base)
    ranks = {"base": places(base), "trained": places(trained)}
    totals = {"base": fmean(base), "trained": fmean(trained), "standard_error_of_change": 0.015}
    added: dict[str, Any] = {
        "version": 2,
        "checkpoint": "epoch-0002",
        "prompts": prompts,
        "features": "pixels",
        "images": IMAGES,
        "reward": {**totals, "interval": [change - 0.03, change + 0.03], "win_rate": 0.9},
        "rewards": {"jpeg-compressibility": {**totals, "win_rate": 0.9, "trained_on": True}},
        "per_image": {"base": base, "trained": trained},
        "diversity": {"base": 0.21, "trained": 0.17},
        "vendi": {"base": 3.4, "trained": 2.6},
        "statistics": {
            name: {"base": value, "trained": value * 0.8, "shift": shift}
            for (name, value), shift in zip(
                STATISTICS.items(), (-0.4, -0.2, -0.8, -1.83, -1.2), strict=True
            )
        },
        "drift": {"kl": 14.2, "noise_pred": 0.02, "latents": 0.15},
        "from_base": {"fid": 0.8, "kid": 0.02},
        "ranked": ranks,
    }
    (folder / "report.json").write_text(json.dumps({**report, **added}), encoding="utf-8")
    sheet = sorted((folder / "samples").glob("epoch-*.png"))[-1]
    with Image.open(sheet) as grid:
        [tile, *_] = pictures.tiles(grid.convert("RGB"), 2, 8)
    for name, rows in ranks.items():
        images = torch.stack([to_tensor(tile) for row in rows for _ in row])
        captions = [prompts[k] for row in rows for k in row]
        picture = pictures.grid(images, columns=4, captions=captions)
        pictures.save(picture, folder / "samples" / f"ranked-{name}.png")


def places(values: list[float]) -> list[list[int]]:
    """Of the four best, the four in the middle, the four worst."""
    order = sorted(range(len(values)), key=lambda k: -values[k])
    middle = len(order) // 2 - 2
    return [order[:4], order[middle : middle + 4], order[-4:]]
