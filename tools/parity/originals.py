"""The genuine packages' scores of the cases; run in the environment of `dagflow-originals`.

    python -m tools.parity.originals FOLDER [--full]

writes random checkpoints under the published names and `scores.json` into FOLDER. Without `--full`
the models are scaled down: the same classes and the same code, fewer and narrower layers.
"""

from __future__ import annotations

import contextlib
import importlib
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import torch
from dagflow_originals import (
    HpsV2Original,
    ImageRewardOriginal,
    _add_the_missing_vocabulary,
    bert_vocabulary,
)
from safetensors.torch import save_file

from tools.parity.cases import pairs, random_state, vocabulary

Shapes = dict[str, list[int]]

MED = {
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "type_vocab_size": 2,
    "vocab_size": 30524,
    "add_cross_attention": True,
}
SMALL_MED = {"hidden_size": 128, "intermediate_size": 256}
SMALL_MED |= {"num_attention_heads": 2, "num_hidden_layers": 2}
FULL_MED = {"hidden_size": 768, "intermediate_size": 3072}
FULL_MED |= {"num_attention_heads": 12, "num_hidden_layers": 12}
SMALL_HPS = {
    "embed_dim": 128,
    "vision_cfg": {
        "image_size": 224, "layers": 2, "width": 160, "head_width": 80, "patch_size": 14,
    },
    "text_cfg": {
        "context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2,
    },
}  # fmt: skip


def image_reward(folder: Path, full: bool) -> dict[str, object]:
    """image-reward's `load` and `score`."""
    package = importlib.import_module("ImageReward.ImageReward")  # a class hides the module
    (folder / "vocab.txt").write_text("\n".join(vocabulary()), encoding="utf-8")
    config = MED | (FULL_MED if full else SMALL_MED)
    (folder / "med_config.json").write_text(json.dumps(config))
    with (
        bert_vocabulary(folder / "vocab.txt"),
        contextlib.nullcontext() if full else _small_image_reward(package),
    ):
        state, shapes = _refilled(package.ImageReward(str(folder / "med_config.json")))
        torch.save(state, folder / "ImageReward.pt")
        reward = ImageRewardOriginal(str(folder))
    with torch.no_grad():
        scores = [reward.score(image, prompt) for image, prompt in pairs()]
    return {"shapes": shapes, "scores": scores}


def hpsv2(folder: Path, full: bool) -> dict[str, object]:
    """hpsv2's model, transform and tokenizer."""
    _add_the_missing_vocabulary()
    from hpsv2.src.open_clip import create_model, factory

    configs = {} if full else {"ViT-H-14": SMALL_HPS}
    with mock.patch.dict(factory._MODEL_CONFIGS, configs):
        state, shapes = _refilled(create_model("ViT-H-14", None))
        torch.save({"state_dict": state}, folder / "HPS_v2.1_compressed.pt")
        reward = HpsV2Original("v2.1", str(folder))
    return {"shapes": shapes, "scores": [reward.score(image, text) for image, text in pairs()]}


def aesthetic(folder: Path, full: bool) -> dict[str, object]:
    """LAION's predictor: openai-clip's transform, as in their script, on transformers' CLIP."""
    from clip.clip import _transform
    from transformers import CLIPConfig, CLIPModel

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vision |= {"num_attention_heads": 16, "patch_size": 14}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    if not full:
        small = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
        small |= {"num_attention_heads": 2}
        vision, text = vision | small | {"patch_size": 32}, text | small
    width = 768 if full else 128
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=width)
    model = CLIPModel(config).eval()
    state, shapes = _refilled(model)
    save_file(state, folder / "model.safetensors")
    sizes = (width, 1024, 128, 64, 16, 1)
    layers = [torch.nn.Linear(before, after) for before, after in itertools.pairwise(sizes)]
    numbered = torch.nn.ModuleDict(dict(zip("02467", layers, strict=True)))
    head_state, head_shapes = _refilled(torch.nn.ModuleDict({"layers": numbered}))
    torch.save(head_state, folder / "sac+logos+ava1-l14-linearMSE.pth")
    transform, scores = _transform(224), []
    with torch.no_grad():
        for image, _ in pairs():
            features = model.get_image_features(transform(image)[None])
            features = features / features.norm(dim=-1, keepdim=True)
            for layer in layers:
                features = layer(features)
            scores.append(float(features))
    return {"shapes": shapes, "head_shapes": head_shapes, "scores": scores}


@contextlib.contextmanager
def _small_image_reward(package: object) -> Iterator[None]:
    """Narrower layers, because the package builds only its own sizes."""
    from ImageReward.models.BLIP import blip_pretrain
    from ImageReward.models.BLIP.vit import VisionTransformer

    vit = VisionTransformer(img_size=224, patch_size=16, embed_dim=128, depth=2, num_heads=2)
    head = package.MLP(128)  # type: ignore[attr-defined]
    with (
        mock.patch.object(blip_pretrain, "create_vit", return_value=(vit, 128)),
        mock.patch.object(package, "MLP", return_value=head),
    ):
        yield


def _refilled(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], Shapes]:
    """Fill a model from the seeds; returns its state, and the shapes of what was filled."""
    own = model.state_dict()
    shapes = {key: list(value.shape) for key, value in own.items() if value.is_floating_point()}
    state = own | random_state(shapes)
    model.load_state_dict(state)
    return state, shapes


def main() -> None:
    folder, full = Path(sys.argv[1]), "--full" in sys.argv
    folder.mkdir(parents=True, exist_ok=True)
    sides = {"imagereward": image_reward, "hpsv2": hpsv2, "aesthetic": aesthetic}
    results = {name: score(folder, full) for name, score in sides.items()}
    (folder / "scores.json").write_text(json.dumps(results))
    print(f"wrote     {folder}/scores.json")


if __name__ == "__main__":
    main()
