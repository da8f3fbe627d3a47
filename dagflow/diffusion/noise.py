"""Noise that belongs to a trajectory, not to a process.

Each trajectory's noise depends only on (stream, seed, epoch, global index), so that any batch
size, any number of processes and a resumed run draw the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum

import numpy as np
import torch
from torch import Tensor


class Stream(IntEnum):
    """What random numbers are used for; different streams never share numbers."""

    ROLLOUT = 0
    HELD_OUT = 1
    PROMPTS = 2
    TRANSITIONS = 3
    WEIGHTS = 4
    SAMPLE = 5
    REPLAY = 6
    TARGET = 7


def generator(stream: Stream, *key: int) -> torch.Generator:
    """A CPU generator that depends only on the stream and the key."""
    state = np.random.SeedSequence([int(stream), *key]).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state >> np.uint64(1)))


def trajectory_noise(
    stream: Stream, seed: int, epoch: int, indices: Sequence[int], steps: int, shape: Sequence[int]
) -> Tensor:
    """Standard normal noise (B, T+1, C, H, W): the first state, then one draw for each step."""
    return torch.stack(
        [
            torch.randn(steps + 1, *shape, generator=generator(stream, seed, epoch, index))
            for index in indices
        ]
    )
