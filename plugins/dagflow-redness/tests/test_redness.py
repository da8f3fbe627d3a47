from __future__ import annotations

import torch
from redness import Redness

from dagflow.conformance import RewardContract


class TestRedness(RewardContract):
    name = "redness"


def test_red_scores_highest() -> None:
    images = torch.zeros(4, 3, 8, 8)
    for channel in range(3):
        images[channel, channel] = 1
    assert Redness()(images, []).tolist() == [1.0, -0.5, -0.5, 0.0]
