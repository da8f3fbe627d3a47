"""Vision models of transformers as spaces in which images are compared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    Dinov2Config,
    Dinov2Model,
)

from dagflow import UserError
from dagflow.measures.features import load_features

CPU = torch.device("cpu")
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 28}


def processor() -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": 28}, crop_size=28, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )


@pytest.fixture
def dino(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    folder = tmp_path / "facebook" / "dinov2-base"
    Dinov2Model(Dinov2Config(**SIZES, patch_size=14)).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    vision = CLIPVisionConfig(**SIZES, patch_size=14, intermediate_size=64)
    text = CLIPTextConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2)
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=24)
    folder = tmp_path / "openai" / "clip-vit-large-patch14"
    CLIPModel(config).save_pretrained(folder)
    processor().save_pretrained(folder)
    return folder


def test_dino_is_what_transformers_says(dino: Path) -> None:
    images = torch.rand(3, 3, 28, 28)
    rows = load_features(str(dino), CPU).rows(images)
    model = Dinov2Model.from_pretrained(dino).eval()
    with torch.no_grad():
        due = model((images - 0.5) / 0.25).pooler_output
    assert rows.shape == (3, 32)
    assert torch.allclose(rows, torch.nn.functional.normalize(due) * 32**0.5, atol=1e-4)
    distances = torch.cdist(rows, rows) / 32**0.5
    cosines = torch.cosine_similarity(due[:, None], due, -1)
    assert torch.allclose(distances**2, 2 - 2 * cosines, atol=1e-4)


def test_clip_is_projected(clip: Path) -> None:
    images = torch.rand(2, 3, 64, 64)
    features = load_features(str(clip), CPU)
    assert features.rows(images).shape == (2, 24)
    assert torch.equal(features.coarse(images), features.rows(images))


def test_known_names_are_found_below_the_users_folder(
    dino: Path, clip: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setenv("DAGFLOW_WEIGHTS", str(tmp_path))
    assert load_features("dino", CPU).rows(torch.rand(1, 3, 28, 28)).shape == (1, 32)
    assert load_features("clip", CPU).rows(torch.rand(1, 3, 28, 28)).shape == (1, 24)


def test_what_is_no_vision_model_is_refused(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (str(tmp_path), "nothing", "./nothing", "dino"):
        with pytest.raises(UserError, match=r"neither pixels nor a vision model"):
            load_features(name, CPU)
