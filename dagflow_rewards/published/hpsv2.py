"""Human Preference Score v2 (Wu et al., 2023): a CLIP ViT-H/14 trained on people's choices."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from open_clip import CLIP, SimpleTokenizer
from torch import Tensor, nn

from dagflow import Prompt
from dagflow_rewards.published.batches import in_batches
from dagflow_rewards.published.checkpoints import State, layers, load_strictly, read_state, shape
from dagflow_rewards.published.preprocess import fit_square


class HpsV2(nn.Module):
    """The cosine of image and text features, about 0.2 to 0.35 for generated images."""

    def __init__(self, model: CLIP, batch_size: int, exact: bool) -> None:
        super().__init__()
        self.model, self.batch_size, self.exact = model, batch_size, exact
        self.tokenizer = SimpleTokenizer()

    def forward(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return in_batches(self._score, images, prompts, self.batch_size)

    def _score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        (size, _), dtype = self.model.visual.image_size, self.model.text_projection.dtype
        pixels = fit_square(images, size, self.exact).to(dtype)
        tokens = self.tokenizer([prompt.text for prompt in prompts])
        tokens = tokens.to(images.device, non_blocking=True)
        features = self.model.encode_image(pixels), self.model.encode_text(tokens)
        image, text = (nn.functional.normalize(each.float(), dim=-1) for each in features)
        return (image * text).sum(1)


@functools.cache
def load_model(path: Path, dtype: torch.dtype, head_width: int = 80) -> CLIP:
    """The model of a checkpoint in open_clip's naming, with sizes from its tensors.

    A process reads each checkpoint once. Raises UserError.
    """
    state = read_state(path)
    model = CLIP(**_architecture(state, path, head_width))
    load_strictly(model, state, path)
    return model.to(dtype).requires_grad_(False).eval()


def _architecture(state: State, path: Path, head_width: int) -> dict[str, object]:
    width, _, patch, _ = shape(state, "visual.conv1.weight", 4, path)
    places = shape(state, "visual.positional_embedding", 2, path)[0]
    hidden = shape(state, "visual.transformer.resblocks.0.mlp.c_fc.bias", 1, path)[0]
    vocabulary, text_width = shape(state, "token_embedding.weight", 2, path)
    return {
        "embed_dim": shape(state, "text_projection", 2, path)[1],
        "vision_cfg": {
            "image_size": patch * math.isqrt(places - 1),
            "patch_size": patch,
            "width": width,
            "layers": layers(state, "visual.transformer.resblocks."),
            "head_width": head_width,
            "mlp_ratio": hidden / width,
        },
        "text_cfg": {
            "context_length": shape(state, "positional_embedding", 2, path)[0],
            "vocab_size": vocabulary,
            "width": text_width,
            "heads": text_width // 64,
            "layers": layers(state, "transformer.resblocks."),
        },
    }
