"""The genuine image-reward and hpsv2 packages as rewards, for their own environment."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

import dagflow

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

HPSV2_FILES = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}
HPSV2_REVISION = "697403c78157020a1ae59d23f111aa58ced35b0a"
HPSV2_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"


class ImageRewardOriginal:
    """image-reward's own model and score."""

    def __init__(self, weights: str = "") -> None:
        """`weights`: a folder with ImageReward.pt, med_config.json and BERT's vocab.txt.

        Default: from the hub.
        """
        from ImageReward.utils import load

        folder = Path(weights)
        if weights:
            with bert_vocabulary(folder / "vocab.txt"):
                config = str(folder / "med_config.json")
                self.model = load(str(folder / "ImageReward.pt"), med_config=config)
        else:
            self.model = load()

    def __call__(self, images: Tensor, prompts: Sequence[dagflow.Prompt]) -> Tensor:
        return _each(self.score, images, prompts)

    def score(self, picture: Image.Image, text: str) -> float:
        return float(self.model.score(text, picture))


class HpsV2Original:
    """hpsv2's own model, transform and tokenizer, as its `score` uses them, but loaded once."""

    def __init__(self, version: str = "v2.1", weights: str = "") -> None:
        """`version`: v2.0 or v2.1; `weights`: a folder with its file. Default: from the hub."""
        _add_the_missing_vocabulary()
        import torch
        from hpsv2.src.open_clip import create_model_and_transforms, get_tokenizer

        if version not in HPSV2_FILES:
            raise dagflow.UserError(f"version = '{version}': there are {', '.join(HPSV2_FILES)}.")
        name = HPSV2_FILES[version]
        path = Path(weights, name) if weights else _fetched(name)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model, _, self.transform = create_model_and_transforms(
            "ViT-H-14",
            None,
            precision="amp",
            device=device,
            light_augmentation=True,
            output_dict=True,
            with_score_predictor=False,
            with_region_predictor=False,
        )
        checkpoint = torch.load(path, map_location=device, weights_only=True)
        self.model.load_state_dict(checkpoint["state_dict"])
        self.model.eval()
        self.tokenizer, self.device = get_tokenizer("ViT-H-14"), device

    def __call__(self, images: Tensor, prompts: Sequence[dagflow.Prompt]) -> Tensor:
        return _each(self.score, images, prompts)

    def score(self, picture: Image.Image, text: str) -> float:
        import torch

        # the package fails on an alpha channel, so convert such a picture to RGB
        pixels = self.transform(picture.convert("RGB"))[None].to(self.device)
        with torch.no_grad(), torch.autocast("cuda", enabled=self.device == "cuda"):
            outputs = self.model(pixels, self.tokenizer([text]).to(self.device))
            return float(outputs["image_features"] @ outputs["text_features"].T)


@contextlib.contextmanager
def bert_vocabulary(file: Path) -> Iterator[None]:
    """The package asks the hub for BERT's tokenizer by name: give it the one in this file."""
    from transformers import BertTokenizer

    tokenizer = BertTokenizer(str(file))
    with mock.patch.object(BertTokenizer, "from_pretrained", return_value=tokenizer):
        yield


@dagflow.hookimpl
def dagflow_register_rewards() -> Mapping[str, Callable[..., Any]]:
    return {"imagereward-original": ImageRewardOriginal, "hpsv2-original": HpsV2Original}


def _each(
    score: Callable[[Image.Image, str], float],
    images: Tensor,
    prompts: Sequence[dagflow.Prompt],
) -> Tensor:
    import torch
    from torchvision.transforms.functional import to_pil_image

    pictures = [to_pil_image(image) for image in images.mul(255).round().clamp(0, 255).byte().cpu()]
    scores = [score(each, prompt.text) for each, prompt in zip(pictures, prompts, strict=True)]
    return torch.tensor(scores, dtype=torch.float32, device=images.device)


def _add_the_missing_vocabulary() -> None:
    """hpsv2's wheel lacks a file that it reads on import; openai-clip has the same file."""
    clip, hpsv2 = (Path(str(find_spec(name).origin)).parent for name in ("clip", "hpsv2"))
    target = hpsv2 / "src" / "open_clip" / HPSV2_VOCABULARY
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=target.parent) as folder:
            copy = shutil.copyfile(clip / HPSV2_VOCABULARY, Path(folder, HPSV2_VOCABULARY))
            os.replace(copy, target)  # two servers may start at once


def _fetched(name: str) -> str:
    from huggingface_hub import hf_hub_download

    path: str = hf_hub_download("xswu/HPSv2", name, revision=HPSV2_REVISION)
    return path
