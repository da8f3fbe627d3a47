"""What a finished run has to say, as JSON: report.json in its folder."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from dagflow import __version__
from dagflow.config import Config
from dagflow.evaluate import Comparison, diversity, standard_error
from dagflow.truth import Truth

VERSION = 1  # of the format


def report(
    config: Config, comparison: Comparison, truth: Truth | None, reward_calls: int
) -> dict[str, Any]:
    """Numbers alone: reward, diversity, temperature and, in a world, distances to the truth."""
    change = comparison.rewards - comparison.base_rewards
    numbers: dict[str, Any] = {
        "version": VERSION,
        "dagflow": __version__,
        "model": config.model,
        "objective": config.objective.name,
        "seed": config.seed,
        "reward_calls": reward_calls,
        "images": len(comparison.images),
        "reward": {
            "base": float(comparison.base_rewards.mean()),
            "trained": float(comparison.rewards.mean()),
            "standard_error_of_change": standard_error(change),
        },
        "diversity": {
            "base": diversity(comparison.base_images, comparison.prompts),
            "trained": diversity(comparison.images, comparison.prompts),
        },
        "temperature": {"beta": config.final_beta, **comparison.temperature},
    }
    if truth:
        numbers["distances"] = {name: asdict(value) for name, value in truth.distances.items()}
    return numbers


def write(numbers: dict[str, Any], path: Path) -> None:
    """The file appears whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
    partial.rename(path)
