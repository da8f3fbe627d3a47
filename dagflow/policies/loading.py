"""From the name of a model to a policy in memory."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dagflow.errors import UserError, did_you_mean

if TYPE_CHECKING:
    from dagflow.policies.policy import Policy

EMBEDDED = {"tiny": "models/tiny"}
EMBEDDED_PREVIEWS = {"tiny": "models/tiny_preview"}


def load_policy(
    model: str,
    dtype: str,
    device: torch.device,
    guidance_scale: float,
    preview_decoder: str = "",
    whole: bool = True,
) -> Policy:
    """The policy of `tiny`, `world:NAME`, a pipeline's folder or a hub id, or `ddpm:` and either.

    After `ddpm:` the pipeline is an unconditional one in pixel space, else Stable Diffusion.
    dtype: auto, float32 or bfloat16. `preview_decoder` of Stable Diffusion is an AutoencoderTiny:
    `tiny`, a folder or a hub id. Of a model that is not to be `whole` on the device the UNet stays
    where it was loaded. Raises UserError if the model is none or cannot be had.
    """
    family, colon, name = model.partition(":")
    if preview_decoder and colon and family in ("world", "ddpm"):
        raise UserError(f"model '{model}' has no decoder for rollout.preview_decoder to stand for.")
    if colon and family == "world":
        from dagflow.policies.world import WorldPolicy
        from dagflow.worlds.catalogue import world

        if not whole:
            raise UserError("machine.shard: a world has no network that could be divided.")
        return WorldPolicy(world(name), device)
    if colon and family == "ddpm":
        from dagflow.policies.ddpm import DDPMPolicy

        if not whole:
            raise UserError("machine.shard is for Stable Diffusion models, and not for ddpm: ones.")
        return DDPMPolicy(load_ddpm_pipeline(name, resolve_dtype(dtype, device)), device)
    from dagflow.policies.stable_diffusion import StableDiffusionPolicy

    kind = resolve_dtype(dtype, device)
    preview = load_preview_decoder(preview_decoder, kind) if preview_decoder else None
    pipeline = load_pipeline(model, kind)
    return StableDiffusionPolicy(pipeline, device, guidance_scale, preview, whole)


def default_device() -> torch.device:
    """CUDA if there is one, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("cpu")


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of the frozen network; `auto` is bfloat16 on CUDA and float32 elsewhere.

    bfloat16 on a CPU without the instructions for it is ten times slower than float32.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def load_pipeline(model: str, dtype: torch.dtype) -> Any:
    """A `StableDiffusionPipeline` from the embedded model, a folder or a hub id.

    All modules get one dtype. Raises UserError if it is no such pipeline or cannot be had.
    """
    return _load(
        "StableDiffusionPipeline",
        "Stable Diffusion pipeline",
        model,
        EMBEDDED,
        dtype=dtype,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def load_ddpm_pipeline(model: str, dtype: torch.dtype) -> Any:
    """A `DDPMPipeline` from a folder or a hub id. Raises UserError as `load_pipeline` does."""
    return _load("DDPMPipeline", "DDPM pipeline", model, {}, dtype=dtype)


def load_preview_decoder(model: str, dtype: torch.dtype) -> Any:
    """An `AutoencoderTiny`: the embedded model's, from a folder or a hub id. Raises UserError."""
    return _load("AutoencoderTiny", "preview decoder", model, EMBEDDED_PREVIEWS, torch_dtype=dtype)


def _load(
    class_name: str, kind: str, model: str, embedded: Mapping[str, str], **options: Any
) -> Any:
    """A thing of that class in diffusers, which gets the options; `kind` is it in words."""
    source = _source(model, embedded)
    import diffusers
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        loaded = getattr(diffusers, class_name).from_pretrained(source, **options)
    except Exception as error:  # whatever a folder of somebody else's files can cause
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"'{model}' does not load as a {kind}: {reason}") from error
    if isinstance(loaded, diffusers.DiffusionPipeline):
        loaded.set_progress_bar_config(disable=True)
    return loaded


def source_folder(model: str, embedded: Mapping[str, str]) -> Path | None:
    """The folder of a model that is on this machine; None of one that the hub has."""
    source = Path(_source(model, embedded))
    return source if source.is_dir() else None


def _source(model: str, embedded: Mapping[str, str]) -> str:
    """Where the files are. A path that exists, or looks like one, is never asked of the hub."""
    if model in embedded:
        return str(resources.files("dagflow") / embedded[model])
    path = Path(model)
    if path.is_dir():
        if embedded is not EMBEDDED_PREVIEWS and not (path / "model_index.json").is_file():
            raise UserError(
                f"'{model}' is no diffusers pipeline: the folder has no model_index.json."
            )
        return model
    if path.exists() or model.startswith((".", "/", "~")) or model.count("/") != 1:
        folder = "an AutoencoderTiny" if embedded is EMBEDDED_PREVIEWS else "a diffusers pipeline"
        choices = [*(f"{name} (embedded)" for name in embedded), f"the folder of {folder}"]
        raise UserError(
            f"there is no model '{model}'.{did_you_mean(model, embedded)} "
            f"Give {', '.join(choices)}, or a hub id such as owner/name."
        )
    return model
