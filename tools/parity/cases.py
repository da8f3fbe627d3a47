"""The input of both sides of the comparison: checkpoints, images and prompts, all from seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

SIZES = [(224, 224), (320, 240), (97, 300), (512, 512)]  # width, height
PROMPTS = [
    "",
    "a cat",
    "a photo of an astronaut riding a horse on mars, " * 12,
    "ein blauer Vogel über dem Fluß, 猫と月 🐈",
]


def images() -> list[Image.Image]:
    """Smooth pictures of several sizes, one of them grey and one with an alpha channel."""
    drawn = [_picture(seed, *size) for seed, size in enumerate(SIZES)]
    grey = _picture(10, 200, 260).convert("L")
    transparent = _picture(11, 240, 200).convert("RGBA")  # opaque, despite its mode
    return [*drawn, grey, transparent]


def pairs() -> list[tuple[Image.Image, str]]:
    """Each image with each prompt."""
    return [(image, prompt) for image in images() for prompt in PROMPTS]


def random_state(shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Tensors of these shapes, as a checkpoint would have them, the same every time.

    Weights have a deviation of 1/sqrt(inputs), so that no layer drowns out another.
    """
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name in sorted(shapes):
        shape = tuple(shapes[name])
        inputs = max(1, torch.Size(shape[1:]).numel())
        spread = 0.3 if len(shape) < 2 else inputs**-0.5
        centre = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0  # a norm's scale
        state[name] = centre + spread * torch.randn(shape, generator=generator)
    return state


def vocabulary() -> list[str]:
    """As many words as BERT's vocabulary has: special tokens, characters, and pieces of words."""
    characters = [chr(code) for code in range(33, 127)] + list("äöüß猫と月")
    words = ["[PAD]", *[f"[unused{i}]" for i in range(99)], "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += characters + [f"##{character}" for character in characters]
    words += [a + b for a in "abcdefghijklmnopqrstuvwxyz" for b in "aeioust"]
    return words + [f"filler{i}" for i in range(30522 - len(words))]


def _picture(seed: int, width: int, height: int) -> Image.Image:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand((8, 8, 3), generator=generator).mul(255).byte().numpy()
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)
