"""Looks of images that are known."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from dagflow.measures.looks import LOOKS, looks, shift


def flat(red: float, green: float, blue: float, side: int = 16) -> torch.Tensor:
    return torch.tensor([red, green, blue]).view(1, 3, 1, 1).expand(1, 3, side, side)


def halves(side: int = 16) -> torch.Tensor:
    """Black on the left, white on the right."""
    image = torch.zeros(1, 3, side, side)
    image[..., side // 2 :] = 1
    return image


def test_brightness_and_saturation() -> None:
    images = torch.cat([flat(0, 0, 0), flat(1, 1, 1), flat(0, 1, 0), flat(1, 0.5, 0.5)])
    found = looks(images)
    assert found["brightness"].tolist() == pytest.approx([0, 1, 0.7152, 0.6063], abs=1e-6)
    assert found["saturation"].tolist() == pytest.approx([0, 0, 1, 0.5])


def test_entropy_counts_colours() -> None:
    assert looks(flat(0.3, 0.6, 0.9))["colour_entropy"].item() == pytest.approx(0, abs=1e-6)
    assert looks(halves())["colour_entropy"].item() == pytest.approx(1)
    levels = (torch.arange(8) + 0.5) / 8
    every = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).view(1, 3, 8, 64)
    assert looks(every)["colour_entropy"].item() == pytest.approx(9)


def test_edges_are_where_luminance_changes() -> None:
    """A sharp edge is two pixels wide for a Sobel filter."""
    assert looks(halves())["edge_density"].item() == pytest.approx(2 / 16)
    assert looks(flat(0.2, 0.9, 0.4))["edge_density"].item() == 0
    ramp = torch.linspace(0, 1, 64).expand(1, 3, 64, 64)  # 0.016 a pixel
    assert looks(ramp)["edge_density"].item() == 0


def test_jpeg_size_is_that_of_a_file() -> None:
    images = torch.rand(2, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    sizes = looks(images)["jpeg_kb"]
    for image, size in zip(images, sizes, strict=True):
        file = io.BytesIO()
        pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(file, "JPEG", quality=95)
        assert size.item() == pytest.approx(len(file.getvalue()) / 1000)


def test_one_channel_is_grey() -> None:
    grey = torch.full((2, 1, 8, 8), 0.25)
    assert looks(grey)["brightness"].tolist() == pytest.approx([0.25, 0.25])
    assert looks(grey).keys() == LOOKS.keys()


def test_a_shift_is_in_deviations_of_the_base_models_images() -> None:
    base = torch.tensor([0.0, 1.0, 2.0, 3.0])
    assert shift(base, base + base.std()) == pytest.approx(1)
    assert shift(base, base.flip(0)) == pytest.approx(0)
    assert shift(torch.zeros(4), torch.full((4,), 0.001)) == pytest.approx(1)  # never infinite
