"""Spaces in which images are compared: pixels, or the features of a vision model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from dagflow.errors import UserError
from dagflow.weights import VARIABLE

KNOWN = {"dino": "facebook/dinov2-base", "clip": "openai/clip-vit-large-patch14"}
SIDE = 64  # larger images are averaged to this many pixels a side
COARSE = 8  # the same for distances between two sets of images
BATCH = 32


class Features(Protocol):
    """From images (N, 3, height, width) in [0, 1] to rows, float32 on the CPU."""

    name: str

    def rows(self, images: Tensor) -> Tensor:
        """(N, F); the distance of two images is the root mean square difference of their rows."""

    def coarse(self, images: Tensor) -> Tensor:
        """(N, F'), few enough numbers to estimate their covariance."""


class Pixels:
    """The images themselves, averaged to 64 x 64 if they are larger: distances from 0 to 1."""

    name = "pixels"

    def rows(self, images: Tensor) -> Tensor:
        return _averaged(images, SIDE)

    def coarse(self, images: Tensor) -> Tensor:
        """8 x 8 averages."""
        return _averaged(images, COARSE)


def _averaged(images: Tensor, side: int) -> Tensor:
    height, width = (min(size, side) for size in images.shape[2:])
    return nn.functional.adaptive_avg_pool2d(images.float(), (height, width)).flatten(1).cpu()


class Network:
    """A vision model of transformers: the distance is sqrt(2 - 2 cos), from 0 to 2."""

    def __init__(self, name: str, model: Any, processor: Any, device: torch.device) -> None:
        self.name, self._processor, self._device = name, processor, device
        self._model = model.to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def rows(self, images: Tensor) -> Tensor:
        vectors: Tensor = torch.cat([self._vectors(part) for part in images.split(BATCH)])
        scaled: Tensor = nn.functional.normalize(vectors, dim=1) * vectors.shape[1] ** 0.5
        return scaled

    def coarse(self, images: Tensor) -> Tensor:
        return self.rows(images)

    def _vectors(self, images: Tensor) -> Tensor:
        inputs = self._processor(images=list(images.cpu()), do_rescale=False, return_tensors="pt")
        pixels = inputs["pixel_values"].to(self._device, self._model.dtype)
        if hasattr(self._model, "get_image_features"):
            output = self._model.get_image_features(pixel_values=pixels)
        else:
            output = self._model(pixel_values=pixels)
        found = getattr(output, "pooler_output", None)
        vectors = output.last_hidden_state[:, 0] if found is None else found
        flat: Tensor = vectors.flatten(1).float().cpu()
        return flat


def load_features(name: str, device: torch.device) -> Features:
    """`pixels`, `dino`, `clip`, or a vision model of transformers in a folder or from the hub.

    A folder named like the hub id below DAGFLOW_WEIGHTS is used before the hub. Raises UserError if
    the model does not load.
    """
    if name == "pixels":
        return Pixels()
    import transformers.utils.logging
    from transformers import AutoImageProcessor, AutoModel

    transformers.utils.logging.disable_progress_bar()
    try:
        place = _place(KNOWN.get(name, name))
        processor = AutoImageProcessor.from_pretrained(place, local_files_only=True)
        model = AutoModel.from_pretrained(place, local_files_only=True)
    except Exception as error:  # many kinds, from three libraries
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        kept = f"{VARIABLE}/{KNOWN.get(name, 'OWNER/NAME')}"
        raise UserError(
            f"evaluate.features = '{name}' is neither pixels nor a vision model that can be loaded "
            f"({reason.rstrip('.')}). Put its files into {kept}, or set it to the model's folder."
        ) from None
    return Network(name, model, processor, device)


def _place(name: str) -> Path:
    """The folder of a model's files, fetched if necessary."""
    from huggingface_hub import snapshot_download

    weights = os.environ.get(VARIABLE)
    for folder in (Path(name), *([Path(weights).expanduser() / name] if weights else [])):
        if folder.is_dir():
            return folder
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise FileNotFoundError("there is no such folder")
    return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
