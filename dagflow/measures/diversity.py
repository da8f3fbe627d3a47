"""How different the images of one prompt are, and how far apart two sets of images are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dagflow.types import Prompt

MOST = 64  # images of a prompt that are compared with each other


def groups(prompts: Sequence[Prompt]) -> list[list[int]]:
    """The places of each prompt with two or more images; at most 64 per prompt."""
    places: dict[str, list[int]] = {}
    for k, prompt in enumerate(prompts):
        places.setdefault(prompt.text, []).append(k)
    return [rows[:MOST] for rows in places.values() if len(rows) > 1]


def distance(rows: Tensor, prompts: Sequence[Prompt]) -> float | None:
    """Mean root-mean-square difference between two images of one prompt, in features (N, F).

    None if no prompt has two images.
    """
    scale = rows.shape[1] ** 0.5
    found = [torch.pdist(rows[places]) / scale for places in groups(prompts)]
    return float(torch.cat(found).mean()) if found else None


def vendi(rows: Tensor, prompts: Sequence[Prompt]) -> float | None:
    """Mean Vendi score of the images of a prompt, from features (N, F): 1 if all are alike.

    The exponential of the entropy of the eigenvalues of K / n, with K the n x n correlations of
    feature rows (Friedman and Dieng, "The Vendi Score", TMLR 2023, definition 3.1); at most n, here
    at most 64. None if no prompt has two images.
    """
    scores = [_vendi(rows[places].double()) for places in groups(prompts)]
    return sum(scores) / len(scores) if scores else None


def _vendi(rows: Tensor) -> float:
    centred = rows - rows.mean(1, keepdim=True)
    unit = nn.functional.normalize(centred, dim=1)
    values = torch.linalg.eigvalsh(unit @ unit.T / len(unit)).clamp(min=0)
    values = values / values.sum().clamp(min=1e-12)  # a blank image correlates with nothing
    return float(torch.exp(-(values * values.clamp(min=1e-12).log()).sum()))


def from_base(base: Tensor, now: Tensor) -> dict[str, float]:
    """Frechet and kernel distance (polynomial, unbiased) of two sets of coarse features (N, F).

    torchmetrics computes both (FID, KID), but in these features. With few images the Frechet
    distance is too large (Binkowski et al., "Demystifying MMD GANs", ICLR 2018); the kernel
    distance is not, and may fall below 0. Empty for fewer than three images.
    """
    if len(base) < 3:
        return {}
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    as_they_are = nn.Identity()
    as_they_are.num_features = base.shape[1]  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it keeps all features, which is intended
        alone: dict[str, Any] = {"sync_on_compute": False}  # one process has all, the others wait
        frechet = FrechetInceptionDistance(feature=as_they_are, **alone)
        kernel = KernelInceptionDistance(
            feature=as_they_are, subsets=1, subset_size=len(base), **alone
        )
    for metric in (frechet, kernel):
        metric.update(base.double(), real=True)
        metric.update(now.double(), real=False)
    with torch.random.fork_rng(devices=[]):  # KID draws its one subset, which is all images
        return {"fid": float(frechet.compute()), "kid": float(kernel.compute()[0])}
