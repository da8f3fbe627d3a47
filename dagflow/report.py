"""The results of a finished run as JSON: report.json in its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from dagflow import __version__
from dagflow.alarms import find_alarms
from dagflow.config import Config
from dagflow.evaluate import Comparison, Measured, measure, standard_error, win_rate
from dagflow.files import whole
from dagflow.intervals import student
from dagflow.measures import diversity
from dagflow.measures.features import Features
from dagflow.measures.looks import shift
from dagflow.truth import Truth

VERSION = 2  # of the format
NAME = "report.json"
RANKED = 4  # images of each rank
LISTED = 4096  # most images whose numbers are listed one by one


def report(
    config: Config,
    comparison: Comparison,
    truth: Truth | None,
    reward_calls: int,
    checkpoint: str,
    beta: float,
    features: Features,
    ended: bool,
) -> dict[str, Any]:
    """Numbers alone: rewards, diversity, looks and drift, and how certain they are.

    In a world, also distances from the truth. `checkpoint`: the name of the evaluated one; `beta`:
    the final one in nats, which the temperature's slope should equal; `ended`: whether the run has
    ended.
    """
    prompts, images = comparison.prompts, (comparison.base.images, comparison.trained.images)
    base, now = (measure(one, prompts, features) for one in (comparison.base, comparison.trained))
    change = change_of(base.rewards, now.rewards)
    mean = float((now.rewards - base.rewards).mean())
    width = student(len(prompts)) * change["standard_error_of_change"] if len(prompts) > 1 else None
    numbers: dict[str, Any] = {
        "version": VERSION,
        "dagflow": __version__,
        "model": config.model,
        "objective": config.objective.name,
        "seed": config.seed,
        "ended": ended,
        "checkpoint": checkpoint,
        "reward_calls": reward_calls,
        "images": len(prompts),
        "reward": {**change, "interval": width and [mean - width, mean + width]},
        "rewards": {
            label: {
                **change_of(base.scores[label], now.scores[label]),
                "trained_on": label in comparison.trained_on,
            }
            for label in now.scores
        },
        "features": features.name,
        "diversity": {"base": base.diversity, "trained": now.diversity},
        "vendi": {"base": base.vendi, "trained": now.vendi},
        "from_base": diversity.from_base(*(features.coarse(part) for part in images)),
        "statistics": _looks(base, now),
        "drift": comparison.drift,
        "alarms": [asdict(alarm) for alarm in find_alarms(base, now, config.alarms)],
        "temperature": {"beta": config.final_beta, "due": beta, **comparison.temperature},
    }
    if len(prompts) <= LISTED:
        numbers |= {
            "prompts": [prompt.text for prompt in prompts],
            "per_image": {"base": base.rewards.tolist(), "trained": now.rewards.tolist()},
            "ranked": {"base": ranked(base.rewards), "trained": ranked(now.rewards)},
        }
    if truth:
        numbers["distances"] = {name: asdict(value) for name, value in truth.distances.items()}
    return numbers


def change_of(base: Tensor, now: Tensor) -> dict[str, Any]:
    """The change of a reward over N pairs of images from the same noise."""
    return {
        "base": float(base.mean()),
        "trained": float(now.mean()),
        "standard_error_of_change": standard_error(now - base),
        "win_rate": win_rate(base, now),
    }


def _looks(base: Measured, now: Measured) -> dict[str, dict[str, float]]:
    return {
        name: {
            "base": float(base.looks[name].mean()),
            "trained": float(values.mean()),
            "shift": shift(base.looks[name], values),
        }
        for name, values in now.looks.items()
    }


def ranked(rewards: Tensor) -> list[list[int]]:
    """The positions of the best, middle and worst images by (N,) rewards, four of each.

    Fewer if there are not twelve images.
    """
    order = rewards.argsort(descending=True, stable=True).tolist()
    count = min(RANKED, max(1, len(order) // 3))
    middle = (len(order) - count) // 2
    return [order[:count], order[middle : middle + count], order[len(order) - count :]]


def has_ended(run: Path) -> bool:
    """Whether the run in this folder has ended; older versions reported only then."""
    try:
        numbers = json.loads((run / NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(numbers, dict) and bool(numbers.get("ended", True))


def write(numbers: Mapping[str, Any], path: Path) -> None:
    """Write a report; the file appears whole or not at all."""
    with whole(path) as file:
        file.write_text(json.dumps(numbers, indent=1) + "\n", encoding="utf-8")
