"""The models for the speed benchmarks, and the options for their sizes."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from workload import FLOW_CHANNELS, configuration

from dagflow.config import Config
from dagflow.policies.loading import load_pipeline
from dagflow.policies.shapes import SD15

SD15_FLOW_CHANNELS = (64, 128, 256, 256)  # the paper's


@dataclass(frozen=True)
class Model:
    title: str
    name: str
    """As dagflow's `--model` accepts it."""
    preview_decoder: str = "tiny"
    flow_channels: tuple[int, ...] = FLOW_CHANNELS

    def configuration(self, options: argparse.Namespace, **tables: Mapping[str, Any]) -> Config:
        """A configuration for epochs of `options` on this model; tables as in a recipe."""
        size = (options.samples, options.steps, options.chunk)
        config = configuration(*size, flow_channels=self.flow_channels, **tables)
        return config.model_copy(update={"model": self.name})


def arguments(**defaults: int) -> argparse.ArgumentParser:
    """The parser of scripts that time epochs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="tiny", help="tiny, sd15, or a pipeline's folder")
    for name, value in {"samples": 16, "steps": 20, "rounds": 3, "chunk": 64, **defaults}.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    return parser


def model(name: str, folder: Path) -> Model:
    """`sd15`: SD v1.5's shapes and a preview decoder of TAESD's shapes, with random weights."""
    if name != "sd15":
        return Model(name, name)
    torch.manual_seed(0)
    AutoencoderTiny().save_pretrained(folder / "preview")
    title, path = "SD v1.5's shapes, random weights", str(random_sd15(folder / "sd15"))
    return Model(title, path, str(folder / "preview"), SD15_FLOW_CHANNELS)


def models(name: str, folder: Path) -> list[Model]:
    """The model of that name; for `tiny` also one with a decoder as costly as SD v1.5's."""
    chosen = [model(name, folder)]
    if name == "tiny":
        costly = str(with_costly_decoder(folder / "costly"))
        chosen.append(Model("a decoder as costly as SD v1.5's", costly))
    return chosen


def with_costly_decoder(folder: Path) -> Path:
    """The embedded pipeline with a random VAE whose decoder costs about 3.5 UNet forwards."""
    pipeline = load_pipeline("tiny", torch.float32)
    torch.manual_seed(0)
    pipeline.vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(112, 112),
        latent_channels=4,
        norm_num_groups=8,
        sample_size=32,
    )
    pipeline.save_pretrained(folder)
    return folder


def random_sd15(folder: Path) -> Path:
    """The embedded pipeline's classes in SD v1.5's shapes, with random weights in bfloat16."""
    pipeline = load_pipeline("tiny", torch.float32)
    torch.manual_seed(0)
    for name, table in SD15.items():
        old = getattr(pipeline, name)
        if name == "text_encoder":
            changed = type(old.config).from_dict({**old.config.to_dict(), **table})
            network = type(old)(changed)
        else:
            known = {k: v for k, v in old.config.items() if not k.startswith("_")}
            network = type(old).from_config({**(known if name == "vae" else {}), **table})
        torch.nn.Module.to(network, torch.bfloat16)  # avoids diffusers' warning
        setattr(pipeline, name, network)
    pipeline.save_pretrained(folder)
    return folder
