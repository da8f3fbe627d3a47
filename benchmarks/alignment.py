"""Does the reward move, and do the pictures survive? Base against trained, on held-out seeds.

    python benchmarks/alignment.py runs/one runs/two ... [--images 256] [--all] [--output FILE.json]

--all measures every checkpoint that a run kept (train with -s checkpoint.keep=99), not only the
last.

For each run: the mean reward (kB of JPEG at quality 95) of base and trained model on the same
prompts and noise, paired by seed; the accuracy of a small animal classifier that was trained on
rendered emoji and never saw a generated picture; and the mean distance between two pictures of one
prompt, in pixels (root mean square) and in the classifier's features. A model that draws blank
squares loses the latter two.
"""

from __future__ import annotations

import argparse
import json
import sys
from itertools import combinations
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))
from animal_classifier import load_classifier, predict

from dagflow.config import Config
from dagflow.engine.checkpoint import checkpoints
from dagflow.evaluate import Sampler, cycle
from dagflow.folder import read_config
from dagflow.policies.loading import default_device, load_policy
from dagflow.prompt_sources import animals
from dagflow.types import Prompt
from dagflow_rewards import jpeg_incompressibility

SEED = 20_000  # no run trains on it
BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()

    results: dict[str, dict[str, float]] = {}
    base: tuple[Config, Tensor] | None = None
    for run in arguments.runs:
        config = read_config(run)
        if base is None or not _same_sampler(base[0], config):
            base = (config, draw(config, None, arguments.images))
        kept = checkpoints(run / "checkpoints")
        for checkpoint in kept if arguments.all else kept[-1:]:
            drawn = draw(config, checkpoint, arguments.images)
            results[f"{run.name}/{checkpoint.name}"] = measure(base[1], drawn)
    print_table(results)
    if arguments.output:
        arguments.output.write_text(json.dumps(results, indent=1))


def _same_sampler(one: Config, other: Config) -> bool:
    return (one.model, one.dtype, one.rollout.num_inference_steps, one.rollout.guidance_scale) == (
        other.model,
        other.dtype,
        other.rollout.num_inference_steps,
        other.rollout.guidance_scale,
    )


def prompts(count: int) -> tuple[Prompt, ...]:
    """Prompts such that image i shows animal i modulo 45."""
    return cycle(animals(), count)


def draw(config: Config, checkpoint: Path | None, count: int) -> Tensor:
    """Held-out images (count, 3, height, width) of the base model or of a checkpoint."""
    device = default_device()
    policy = load_policy(config.model, config.dtype, device, config.rollout.guidance_scale)
    if checkpoint is not None:
        policy.load_weights(checkpoint)
    path = policy.path(config.rollout.num_inference_steps)
    return Sampler(policy, path, BATCH, SEED).images(prompts(count))


def measure(base: Tensor, trained: Tensor) -> dict[str, float]:
    """The figures of one run."""
    size = jpeg_incompressibility()
    before, after = (size(images, prompts(len(images))) for images in (base, trained))
    change = after - before
    classifier = load_classifier()  # `features` is everything before the head
    truth = torch.arange(len(base)) % len(animals())
    right = [float((predict(images) == truth).float().mean()) for images in (base, trained)]
    distances = [spread(images.flatten(1)) for images in (base, trained)]
    features = [
        spread(classifier.features(2 * images - 1).flatten(1)) for images in (base, trained)
    ]
    return {
        "kb_base": float(before.mean()),
        "kb_trained": float(after.mean()),
        "change_percent": 100 * float(change.mean() / before.mean()),
        "standard_error_percent": 100 * float(change.std() / len(change) ** 0.5 / before.mean()),
        "accuracy_base": 100 * right[0],
        "accuracy_trained": 100 * right[1],
        "distance_kept_percent": 100 * distances[1] / distances[0],
        "feature_distance_kept_percent": 100 * features[1] / features[0],
    }


@torch.no_grad()
def spread(vectors: Tensor) -> float:
    """Mean root-mean-square distance between two vectors for one prompt."""
    count = len(animals())
    groups = [vectors[start::count] for start in range(min(count, len(vectors)))]
    pairs = [(a - b).pow(2).mean().sqrt() for group in groups for a, b in combinations(group, 2)]
    return float(torch.stack(pairs).mean())


def print_table(results: dict[str, dict[str, float]]) -> None:
    table = Table("run", *next(iter(results.values())), box=None)
    for name, figures in results.items():
        table.add_row(name, *(f"{value:.3g}" for value in figures.values()))
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
