from __future__ import annotations

import torch

from dagflow.diffusion.noise import Stream, trajectory_noise


def draw(indices: list[int], epoch: int = 3, seed: int = 1, stream: Stream = Stream.ROLLOUT):
    return trajectory_noise(stream, seed, epoch, indices, 5, (2, 4, 4))


def test_noise_belongs_to_the_trajectory_and_not_to_its_batch() -> None:
    together = draw([0, 1, 2, 3])
    assert torch.equal(together[[2, 0]], draw([2, 0]))


def test_every_part_of_the_key_matters() -> None:
    reference = draw([0])
    others = [draw([1]), draw([0], epoch=4), draw([0], seed=2), draw([0], stream=Stream.HELD_OUT)]
    for other in others:
        assert not torch.equal(reference, other)
    assert not torch.equal(reference[:, 0], reference[:, 1])


def test_noise_is_standard_normal() -> None:
    noise = draw(list(range(200)))
    assert abs(float(noise.mean())) < 0.02
    assert abs(float(noise.std()) - 1) < 0.02
