"""First-party rewards, which use only dagflow's public API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt

from dagflow import Reward, RewardFactory, hookimpl, locate, reads
from dagflow_rewards.published.files import (
    AESTHETIC_HEAD,
    BERT_VOCABULARY,
    CLIP,
    HPSV2,
    IMAGE_REWARD,
    PICK_SCORE,
)

if TYPE_CHECKING:
    import torch

Dtype = Literal["float32", "bfloat16", "float16"]


def jpeg_incompressibility(quality: int = 95) -> Reward:
    """Size of the image as a JPEG file, in kB."""
    from dagflow_rewards.jpeg import JpegSize

    return JpegSize(quality, sign=1)


def jpeg_compressibility(quality: int = 95) -> Reward:
    """Minus the size of the image as a JPEG file, in kB."""
    from dagflow_rewards.jpeg import JpegSize

    return JpegSize(quality, sign=-1)


@reads(CLIP, AESTHETIC_HEAD)
def aesthetic(
    weights: str = "", dtype: Dtype = "float32", batch_size: PositiveInt = 16, exact: bool = False
) -> Reward:
    """LAION's aesthetic score, about 1 to 10; ignores the prompt."""
    from dagflow_rewards.published.aesthetic import Aesthetic, load_head
    from dagflow_rewards.published.clip import Clip, load_clip

    clip = load_clip(locate(CLIP, weights), _precision(dtype))
    head = load_head(locate(AESTHETIC_HEAD, weights), clip.config.projection_dim)
    return Aesthetic(Clip(clip, exact), head, batch_size)


@reads(CLIP)
def clip_score(
    weights: str = "", dtype: Dtype = "float32", batch_size: PositiveInt = 16, exact: bool = False
) -> Reward:
    """Cosine similarity of image and prompt in CLIP ViT-L/14's features, -1 to 1."""
    from dagflow_rewards.published.clip import Clip, load_clip
    from dagflow_rewards.published.clip_score import ClipScore

    clip = load_clip(locate(CLIP, weights), _precision(dtype))
    return ClipScore(Clip(clip, exact), batch_size)


@reads(PICK_SCORE)
def pickscore(
    weights: str = "", dtype: Dtype = "float32", batch_size: PositiveInt = 16, exact: bool = False
) -> Reward:
    """PickScore: which image people would pick, about 15 to 25."""
    from dagflow_rewards.published.clip import Clip, load_clip
    from dagflow_rewards.published.clip_score import ClipScore

    path = locate(PICK_SCORE, weights)
    clip = load_clip(path, _precision(dtype), head_width=80, quick_gelu=False)
    return ClipScore(Clip(clip, exact), batch_size, scale=float(clip.logit_scale.float().exp()))


@reads(IMAGE_REWARD, BERT_VOCABULARY)
def imagereward(
    weights: str = "", dtype: Dtype = "float32", batch_size: PositiveInt = 16, exact: bool = False
) -> Reward:
    """ImageReward: human preference and fit to the prompt, mean 0, deviation 1."""
    from dagflow_rewards.published.image_reward import ImageReward, load_network, load_tokenizer

    tokenizer = load_tokenizer(locate(BERT_VOCABULARY, weights))
    network = load_network(locate(IMAGE_REWARD, weights), _precision(dtype))
    return ImageReward(network, tokenizer, batch_size, exact)


@reads(*HPSV2.values())
def hpsv2(
    version: Literal["v2.0", "v2.1"] = "v2.1",
    weights: str = "",
    dtype: Dtype = "float32",
    batch_size: PositiveInt = 16,
    exact: bool = False,
) -> Reward:
    """Human Preference Score v2, about 0.2 to 0.35."""
    from dagflow_rewards.published.hpsv2 import HpsV2, load_model

    model = load_model(locate(HPSV2[version], weights), _precision(dtype))
    return HpsV2(model, batch_size, exact)


def _precision(dtype: Dtype) -> torch.dtype:
    import torch

    precision: torch.dtype = getattr(torch, dtype)
    return precision


@hookimpl
def dagflow_register_rewards() -> Mapping[str, RewardFactory]:
    return {
        "aesthetic": aesthetic,
        "clip-score": clip_score,
        "hpsv2": hpsv2,
        "imagereward": imagereward,
        "jpeg-compressibility": jpeg_compressibility,
        "jpeg-incompressibility": jpeg_incompressibility,
        "pickscore": pickscore,
    }
