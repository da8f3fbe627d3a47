from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from dagflow import Prompt, UserError
from dagflow_rewards import jpeg_compressibility, jpeg_incompressibility


def images() -> torch.Tensor:
    source = torch.Generator().manual_seed(0)
    flat = torch.full((3, 32, 32), 0.5)
    return torch.stack([flat, torch.rand(3, 32, 32, generator=source)])


def test_incompressibility_is_the_size_of_the_file_in_kilobytes() -> None:
    scores = jpeg_incompressibility()(images(), [Prompt("a")] * 2)
    pixels = (images()[1] * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=95)
    assert scores.dtype == torch.float32
    assert float(scores[1]) == pytest.approx(len(buffer.getvalue()) / 1000)
    assert scores[0] < scores[1]


def test_compressibility_is_its_opposite() -> None:
    prompts = [Prompt("a")] * 2
    up, down = jpeg_incompressibility(quality=80), jpeg_compressibility(quality=80)
    assert torch.equal(up(images(), prompts), -down(images(), prompts))


def test_images_are_not_modified() -> None:
    given = images()
    jpeg_compressibility()(given, [Prompt("a")] * 2)
    assert torch.equal(given, images())


def test_quality_out_of_range_is_refused() -> None:
    with pytest.raises(UserError, match="quality = 0: JPEG quality goes from 1 to 95"):
        jpeg_compressibility(quality=0)
