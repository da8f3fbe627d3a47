"""ImageReward (Xu et al., NeurIPS 2023): BLIP, reading the prompt while looking at the image."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import BertTokenizer, BlipTextConfig, BlipTextModel, BlipVisionConfig
from transformers import BlipVisionModel as Vision

from dagflow import Prompt, UserError
from dagflow_rewards.published.batches import in_batches
from dagflow_rewards.published.checkpoints import State, layers, load_strictly, read_state, shape
from dagflow_rewards.published.head import Head
from dagflow_rewards.published.preprocess import fill_square

MEAN, STD = 0.16717362830052426, 1.0333394966054072  # of the raw scores, from the authors
TOKENS = 35
VOCABULARY = 30522  # of BERT; BLIP adds [DEC] and [ENC]
HEAD_WIDTH = 64

VISION, TEXT = "blip.visual_encoder.", "blip.text_encoder."
RENAMED = {  # in the vision encoder: BLIP's own names to transformers'
    "patch_embed.proj": "embeddings.patch_embedding",
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "blocks": "encoder.layers",
    ".attn.qkv": ".self_attn.qkv",
    ".attn.proj": ".self_attn.projection",
    ".norm1": ".layer_norm1",
    ".norm2": ".layer_norm2",
    "final_norm": "post_layernorm",
}
UNUSED = ("blip.vision_proj.", "blip.text_proj.", TEXT + "embeddings.position_ids")


class ImageReward(nn.Module):
    """How well an image fits the prompt and people's preferences: mean 0, deviation 1."""

    def __init__(self, network: Network, tokenizer: BertTokenizer, batch_size: int, exact: bool):
        super().__init__()
        self.network, self.tokenizer = network, tokenizer
        self.batch_size, self.exact = batch_size, exact

    def forward(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        return in_batches(self._score, images, prompts, self.batch_size)

    def _score(self, images: Tensor, prompts: Sequence[Prompt]) -> Tensor:
        pixels = fill_square(images, self.network.vision.config.image_size, self.exact)
        tokens = self.tokenizer(
            [prompt.text for prompt in prompts],
            padding="max_length",
            truncation=True,
            max_length=TOKENS,
            return_tensors="pt",
        ).to(images.device, non_blocking=True)
        raw = self.network(pixels, tokens.input_ids, tokens.attention_mask)
        score: Tensor = (raw - MEAN) / STD
        return score


class Network(nn.Module):
    """Image and text encoders, with the head on the first token's features."""

    def __init__(self, vision: BlipVisionConfig, text: BlipTextConfig) -> None:
        super().__init__()
        self.vision = Vision(vision)
        self.text = BlipTextModel(text, add_pooling_layer=False)
        self.head = Head(text.hidden_size)

    def forward(self, pixels: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """pixels: (B, 3, size, size), normalised; the others (B, tokens). Returns (B,), float32."""
        seen = self.vision(pixels.to(self.vision.dtype)).last_hidden_state
        read = self.text(
            input_ids,
            attention_mask=attention_mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones_like(seen[..., 0], dtype=torch.long),
            is_decoder=False,
        ).last_hidden_state
        scores: Tensor = self.head(read[:, 0].float())
        return scores


@functools.cache
def load_network(path: Path, dtype: torch.dtype) -> Network:
    """The network of a checkpoint in the authors' naming, with sizes from its tensors.

    The head stays in float32. A process reads each checkpoint once. Raises UserError.
    """
    state = read_state(path)
    network = Network(_vision(state, path), _text(state, path))
    load_strictly(network, _renamed(state), path)
    network.to(dtype).head.float()
    return network.requires_grad_(False).eval()


def load_tokenizer(path: Path) -> BertTokenizer:
    """BERT's tokenizer with BLIP's two tokens, from its vocab.txt.

    Raises UserError if the vocabulary is not BERT's: another one would silently give wrong scores.
    """
    try:
        words = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not BERT's vocabulary: {error}.") from None
    if len(words) != VOCABULARY:
        raise UserError(f"{path} holds {len(words)} words; BERT's vocabulary has {VOCABULARY}.")
    tokenizer = BertTokenizer({word: index for index, word in enumerate(words)})
    tokenizer.add_special_tokens({"bos_token": "[DEC]", "additional_special_tokens": ["[ENC]"]})
    return tokenizer


def _renamed(state: State) -> State:
    return {_name(key): value for key, value in state.items() if not key.startswith(UNUSED)}


def _name(key: str) -> str:
    if key.startswith(VISION):
        key = key.replace(VISION + "norm", "final_norm").replace(VISION, "")
        for theirs, ours in RENAMED.items():
            key = key.replace(theirs, ours)
        return "vision." + key
    if key.startswith(TEXT):
        return key.replace(TEXT, "text.")
    return key.replace("mlp.", "head.") if key.startswith("mlp.") else key


def _vision(state: State, path: Path) -> BlipVisionConfig:
    width, _, patch, _ = shape(state, VISION + "patch_embed.proj.weight", 4, path)
    places = shape(state, VISION + "pos_embed", 3, path)[1]
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=shape(state, VISION + "blocks.0.mlp.fc1.bias", 1, path)[0],
        num_hidden_layers=layers(state, VISION + "blocks."),
        num_attention_heads=width // HEAD_WIDTH,
        image_size=patch * math.isqrt(places - 1),
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def _text(state: State, path: Path) -> BlipTextConfig:
    vocabulary, width = shape(state, TEXT + "embeddings.word_embeddings.weight", 2, path)
    layer = TEXT + "encoder.layer.0."
    places, _ = shape(state, TEXT + "embeddings.position_embeddings.weight", 2, path)
    return BlipTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        encoder_hidden_size=shape(state, layer + "crossattention.self.key.weight", 2, path)[1],
        intermediate_size=shape(state, layer + "intermediate.dense.bias", 1, path)[0],
        num_hidden_layers=layers(state, TEXT + "encoder.layer."),
        num_attention_heads=width // HEAD_WIDTH,
        max_position_embeddings=places,
        is_decoder=True,  # builds the cross-attention; the forward pass sets is_decoder=False
    )
