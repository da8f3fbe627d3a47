"""Rewards of picture files, for people who never train."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2.functional import pil_to_tensor

from dagflow.engine.scoring import WeightedReward, ask
from dagflow.errors import UserError
from dagflow.types import Prompt

Item = tuple[Path, str, Tensor]

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


@dataclass(frozen=True)
class Scored:
    """A picture, the text that it was scored with, and each reward's raw score."""

    path: Path
    prompt: str
    scores: dict[str, float]


def find_pictures(patterns: Iterable[str]) -> list[Path]:
    """The picture files that paths, folders (not those within) and patterns name, each once.

    Raises UserError for one that names none.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        here = sorted(_matching(Path(pattern)))
        if not here:
            raise UserError(f"'{pattern}' names no picture ({', '.join(sorted(SUFFIXES))}).")
        found |= dict.fromkeys(here)
    return list(found)


def prompt_beside(picture: Path) -> str | None:
    """The text in the .txt file of the same name, or None."""
    beside = picture.with_suffix(".txt")
    return beside.read_text(encoding="utf-8-sig").strip() if beside.is_file() else None


def score_files(
    rewards: Sequence[WeightedReward],
    pictures: Sequence[tuple[Path, str]],
    batch_size: int,
    device: torch.device,
    advance: Callable[[int], None],
) -> Iterator[Scored]:
    """Score pictures with their prompts, neighbours of one size together.

    Transparency is dropped, as the originals of the rewards do. Raises UserError for a file that
    is no picture, and what `ask` raises.
    """
    read = ((path, text, _read(path)) for path, text in pictures)
    for _, group in groupby(read, key=lambda item: item[2].shape):
        for batch in _batches(group, batch_size):
            images = torch.stack([image for _, _, image in batch]).to(device)
            raw = ask(rewards, images, [Prompt(text) for _, text, _ in batch])()
            for (path, text, _), column in zip(batch, raw.T.tolist(), strict=True):
                labels = (item.label for item in rewards)
                yield Scored(path, text, dict(zip(labels, column, strict=True)))
            advance(len(batch))


def _matching(path: Path) -> Iterator[Path]:
    if path.is_file():
        return iter([path])
    if path.is_dir():
        return (each for each in path.iterdir() if each.suffix.lower() in SUFFIXES)
    root = Path(path.anchor)
    pattern = path.relative_to(root)
    return (each for each in root.glob(str(pattern)) if each.suffix.lower() in SUFFIXES)


def _read(path: Path) -> Tensor:
    try:
        with Image.open(path) as picture:
            pixels: Tensor = pil_to_tensor(picture.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise UserError(f"'{path}' cannot be read as a picture: {error}.") from None
    return pixels.float().div(255)


def _batches(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch
