"""Images as the published models expect them: (B, 3, size, size), normalised like CLIP's.

`exact` quantises to 8 bits and, in `fill_square`, resizes with Pillow, as the originals do when
they read a picture file. Without it everything stays on the device, in float32, differentiable.
"""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
BICUBIC = InterpolationMode.BICUBIC


def fill_square(images: Tensor, size: int, exact: bool = False) -> Tensor:
    """Resize the shortest side to `size`, crop the longest: CLIP, PickScore, ImageReward.

    images: (B, 3, height, width) in [0, 1].
    """
    if exact:
        square = torch.stack([_fill_with_pillow(image, size) for image in _bytes(images)])
        return _normalised(square.to(images.device))
    resized = F.resize(images, [size], BICUBIC, antialias=True)
    return _normalised(F.center_crop(resized, [size, size]).clamp(0, 1))


def fit_square(images: Tensor, size: int, exact: bool = False) -> Tensor:
    """Resize the longest side to `size`, pad with black: HPSv2, which itself resizes tensors.

    images: (B, 3, height, width) in [0, 1].
    """
    if exact:
        images = _bytes(images).float().div(255).to(images.device)
    scale = size / max(images.shape[-2:])
    height, width = (max(1, round(side * scale)) for side in images.shape[-2:])
    if scale != 1:
        images = F.resize(images, [height, width], BICUBIC, antialias=True)
    left, top = (size - width) // 2, (size - height) // 2
    return _normalised(F.pad(images, [left, top, size - width - left, size - height - top]))


def _normalised(images: Tensor) -> Tensor:
    """Like torchvision's `normalize`, which waits for the GPU to copy these six numbers."""
    both = torch.tensor([MEAN, STD], dtype=images.dtype).to(images.device, non_blocking=True)
    mean, std = both[:, :, None, None]
    normalised: Tensor = (images - mean) / std
    return normalised


def _bytes(images: Tensor) -> Tensor:
    """uint8 on the CPU, as in a picture file."""
    return images.detach().mul(255).round().clamp(0, 255).to(torch.uint8).cpu()


def _fill_with_pillow(image: Tensor, size: int) -> Tensor:
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    resized = F.resize(picture, [size], BICUBIC)
    square: Tensor = F.pil_to_tensor(F.center_crop(resized, [size, size]))
    return square.float().div(255)
