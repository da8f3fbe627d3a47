"""How different the images of one prompt are, and how far apart two sets of images are."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dagflow.types import Prompt

MOST = 64  # images of a prompt that are compared with each other
ROWS = 20  # of a kernel matrix, in memory at once


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

    FID and KID, but in these features. With few images the Frechet distance is too large (Binkowski
    et al., "Demystifying MMD GANs", ICLR 2018); the kernel distance is not, and may fall below 0.
    Empty for fewer than three images.
    """
    if len(base) < 3:
        return {}
    from torchmetrics.image.fid import FrechetInceptionDistance

    as_they_are = nn.Identity()
    as_they_are.num_features = base.shape[1]  # type: ignore[assignment]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it warns that it keeps all features, which is intended
        frechet = FrechetInceptionDistance(  # one process has all images, the others wait
            feature=as_they_are, sync_on_compute=False
        )
    x, y = base.double(), now.double()
    frechet.update(x, real=True)
    frechet.update(y, real=False)
    kernel = _within(x) + _within(y) - 2 * _kernel_sum(x, y) / (len(x) * len(y))
    return {"fid": float(frechet.compute()), "kid": kernel}


def _within(x: Tensor) -> float:
    """Mean kernel of two different rows."""
    itself = (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
    return (_kernel_sum(x, x) - float(itself)) / (len(x) * (len(x) - 1))


def _kernel_sum(x: Tensor, y: Tensor) -> float:
    """Sum of (a . b / F + 1)^3 over all rows a of x (N, F) and b of y (M, F).

    KID's kernel (Binkowski et al., section 4), a block of rows at a time: torchmetrics holds
    matrices of N x N in memory, which for the images of a world is more than machines have.
    """
    total = 0.0
    for part in (x / x.shape[1]).split(ROWS):
        kernel = (part @ y.T).add_(1)
        total += float((kernel * kernel).mul_(kernel).sum())
    return total
