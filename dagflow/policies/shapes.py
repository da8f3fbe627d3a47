"""A Stable Diffusion pipeline's shapes, without its weights: networks on the meta device."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dagflow.config import Config
from dagflow.counting import Pass, forward_flops, largest_layer_bytes, measure_pass
from dagflow.errors import UserError
from dagflow.policies.loading import EMBEDDED, EMBEDDED_PREVIEWS, source_folder
from dagflow.policies.lora import keep_dtype
from dagflow.types import PolicySpec

TOKENS = 77  # per prompt in Stable Diffusion; no model here has more
SD15 = {  # shapes of stable-diffusion-v1-5 and of every model fine-tuned from it
    "unet": {"sample_size": 64, "cross_attention_dim": 768},
    "vae": {
        "block_out_channels": (128, 256, 512, 512),
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "layers_per_block": 2,
        "sample_size": 512,
    },
    "text_encoder": {
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
    },
}


class Shapes:
    """The networks of a pipeline without their weights, and their cost for one image."""

    def __init__(self, config: Config) -> None:
        """Raises UserError for a model that is not on this machine and whose shapes are unknown."""
        from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
        from peft import LoraConfig
        from transformers import CLIPTextConfig, CLIPTextModel

        tables = _tables(config.model)
        half = config.dtype == "bfloat16" or (config.dtype == "auto" and torch.cuda.is_available())
        self.dtype = torch.bfloat16 if half else torch.float32
        with torch.device("meta"):
            self.unet = UNet2DConditionModel.from_config(tables["unet"])
            self.vae = AutoencoderKL.from_config(tables["vae"])
            text_encoder = CLIPTextModel(CLIPTextConfig.from_dict(tables["text_encoder"]))
            name = config.rollout.preview_decoder
            self.preview = AutoencoderTiny.from_config(_preview_table(name)) if name else None
        networks = [self.unet, self.vae, text_encoder, *([self.preview] if self.preview else [])]
        for network in networks:
            nn.Module.to(network, self.dtype)  # avoids diffusers' warning
        self.frozen_bytes = sum(_bytes(network) for network in networks)
        self.unet.requires_grad_(False)
        lora = LoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            target_modules=list(config.lora.targets),
            init_lora_weights=False,
        )
        try:
            with torch.device("meta"):
                self.unet.add_adapter(lora)
        except ValueError as error:
            raise UserError(f"lora.targets = {list(config.lora.targets)}: {error}") from error
        keep_dtype(self.unet)
        if config.machine.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        trained = [p.numel() for p in self.unet.parameters() if p.requires_grad]
        self.lora_parameters = sum(trained)

    @property
    def spec(self) -> PolicySpec:
        settings = self.unet.config
        size = (settings.sample_size, settings.sample_size)
        return PolicySpec(settings.in_channels, settings.cross_attention_dim, size)

    @property
    def image_size(self) -> int:
        """The side of an image in pixels."""
        return int(self.spec.latent_size[0] * 2 ** (len(self.vae.config.block_out_channels) - 1))

    def guided_pass(self) -> Pass:
        """The cost of both guidance branches for one image."""
        latents = torch.empty(2, *self._latent_shape, device="meta", dtype=self.dtype)
        times = torch.zeros(2, dtype=torch.int64, device="meta")
        width = self.spec.cross_attention_dim
        embeds = torch.empty(2, TOKENS, width, device="meta", dtype=self.dtype)
        return measure_pass(
            self.unet, lambda: self.unet(latents, times, embeds, return_dict=False)[0]
        )

    def decode_flops(self, preview: bool) -> float:
        """FLOPs to decode one image; `preview`: with the preview decoder if there is one."""
        return forward_flops(lambda: self._decoder(preview).decode(self._one_latent()))

    @property
    def decode_bytes(self) -> int:
        """Bytes that one image needs on its way through the VAE's decoder."""
        return largest_layer_bytes(self.vae, lambda: self.vae.decode(self._one_latent()))

    def _decoder(self, preview: bool) -> Any:
        return self.preview if preview and self.preview is not None else self.vae

    def _one_latent(self) -> torch.Tensor:
        return torch.empty(1, *self._latent_shape, device="meta", dtype=self.dtype)

    @property
    def _latent_shape(self) -> tuple[int, int, int]:
        return (self.spec.latent_channels, *self.spec.latent_size)


def _bytes(network: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in network.parameters())


def _tables(model: str) -> dict[str, Any]:
    """The configurations of a pipeline's networks."""
    if model.startswith(("world:", "ddpm:")):
        raise UserError(f"only models like Stable Diffusion v1 can be counted, not '{model}'.")
    folder = source_folder(model, EMBEDDED)
    if folder is not None:
        return {name: _json(folder / name / "config.json") for name in SD15}
    if "stable-diffusion-v1" in model:
        return SD15
    raise UserError(
        f"the shapes of '{model}' are not known here: give the folder of a pipeline, or a model of "
        f"the stable-diffusion-v1 family."
    )


def _preview_table(name: str) -> dict[str, Any]:
    """The configuration of an AutoencoderTiny; if it is not here, the defaults (TAESD's)."""
    folder = source_folder(name, EMBEDDED_PREVIEWS)
    return _json(folder / "config.json") if folder is not None else {}


def _json(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"'{file}' cannot be read: {error}") from error
