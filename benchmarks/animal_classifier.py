"""A 45-class animal classifier for the pictures of the embedded tiny model.

Benchmarks use it to measure whether aligned pictures still show the animal of their prompt. It was
trained by ``tools/tiny_model/train_classifier.py`` on rendered emoji only, never on samples.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

WEIGHTS = Path(__file__).with_suffix(".safetensors")
ANIMALS: tuple[str, ...] = (
    "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer",
    "cow", "goat", "lion", "tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle",
    "ant", "butterfly", "fish", "shark", "whale", "dolphin", "squirrel", "mouse", "rat", "snake",
    "turtle", "frog", "chicken", "duck", "goose", "bee", "pig", "turkey", "fly", "llama",
    "camel", "bat", "gorilla", "hedgehog", "kangaroo",
)  # fmt: skip


class AnimalClassifier(nn.Module):
    """Four strided convolution blocks and a linear head; takes (B, 3, 32, 32) in [0, 1]."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 72, 96)) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        previous = 3
        for width in widths:
            blocks += [
                nn.Conv2d(previous, width, 3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
            ]
            previous = width
        self.features = nn.Sequential(*blocks)
        self.head = nn.Linear(previous * 4, len(ANIMALS))

    def forward(self, images: Tensor) -> Tensor:
        """Return logits of shape (B, 45)."""
        return self.head(self.features(images * 2 - 1).flatten(1))


def load_classifier(weights: Path = WEIGHTS) -> nn.Module:
    """Load the trained classifier in evaluation mode, in fp32."""
    model = AnimalClassifier()
    model.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    return model.eval().requires_grad_(False)


@torch.no_grad()
def predict(images: Tensor, classifier: nn.Module | None = None) -> Tensor:
    """Return the index into `ANIMALS` for each float32 picture of shape (3, 32, 32) in [0, 1]."""
    return (classifier or load_classifier())(images).argmax(1)
