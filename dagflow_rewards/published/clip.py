"""CLIP from transformers: aesthetic, clip-score and pickscore use its features."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from open_clip import SimpleTokenizer
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from dagflow import Prompt, UserError
from dagflow_rewards.published.checkpoints import State, layers, load_strictly, read_state, shape
from dagflow_rewards.published.preprocess import fill_square

VISION, TEXT = "vision_model.", "text_model."
HEAD_WIDTHS = {1024: 64, 1280: 80}  # by the width of a published vision model: ViT-L, ViT-H


class Clip(nn.Module):
    """Unit-length features of images and texts."""

    def __init__(self, model: CLIPModel, exact: bool) -> None:
        super().__init__()
        self.model, self.exact = model, exact
        self.size: int = model.config.vision_config.image_size
        self.tokenizer = SimpleTokenizer()

    def images(self, images: Tensor) -> Tensor:
        """(B, 3, height, width) in [0, 1] -> float32 (B, E)."""
        pixels = fill_square(images, self.size, self.exact)
        pixels = pixels.to(self.model.visual_projection.weight.dtype)
        features: Tensor = self.model.get_image_features(pixels).pooler_output
        return nn.functional.normalize(features.float(), dim=-1)

    def texts(self, prompts: Sequence[Prompt]) -> Tensor:
        """B prompts, cut to 77 tokens -> float32 (B, E)."""
        tokens = self.tokenizer([prompt.text for prompt in prompts])
        tokens = tokens.to(self.model.device, non_blocking=True)
        features: Tensor = self.model.get_text_features(tokens).pooler_output
        return nn.functional.normalize(features.float(), dim=-1)


@functools.cache
def load_clip(
    path: Path, dtype: torch.dtype, head_width: int = 64, quick_gelu: bool = True
) -> CLIPModel:
    """The model of a checkpoint in transformers' naming, with sizes from its tensors.

    `head_width` is that of the vision model's attention: 64, or 80 in ViT-H/14. The logit scale
    stays in float32. A process reads each checkpoint once. Raises UserError.
    """
    state = read_state(path)
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    model = CLIPModel(_config(state, path, head_width, quick_gelu))
    load_strictly(model, state, path)
    model.to(dtype).logit_scale.data = state["logit_scale"].float()
    return model.requires_grad_(False).eval()


def _config(state: State, path: Path, head_width: int, quick_gelu: bool) -> CLIPConfig:
    patch = shape(state, VISION + "embeddings.patch_embedding.weight", 4, path)[-1]
    places = shape(state, VISION + "embeddings.position_embedding.weight", 2, path)[0]
    projection, vision_width = shape(state, "visual_projection.weight", 2, path)
    vocabulary, text_width = shape(state, TEXT + "embeddings.token_embedding.weight", 2, path)
    tokens = shape(state, TEXT + "embeddings.position_embedding.weight", 2, path)[0]
    if HEAD_WIDTHS.get(vision_width, head_width) != head_width:
        raise UserError(f"{path} is not the expected CLIP: it is {vision_width} wide.")
    activation = "quick_gelu" if quick_gelu else "gelu"
    vision = {
        "hidden_size": vision_width,
        "intermediate_size": shape(state, VISION + "encoder.layers.0.mlp.fc1.bias", 1, path)[0],
        "num_hidden_layers": layers(state, VISION + "encoder.layers."),
        "num_attention_heads": vision_width // head_width,
        "image_size": patch * math.isqrt(places - 1),
        "patch_size": patch,
        "hidden_act": activation,
    }
    text = {
        "vocab_size": vocabulary,
        "hidden_size": text_width,
        "intermediate_size": shape(state, TEXT + "encoder.layers.0.mlp.fc1.bias", 1, path)[0],
        "num_hidden_layers": layers(state, TEXT + "encoder.layers."),
        "num_attention_heads": text_width // 64,
        "max_position_embeddings": tokens,
        "hidden_act": activation,
        "eos_token_id": 2,  # as in CLIP's own files: selects the highest token, the end
    }
    return CLIPConfig(vision_config=vision, text_config=text, projection_dim=projection)
