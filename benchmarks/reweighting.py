"""What would the best possible run keep? The base model's own images, reweighted by exp(beta r).

    python benchmarks/reweighting.py [--per-prompt 48] [--guidance 3.0]

Draws images of every prompt with the base model, and weights them by exp(-beta * kB) within each
prompt: the exact target p_base * exp(beta * reward), as far as that many images show it. For a
range of beta, prints the change of the mean file size and the share that remains of the mean
distance between two images of one prompt, in pixels and in the classifier's features, as
benchmarks/alignment.py measures them for runs. `images` is the effective number of images left for
each prompt; figures with fewer than about five are rough.
"""

from __future__ import annotations

import argparse

import torch
from alignment import draw, prompts
from animal_classifier import load_classifier
from rich.console import Console
from rich.table import Table
from torch import Tensor

from dagflow import config, recipe
from dagflow.prompt_sources import animals
from dagflow_rewards import jpeg_incompressibility

BETAS = (0, 5, 10, 15, 20, 25, 30, 40, 60)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--per-prompt", type=int, default=48)
    parser.add_argument("--guidance", type=float, default=3.0)
    arguments = parser.parse_args()

    tree = recipe.read_recipe(recipe.DEFAULT)
    config.override(tree, [f"rollout.guidance_scale={arguments.guidance}"])
    count = len(animals()) * arguments.per_prompt
    images = draw(config.resolve(tree), None, count)
    size = _by_prompt(jpeg_incompressibility()(images, prompts(count)))
    with torch.no_grad():
        features = torch.cat(
            [load_classifier().features(2 * part - 1) for part in images.split(512)]
        )
    vectors = {"pixels, %": _by_prompt(images), "features, %": _by_prompt(features)}

    table = Table("beta, 1/kB", "change, %", "images", *vectors, box=None)
    for beta in BETAS:
        weights = torch.softmax(-beta * size, 0)
        change = 100 * (float((weights * size).sum(0).mean() / size.mean()) - 1)
        left = float((1 / (weights**2).sum(0)).mean())
        kept = [
            100 * distance(v, weights) / distance(v, torch.ones_like(size))
            for v in vectors.values()
        ]
        table.add_row(str(beta), f"{change:+.1f}", f"{left:.1f}", *(f"{k:.0f}" for k in kept))
    Console(width=100).print(table)


def _by_prompt(values: Tensor) -> Tensor:
    """(N, P, ...) from (N * P, ...): image i is for prompt i modulo P."""
    return values.unflatten(0, (-1, len(animals())))


def distance(vectors: Tensor, weights: Tensor) -> float:
    """Mean root-mean-square distance of two different images of one prompt, drawn by weights."""
    means = []
    for prompt in range(weights.shape[1]):
        flat = vectors[:, prompt].flatten(1)
        apart = torch.cdist(flat, flat) / flat.shape[1] ** 0.5
        pairs = weights[:, prompt, None] * weights[None, :, prompt]
        pairs.fill_diagonal_(0)
        means.append((apart * pairs).sum() / pairs.sum())
    return float(torch.stack(means).mean())


if __name__ == "__main__":
    main()
