"""The layers that turn features into a score, in LAION's aesthetic predictor and in ImageReward."""

from __future__ import annotations

from torch import Tensor, nn

WIDTHS = (1024, 128, 64, 16, 1)


class Head(nn.Module):
    """Linear layers with nothing in between; identities replace dropout, to keep the numbering."""

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in zip((width, *WIDTHS), WIDTHS, strict=False):
            layers.append(nn.Linear(before, after))
            if after > WIDTHS[-2]:
                layers.append(nn.Identity())
        self.layers = nn.Sequential(*layers)

    def forward(self, features: Tensor) -> Tensor:
        """(B, width) -> (B,)."""
        scores: Tensor = self.layers(features)
        return scores.squeeze(1)
