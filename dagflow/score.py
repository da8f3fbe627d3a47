"""Scores of picture files, for people who never train."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from dagflow.engine.pictures import upright
from dagflow.engine.scoring import WeightedReward, ask
from dagflow.errors import UserError
from dagflow.types import Prompt

Item = tuple[Path, str, Tensor]

DEEP = {"I;16", "I;16B", "I;16L"}  # 16-bit grey

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Scored:
    """A picture, the prompt that it was scored with, and each reward's raw score."""

    path: Path
    prompt: str
    scores: dict[str, float]


def find_pictures(patterns: Iterable[str]) -> list[Path]:
    """The picture files that paths, folders (without subfolders) and patterns name, each once.

    Raises UserError for one that names no picture, or that is not a valid pattern.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        try:
            here = sorted(_matching(Path(pattern))) if pattern else []
        except ValueError as error:
            raise UserError(f"'{pattern}' is not a pattern: {error}.") from None
        if not here:
            raise UserError(f"'{pattern}' names no picture ({', '.join(sorted(SUFFIXES))}).")
        found |= dict.fromkeys(here)
    return list(found)


def prompt_beside(picture: Path) -> str | None:
    """The text in the .txt file of the same name, or None. Raises UserError if it is not text."""
    beside = picture.with_suffix(".txt")
    try:
        return beside.read_text(encoding="utf-8-sig").strip() if beside.is_file() else None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"'{beside}' cannot be read as text: {error}.") from None


def score_files(
    rewards: Sequence[WeightedReward],
    pictures: Sequence[tuple[Path, str]],
    batch_size: int,
    device: torch.device,
    unreadable: list[str],
) -> Iterator[Scored]:
    """Score pictures with their prompts, neighbours of one size together.

    Transparency is dropped, as in the original rewards; EXIF orientation is applied. A file that
    cannot be read is skipped, and the reason goes into `unreadable`. Raises what `ask` raises.
    """
    for _, group in groupby(_readable(pictures, unreadable), key=lambda item: item[2].shape):
        for batch in _batches(group, batch_size):
            images = torch.stack([image for _, _, image in batch]).to(device)
            raw = ask(rewards, images, [Prompt(text) for _, text, _ in batch])()
            for (path, text, _), column in zip(batch, raw.T.tolist(), strict=True):
                labels = (item.label for item in rewards)
                yield Scored(path, text, dict(zip(labels, column, strict=True)))


def _matching(path: Path) -> Iterator[Path]:
    if path.is_file():
        return iter([path])
    root = Path(path.anchor)
    found = path.iterdir() if path.is_dir() else root.glob(str(path.relative_to(root)))
    return (each for each in found if each.suffix.lower() in SUFFIXES and each.is_file())


def _readable(pictures: Iterable[tuple[Path, str]], unreadable: list[str]) -> Iterator[Item]:
    for path, text in pictures:
        try:
            yield path, text, _read(path)
        except Exception as error:  # whatever Pillow stumbled over
            unreadable.append(f"'{path}' cannot be read as a picture: {str(error).rstrip('.')}.")


def _read(path: Path) -> Tensor:
    """(3, height, width), float32 in [0, 1]."""
    with Image.open(path) as picture:
        if picture.mode in ("I", "F"):
            raise ValueError(f"nothing says which of its values is white (mode {picture.mode})")
        if picture.mode in DEEP:
            grey = torch.from_numpy(np.asarray(picture).astype(np.float32) / (2**16 - 1))
            return grey.expand(3, -1, -1)
        pixels: Tensor = pil_to_tensor(upright(picture))
    normalised: Tensor = pixels.float().div(255)
    return normalised


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
