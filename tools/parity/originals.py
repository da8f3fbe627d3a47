"""The genuine packages' scores of the cases; run by the environment of `dagflow-originals`.

    python -m tools.parity.originals FOLDER [--full]

writes the random checkpoints and `scores.json` into FOLDER. Without `--full` the models are
scaled down: the same classes and the same code, fewer and narrower layers.
"""

from __future__ import annotations

import importlib.util
import itertools
import json
import shutil
import sys
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import save_file
from tools.parity.cases import pairs, random_state, vocabulary

SMALL_MED = {
    "architectures": ["BertModel"],
    "attention_probs_dropout_prob": 0.1,
    "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1,
    "hidden_size": 128,
    "initializer_range": 0.02,
    "intermediate_size": 256,
    "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512,
    "model_type": "bert",
    "num_attention_heads": 2,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "type_vocab_size": 2,
    "vocab_size": 30524,
    "encoder_width": 128,
    "add_cross_attention": True,
}
FULL_MED = SMALL_MED | {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "encoder_width": 768,
}


def image_reward(folder: Path, full: bool) -> dict[str, object]:
    """image-reward's own ImageReward.score, reading the checkpoint that we read."""
    from ImageReward.models.BLIP import blip_pretrain
    from ImageReward.models.BLIP.vit import VisionTransformer
    from transformers import BertTokenizer

    package = importlib.import_module("ImageReward.ImageReward")  # a class hides the module's name
    (folder / "vocab.txt").write_text("\n".join(vocabulary()), encoding="utf-8")
    (folder / "med.json").write_text(json.dumps(FULL_MED if full else SMALL_MED))
    local = BertTokenizer(str(folder / "vocab.txt"))

    def small_vit(*_: object, **__: object) -> tuple[torch.nn.Module, int]:
        return VisionTransformer(
            img_size=224, patch_size=16, embed_dim=128, depth=2, num_heads=2
        ), 128

    head = package.MLP if full else lambda width: package_head(128)
    package_head = package.MLP
    with (
        mock.patch.object(BertTokenizer, "from_pretrained", return_value=local),
        mock.patch.object(package, "MLP", head),
        mock.patch.object(
            blip_pretrain, "create_vit", blip_pretrain.create_vit if full else small_vit
        ),
    ):
        model = package.ImageReward(str(folder / "med.json"), "cpu").eval()
    state, shapes = _refilled(model)
    torch.save(state, folder / "ImageReward.pt")
    with torch.no_grad():
        scores = [float(model.score(prompt, image)) for image, prompt in pairs()]
    return {"shapes": shapes, "scores": scores}


def hpsv2(folder: Path, full: bool) -> dict[str, object]:
    """hpsv2's own model, transform and tokenizer, as its `score` uses them."""
    add_the_missing_vocabulary()
    from hpsv2.src import open_clip
    from hpsv2.src.open_clip import factory

    small = {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": 224, "layers": 2, "width": 160, "head_width": 80, "patch_size": 14,
        },
        "text_cfg": {
            "context_length": 77, "vocab_size": 49408, "width": 128, "heads": 2, "layers": 2,
        },
    }  # fmt: skip
    configs = factory._MODEL_CONFIGS if full else {"ViT-H-14": small}
    with mock.patch.dict(factory._MODEL_CONFIGS, configs):
        model, _, transform = open_clip.create_model_and_transforms(
            "ViT-H-14",
            None,
            precision="fp32",
            device="cpu",
            light_augmentation=True,
            output_dict=True,
            with_score_predictor=False,
            with_region_predictor=False,
        )
    model.eval()
    tokenizer = open_clip.get_tokenizer("ViT-H-14")
    state, shapes = _refilled(model)
    torch.save({"state_dict": state}, folder / "HPS_v2.1_compressed.pt")
    scores = []
    with torch.no_grad():
        for image, prompt in pairs():
            # the package fails on pictures with an alpha channel: give it what they look like
            outputs = model(transform(image.convert("RGB"))[None], tokenizer([prompt]))
            score = outputs["image_features"] @ outputs["text_features"].T
            scores.append(float(score))
    return {"shapes": shapes, "scores": scores}


def aesthetic(folder: Path, full: bool) -> dict[str, object]:
    """LAION's predictor: openai-clip's transform, as their script has it, on transformers' CLIP."""
    from clip.clip import _transform
    from transformers import CLIPConfig, CLIPModel

    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24}
    vision |= {"num_attention_heads": 16, "patch_size": 14}
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12}
    if not full:
        vision |= {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
        vision |= {"num_attention_heads": 2, "patch_size": 32}
        text = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
        text |= {"num_attention_heads": 2}
    width = 768 if full else 128
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=width)
    model = CLIPModel(config).eval()
    state, shapes = _refilled(model)
    save_file(state, folder / "model.safetensors")
    sizes = (width, 1024, 128, 64, 16, 1)
    layers = [torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes)]
    head = torch.nn.ModuleDict(
        {"layers": torch.nn.ModuleDict(dict(zip("02467", layers, strict=True)))}
    )
    head_state, head_shapes = _refilled(head)
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


def add_the_missing_vocabulary() -> None:
    """hpsv2's wheel lacks a file that it reads at import; openai-clip has the same one."""
    name = "bpe_simple_vocab_16e6.txt.gz"
    [source] = importlib.util.find_spec("clip").submodule_search_locations
    [package] = importlib.util.find_spec("hpsv2").submodule_search_locations
    target = Path(package, "src", "open_clip", name)
    if not target.exists():
        shutil.copyfile(Path(source, name), target)


def _refilled(model: torch.nn.Module) -> tuple[dict[str, torch.Tensor], dict[str, list[int]]]:
    """Fill a model from the seeds; its state, and the shapes of what was filled."""
    own = model.state_dict()
    shapes = {k: list(v.shape) for k, v in own.items() if v.is_floating_point()}
    state = own | random_state(shapes)
    model.load_state_dict(state)
    return state, shapes


def main() -> None:
    folder, full = Path(sys.argv[1]), "--full" in sys.argv
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    sides = {"imagereward": image_reward, "hpsv2": hpsv2, "aesthetic": aesthetic}
    results = {name: score(folder, full) for name, score in sides.items()}
    (folder / "scores.json").write_text(json.dumps(results))
    print(f"wrote     {folder}/scores.json")


if __name__ == "__main__":
    main()
