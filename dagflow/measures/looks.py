"""What an image looks like, in numbers that need no model and no reward.

Each takes images (N, 3, height, width), float in [0, 1], and returns (N,).
"""

from __future__ import annotations

import io
from collections.abc import Callable

import torch
from torch import Tensor

from dagflow.engine.pictures import to_pil

LEVELS = 8  # of each channel, in the histogram of colours
EDGE = 0.1  # change of luminance from one pixel to the next that counts as an edge
QUALITY = 95  # of the JPEG file
SMALLEST = 1e-3  # least deviation to divide by, so that tiny changes never look large


def luminance(images: Tensor) -> Tensor:
    """Luminance (N, height, width) in [0, 1], with the weights of Rec. 709."""
    weights = torch.tensor([0.2126, 0.7152, 0.0722], device=images.device)
    return (images * weights.view(3, 1, 1)).sum(1)


def brightness(images: Tensor) -> Tensor:
    """Mean luminance, 0 to 1."""
    return luminance(images).mean((1, 2))


def saturation(images: Tensor) -> Tensor:
    """Mean saturation of HSV, 0 (grey) to 1."""
    highest, lowest = images.amax(1), images.amin(1)
    return ((highest - lowest) / highest.clamp(min=1e-6)).mean((1, 2))


def colour_entropy(images: Tensor) -> Tensor:
    """Entropy in bits of a histogram of 512 colours: 0 (one colour) to 9."""
    levels = (images * LEVELS).long().clamp(0, LEVELS - 1)
    colours = (levels[:, 0] * LEVELS + levels[:, 1]) * LEVELS + levels[:, 2]
    counts = torch.stack([torch.bincount(c.flatten(), minlength=LEVELS**3) for c in colours])
    shares = counts / counts.sum(1, keepdim=True)
    entropy: Tensor = -(shares * shares.clamp(min=1e-12).log2()).sum(1)
    return entropy


def edge_density(images: Tensor) -> Tensor:
    """Share of pixels at which luminance changes by more than 0.1 a pixel (Sobel), 0 to 1."""
    across = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]], device=images.device) / 8
    kernels = torch.stack([across, across.T])[:, None]
    padded = torch.nn.functional.pad(luminance(images)[:, None], (1, 1, 1, 1), mode="replicate")
    slope: Tensor = torch.nn.functional.conv2d(padded, kernels).norm(dim=1)
    return (slope > EDGE).float().mean((1, 2))


def jpeg_kb(images: Tensor) -> Tensor:
    """Size of the JPEG file of quality 95, in units of 1000 bytes."""
    sizes = []
    for image in images:
        file = io.BytesIO()
        to_pil(image).save(file, "JPEG", quality=QUALITY)
        sizes.append(len(file.getvalue()) / 1000)
    return torch.tensor(sizes)


LOOKS: dict[str, Callable[[Tensor], Tensor]] = {
    look.__name__: look for look in (brightness, saturation, colour_entropy, edge_density, jpeg_kb)
}


def looks(images: Tensor) -> dict[str, Tensor]:
    """All of them by name, (N,) each, on the CPU; one channel counts as a grey image."""
    if images.shape[1] == 1:
        images = images.expand(-1, 3, -1, -1)
    return {name: look(images.float()).cpu() for name, look in LOOKS.items()}


def shift(base: Tensor, now: Tensor) -> float:
    """Mean change of (N,) paired values, in standard deviations of the base model's values.

    Zero for a single pair, whose deviation nobody knows.
    """
    if len(base) < 2:
        return 0.0
    deviation = float(base.double().std())
    return float((now.double() - base.double()).mean()) / max(deviation, SMALLEST)
