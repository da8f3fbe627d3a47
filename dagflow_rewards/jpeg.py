"""How well an image compresses (Black et al., "Training Diffusion Models with RL", section 4.1)."""

from __future__ import annotations

import io
from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from dagflow import Prompt, UserError


class JpegSize:
    """sign * size in kB (1,000 bytes) of each image as a JPEG of the given quality.

    Raises UserError for a quality outside 1 to 95 (Pillow's range).
    """

    concurrency = 2  # Pillow compresses outside Python, so sampling need not wait

    def __init__(self, quality: int, sign: int) -> None:
        if not 1 <= quality <= 95:
            raise UserError(f"quality = {quality}: JPEG quality goes from 1 to 95.")
        self.quality, self.sign = quality, sign

    def __call__(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        pixels = (images * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()
        sizes = [self._kilobytes(Image.fromarray(array)) for array in pixels.numpy()]
        return self.sign * torch.tensor(sizes, dtype=torch.float32, device=images.device)

    def _kilobytes(self, image: Image.Image) -> float:
        buffer = io.BytesIO()
        image.save(buffer, format="JPEG", quality=self.quality)
        return buffer.tell() / 1000
