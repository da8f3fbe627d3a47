"""Unconditional diffusion in pixel space (UNet2DModel, DDPM) as a policy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dagflow.config import LoraTable
from dagflow.diffusion import path as gaussian
from dagflow.diffusion.path import GaussianPath, State
from dagflow.errors import UserError
from dagflow.policies.lora import keep_dtype, seed_lora
from dagflow.policies.unconditional import WIDTH, Unconditional
from dagflow.types import PolicySpec

ADAPTER = "default"
METADATA = "lora"  # key in the weights file: the LoraTable that they belong to


class DDPMPolicy(Unconditional):
    """A frozen `DDPMPipeline`, and a trained LoRA on its UNet. States are pixels.

    Steps have DDPM's smaller variance (`fixed_small`), whatever the scheduler's `variance_type`.
    """

    WEIGHTS_FILE = "pytorch_lora_weights.safetensors"

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        """Raises UserError for a pipeline that loads but is not supported."""
        from diffusers import DDPMScheduler

        _check(pipeline)
        self.device = device
        self.unet = pipeline.unet.to(device).requires_grad_(False).eval()
        self.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)
        self._lora: LoraTable | None = None
        self._is_base = False

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the frozen UNet."""
        return self.unet.dtype  # type: ignore[no-any-return]

    def networks(self) -> dict[str, nn.Module]:
        return {"unet": self.unet}

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the pictures themselves."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return (self.unet.config.in_channels, height, width)

    @property
    def spec(self) -> PolicySpec:
        channels, height, width = self.latent_shape
        return PolicySpec(channels, WIDTH, (height, width))

    def path(self, num_inference_steps: int) -> GaussianPath:
        """The T states of diffusers' DDPMScheduler with T steps.

        Its last step, without noise, has no density; the state before it is the terminal one.
        Raises UserError if no step with a density remains, or the scheduler has no such states.
        """
        if num_inference_steps < 2:
            raise UserError(
                "this model's scheduler needs rollout.num_inference_steps to be at least 2."
            )
        trained = self.scheduler.config.num_train_timesteps
        if num_inference_steps > trained:
            raise UserError(
                f"{num_inference_steps} inference steps are too many: the model was trained with "
                f"{trained}."
            )
        self.scheduler.set_timesteps(num_inference_steps)
        timesteps = self.scheduler.timesteps
        if timesteps.max() >= trained:
            raise UserError(
                f"with {num_inference_steps} inference steps the model's scheduler begins before "
                f"the first of the {trained} that it was trained with; use fewer."
            )
        alpha_squared = self.scheduler.alphas_cumprod.double()[timesteps]
        levels = torch.cat([alpha_squared, torch.ones(1, dtype=torch.float64)])
        if not (levels.diff() > 0).all():
            raise UserError(
                "with these settings the model's scheduler visits one noise level twice; "
                "use another number of inference steps."
            )
        return GaussianPath(
            alpha_squared.sqrt(), (1 - alpha_squared).sqrt(), timesteps, noiseless_end=True
        )

    def predict_text(self, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
        """The network's output, float32 (B, C, H, W); `prompt_embeds` are ignored."""
        output = self.unet(latents.to(self.unet.dtype), timesteps, return_dict=False)[0]
        return output.float()  # type: ignore[no-any-return]

    def predicted_x0(self, state: State, latents: Tensor, output: Tensor) -> Tensor:
        """x0hat (B, C, H, W) from the network's output, clipped if the scheduler clips it."""
        config = self.scheduler.config
        x0 = gaussian.predicted_x0(state, latents, output, config.prediction_type)
        limit = config.clip_sample_range
        return x0.clamp(-limit, limit) if config.clip_sample else x0

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images float32 (B, 3, H, W) in [0, 1] from pixels (B, C, H, W) in [-1, 1]."""
        images = (latents.float() / 2 + 0.5).clamp(0, 1)
        return images.repeat(1, 3 // images.shape[1], 1, 1)

    @torch.no_grad()
    def encode_images(self, images: Tensor) -> Tensor:
        """Pixels (B, C, H, W) in [-1, 1] from images (B, 3, H, W); C = 1 takes the channel mean."""
        pixels = 2 * images.float() - 1
        return pixels.mean(1, keepdim=True) if self.unet.config.in_channels == 1 else pixels

    def add_weights(self, lora: LoraTable, seed: int) -> None:
        """Add a fresh float32 LoRA to the UNet; it changes nothing until it is trained.

        Raises UserError if no layer has one of the target names.
        """
        from peft import LoraConfig, inject_adapter_in_model

        settings = LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.targets))
        try:
            inject_adapter_in_model(settings, self.unet, ADAPTER)
        except ValueError as error:
            raise UserError(f"lora.targets = {list(lora.targets)}: {error}") from error
        self._lora = lora
        seed_lora(self.unet, lora.rank, seed)
        keep_dtype(self.unet)

    def parameters(self) -> list[nn.Parameter]:
        """The trained parameters: the LoRA's matrices."""
        return [parameter for parameter in self.unet.parameters() if parameter.requires_grad]

    def weights(self) -> dict[str, Tensor]:
        """The LoRA's matrices by name, on the CPU."""
        from peft.utils import get_peft_model_state_dict

        if not self._lora:
            return {}
        state = get_peft_model_state_dict(self.unet, adapter_name=ADAPTER)
        plain = torch.contiguous_format  # whatever the network's memory format
        return {
            name: tensor.detach().cpu().clone(memory_format=plain) for name, tensor in state.items()
        }

    def set_weights(self, state: dict[str, Tensor]) -> None:
        """Restore what `weights` returned. Raises ValueError for anything else."""
        from peft.utils import set_peft_model_state_dict

        given, due = (
            {(name, *tensor.shape) for name, tensor in matrices.items()}
            for matrices in (state, self.weights())
        )
        if odd := sorted(given ^ due):
            name, *shape = odd[0]
            raise ValueError(f"{len(odd)} matrices too many or too few, such as {name} {shape}")
        if self._lora:
            set_peft_model_state_dict(self.unet, state, adapter_name=ADAPTER)

    def save_weights(self, folder: Path) -> None:
        """Write the matrices under peft's names, with the table `lora` as metadata."""
        metadata = {METADATA: self._lora.model_dump_json()} if self._lora else None
        save_file(self.weights(), folder / self.WEIGHTS_FILE, metadata)

    def read_weights(self, folder: Path) -> dict[str, Tensor]:
        """The matrices in a folder that `save_weights` wrote."""
        return load_file(folder / self.WEIGHTS_FILE)

    def load_weights(self, folder: Path) -> None:
        """Add the LoRA that `save_weights` wrote to the UNet.

        Raises UserError if the folder holds no LoRA for this network.
        """
        try:
            self.add_weights(_saved_table(folder / self.WEIGHTS_FILE), 0)
            self.set_weights(self.read_weights(folder))
        except (OSError, ValueError, SafetensorError, UserError) as error:
            raise UserError(f"'{folder}' holds no LoRA for this model: {error}") from error

    @contextmanager
    def base(self) -> Iterator[None]:
        """Inside this context the network is the frozen base model, without the LoRA."""
        before, self._is_base = self._is_base, True
        self._enable(False)
        try:
            yield
        finally:
            self._is_base = before
            self._enable(not before)

    def _enable(self, enabled: bool) -> None:
        from peft.tuners.tuners_utils import BaseTunerLayer

        for module in self.unet.modules():
            if isinstance(module, BaseTunerLayer):
                module.enable_adapters(enabled)


def _saved_table(file: Path) -> LoraTable:
    """The `LoraTable` in a weights file. Raises ValueError if the file has none."""
    with safe_open(file, "pt") as opened:
        saved = (opened.metadata() or {}).get(METADATA)
    if saved is None:
        raise ValueError(f"{file.name} does not say which layers it adapts")
    return LoraTable.model_validate_json(saved)


def _check(pipeline: Any) -> None:
    """Raise UserError for a pipeline that loads but is not supported."""
    from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel

    unet, scheduler = pipeline.unet.config, pipeline.scheduler.config
    predicts, known = scheduler.get("prediction_type"), ("epsilon", "v_prediction", "sample")
    reasons = {
        "its network is not a UNet2DModel": not isinstance(pipeline.unet, UNet2DModel),
        "its scheduler is neither DDPMScheduler nor DDIMScheduler": not isinstance(
            pipeline.scheduler, DDPMScheduler | DDIMScheduler
        ),
        "its variance is learned": unet.get("out_channels") != unet.get("in_channels")
        or scheduler.get("variance_type") in ("learned", "learned_range"),
        "its pictures have neither 1 nor 3 channels": unet.get("in_channels") not in (1, 3),
        "its UNet does not say how large its pictures are": unet.get("sample_size") is None,
        "its UNet needs a class": unet.get("class_embed_type") is not None
        or unet.get("num_class_embeds") is not None,
        f"its scheduler predicts none of {', '.join(known)}": predicts not in known,
        "its scheduler has thresholding = true": bool(scheduler.get("thresholding")),
        "it predicts the noise at a first state that is pure noise": bool(
            scheduler.get("rescale_betas_zero_snr") and predicts == "epsilon"
        ),
    }
    found = [reason for reason, applies in reasons.items() if applies]
    if found:
        raise UserError(f"this pipeline is not a supported unconditional DDPM: {found[0]}.")
