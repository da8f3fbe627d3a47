"""Stable Diffusion (UNet2DConditionModel, AutoencoderKL, CLIP text encoder) as a policy."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dagflow.config import LoraTable
from dagflow.diffusion import path as gaussian
from dagflow.diffusion.path import GaussianPath, State
from dagflow.errors import UserError
from dagflow.policies.lora import keep_dtype, seed_lora
from dagflow.policies.policy import Prediction
from dagflow.types import PolicySpec

ADAPTER = "default"
CACHED_TEXTS = 1024


def _speaks_of_the_unet(record: logging.LogRecord) -> bool:
    """Drop the line in which diffusers says that a LoRA has nothing for the text encoder."""
    return not record.getMessage().startswith("No LoRA keys associated to CLIPTextModel")


class StableDiffusionPolicy:
    """A frozen pipeline, and a trained LoRA on its UNet."""

    WEIGHTS_FILE = "pytorch_lora_weights.safetensors"

    def __init__(
        self,
        pipeline: Any,
        device: torch.device,
        guidance_scale: float,
        preview_decoder: Any | None = None,
        whole: bool = True,
    ) -> None:
        """`preview_decoder`: an AutoencoderTiny; if not `whole`, the UNet stays where it is.

        Raises UserError for parts that do not fit together.
        """
        _check(pipeline, preview_decoder)
        self.pipeline = pipeline
        for part in [pipeline] if whole else [pipeline.vae, pipeline.text_encoder]:
            part.to(device)
        self.device = device
        self.guidance_scale = guidance_scale
        self._is_base = False
        self.prediction_type: str = pipeline.scheduler.config.prediction_type
        self._preview_decoder = preview_decoder.to(device) if preview_decoder else None
        for module in (pipeline.unet, pipeline.vae, pipeline.text_encoder, self._preview_decoder):
            if module is not None:
                module.requires_grad_(False).eval()
        self._embeds: dict[str, Tensor] = {}
        self._negative_prompt_embeds = self.encode([""])

    @property
    def unet(self) -> Any:
        return self.pipeline.unet

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the frozen UNet."""
        return self.unet.dtype  # type: ignore[no-any-return]

    def networks(self) -> dict[str, nn.Module]:
        found = {"unet": self.unet, "vae": self.pipeline.vae}
        preview = self._preview_decoder
        return found if preview is None else {**found, "preview_decoder": preview}

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        size = self.unet.config.sample_size
        return (self.unet.config.in_channels, size, size)

    @property
    def spec(self) -> PolicySpec:
        channels, height, width = self.latent_shape
        return PolicySpec(channels, self.unet.config.cross_attention_dim, (height, width))

    def scheduler(self) -> Any:
        """diffusers' DDIMScheduler of this model; a path has its states and steps at eta = 1."""
        from diffusers import DDIMScheduler

        config = self.pipeline.scheduler.config
        return DDIMScheduler.from_config(config, clip_sample=False, thresholding=False)

    def path(self, num_inference_steps: int) -> GaussianPath:
        """The states of diffusers' DDIMScheduler with that many steps.

        A last step without noise has no density (set_alpha_to_one = True); the state before it is
        then the terminal one. Raises UserError if no step with a density remains.
        """
        trained = self.pipeline.scheduler.config.num_train_timesteps
        if num_inference_steps >= trained:
            raise UserError(
                f"{num_inference_steps} inference steps are too many: the model was trained with "
                f"{trained}, and a sampler can take at most {trained - 1}."
            )
        scheduler = self.scheduler()
        scheduler.set_timesteps(num_inference_steps)
        stride = scheduler.config.num_train_timesteps // num_inference_steps
        times = scheduler.timesteps.tolist()
        last = times[-1] - stride
        products = [float(scheduler.alphas_cumprod[t]) for t in times]
        end = scheduler.alphas_cumprod[last] if last >= 0 else scheduler.final_alpha_cumprod
        alpha_squared = torch.tensor([*products, float(end)], dtype=torch.float64)
        timesteps = torch.tensor([*times, max(last, 0)])
        noiseless_end = bool(alpha_squared[-1] >= 1)
        kept = slice(0, -1 if noiseless_end else None)
        if noiseless_end and num_inference_steps < 2:
            raise UserError(
                "this model's scheduler needs rollout.num_inference_steps to be at least 2."
            )
        if self.prediction_type == "epsilon" and not alpha_squared[0] > 0:
            raise UserError(
                "the first state is pure noise (alpha = 0), and a prediction of that noise says "
                "nothing about the image: set rescale_betas_zero_snr = false, or "
                "timestep_spacing = 'leading', in the model's scheduler_config.json."
            )
        if not (alpha_squared[kept].diff() > 0).all():
            raise UserError(
                "with these settings the model's scheduler visits one noise level twice; "
                "use another number of inference steps."
            )
        return GaussianPath(
            alpha_squared[kept].sqrt(),
            (1 - alpha_squared[kept]).sqrt(),
            timesteps[kept],
            noiseless_end,
        )

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """prompt_embeds (B, L, E) in the network's dtype; each text is encoded once, on its own.

        So its embedding does not depend on the rest of the batch, nor on earlier batches.
        """
        for text in dict.fromkeys(texts):
            if text not in self._embeds:
                self._embeds[text] = self.pipeline.encode_prompt([text], self.device, 1, False)[0]
        found = torch.cat([self._embeds[text] for text in texts]).to(self.dtype)
        for oldest in list(self._embeds)[:-CACHED_TEXTS]:
            del self._embeds[oldest]
        return found

    def predict(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Prediction:
        """Both branches of classifier-free guidance in one pass.

        latents (B, C, H, W) float32, timesteps (B,) int64, prompt_embeds (B, L, E).
        """
        negative = self._negative_prompt_embeds.expand(len(latents), -1, -1)
        output = self._network(
            torch.cat([latents, latents]),
            torch.cat([timesteps, timesteps]),
            torch.cat([negative, prompt_embeds]),
        )
        unconditional, text = output.chunk(2)
        return Prediction(unconditional + self.guidance_scale * (text - unconditional), text)

    def predict_text(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The text branch alone, float32 (B, C, H, W)."""
        return self._network(latents, timesteps, prompt_embeds)

    def _network(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        latents = latents.to(self.unet.dtype)
        output = self.unet(latents, timesteps, prompt_embeds, return_dict=False)[0]
        return output.float()  # type: ignore[no-any-return]

    def predicted_x0(self, state: State, latents: Tensor, output: Tensor) -> Tensor:
        """x0hat (B, C, H, W) from the network's output."""
        return gaussian.predicted_x0(state, latents, output, self.prediction_type)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images float32 (B, 3, height, width) in [0, 1] from latents (B, C, H, W)."""
        return self._decoded(self.pipeline.vae, latents)

    @torch.no_grad()
    def preview(self, latents: Tensor) -> Tensor:
        """The same with the preview decoder, if there is one."""
        return self._decoded(self._preview_decoder or self.pipeline.vae, latents)

    def _decoded(self, vae: Any, latents: Tensor) -> Tensor:
        output = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
        return (output.float() / 2 + 0.5).clamp(0, 1)  # type: ignore[no-any-return]

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Latents float32 (B, C, H, W), the VAE's means, from images (B, 3, height, width)."""
        vae = self.pipeline.vae
        moments = vae.encode((2 * images - 1).to(vae.dtype)).latent_dist
        return (moments.mean * vae.config.scaling_factor).float()  # type: ignore[no-any-return]

    def add_weights(self, lora: LoraTable, seed: int) -> None:
        """Add a fresh float32 LoRA to the UNet; it changes nothing until it is trained.

        Raises UserError if no layer has one of the target names.
        """
        from peft import LoraConfig

        settings = LoraConfig(
            r=lora.rank,
            lora_alpha=lora.alpha,
            target_modules=list(lora.targets),
            init_lora_weights="gaussian",
        )
        try:
            self.unet.add_adapter(settings, adapter_name=ADAPTER)
        except ValueError as error:
            raise UserError(f"lora.targets = {list(lora.targets)}: {error}") from error
        seed_lora(self.unet, lora.rank, seed)
        keep_dtype(self.unet)

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters: the LoRA's matrices."""
        return [parameter for parameter in self.unet.parameters() if parameter.requires_grad]

    def weights(self) -> dict[str, Tensor]:
        """The LoRA's matrices by name, on the CPU."""
        from peft.utils import get_peft_model_state_dict

        state = get_peft_model_state_dict(self.unet, adapter_name=ADAPTER)
        plain = torch.contiguous_format  # whatever the network's memory format
        return {
            name: tensor.detach().cpu().clone(memory_format=plain) for name, tensor in state.items()
        }

    def set_weights(self, state: dict[str, Tensor]) -> None:
        """Restore what `weights` returned."""
        from peft.utils import set_peft_model_state_dict

        set_peft_model_state_dict(self.unet, state, adapter_name=ADAPTER)

    def save_weights(self, folder: Path) -> None:
        """Write pytorch_lora_weights.safetensors for diffusers' `load_lora_weights`."""
        type(self.pipeline).save_lora_weights(
            folder,
            unet_lora_layers=self.weights(),
            unet_lora_adapter_metadata=self.unet.peft_config[ADAPTER].to_dict(),
        )

    def read_weights(self, folder: Path) -> dict[str, Tensor]:
        """The matrices in a folder that `save_weights` wrote."""
        return {
            name.removeprefix("unet."): tensor
            for name, tensor in load_file(folder / self.WEIGHTS_FILE).items()
            if name.startswith("unet.")
        }

    def load_weights(self, folder: Path) -> None:
        """Load what `save_weights` wrote, with diffusers' own reader.

        Raises UserError if the folder holds no LoRA for this network.
        """
        warns = logging.getLogger("diffusers.loaders.lora_base")
        warns.addFilter(_speaks_of_the_unet)
        try:
            self.pipeline.load_lora_weights(folder, adapter_name=ADAPTER)
        except (OSError, ValueError, LookupError, TypeError, RuntimeError) as error:
            raise UserError(f"'{folder}' holds no LoRA for this model: {error}") from error
        finally:
            warns.removeFilter(_speaks_of_the_unet)
        if not getattr(self.unet, "peft_config", None):
            raise UserError(f"the LoRA in '{folder}' fits no layer of this model's UNet.")

    @contextmanager
    def base(self) -> Iterator[None]:
        """Inside this context the network is the frozen base model, without the LoRA."""
        adapted = bool(getattr(self.unet, "peft_config", None)) and not self._is_base
        if adapted:
            self.unet.disable_adapters()
            self._is_base = True
        try:
            yield
        finally:
            if adapted:
                self.unet.enable_adapters()
                self._is_base = False


def _check(pipeline: Any, preview_decoder: Any | None) -> None:
    """Raise UserError for a pipeline that loads but is not supported, or a decoder that misfits."""
    unet, vae, text = pipeline.unet.config, pipeline.vae.config, pipeline.text_encoder.config
    known = ("epsilon", "v_prediction", "sample")
    reasons = {
        "its UNet takes more than the VAE's latents": unet.in_channels != vae.latent_channels,
        "its UNet does not attend to this text encoder": unet.cross_attention_dim
        != text.hidden_size,
        "its UNet needs more than a prompt": unet.addition_embed_type is not None,
        f"its scheduler predicts none of {', '.join(known)}": pipeline.scheduler.config.get(
            "prediction_type"
        )
        not in known,
    }
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise UserError(f"this pipeline is not like Stable Diffusion v1: {found[0]}.")
    if preview_decoder is None:
        return
    enlarges = 2 ** (len(preview_decoder.config.decoder_block_out_channels) - 1)
    factor = 2 ** (len(vae.block_out_channels) - 1)
    if (preview_decoder.config.latent_channels, enlarges) != (vae.latent_channels, factor):
        raise UserError(
            f"the preview decoder takes latents of {preview_decoder.config.latent_channels} "
            f"channels and enlarges them {enlarges} times; the model's VAE takes "
            f"{vae.latent_channels} and enlarges them {factor} times."
        )
