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
    """The policy of `tiny`, `world:NAME`, a pipeline's folder or hub id, or `ddpm:` and either.

    With `ddpm:` the pipeline is an unconditional one in pixel space, otherwise Stable Diffusion.
    dtype: auto, float32 or bfloat16. `preview_decoder`, for Stable Diffusion, is an
    AutoencoderTiny: `tiny`, a folder or a hub id. If not `whole`, the UNet stays where it was
    loaded and is not moved to the device. Raises UserError if there is no such model or it does
    not load.
    """
    family, colon, name = model.partition(":")
    if preview_decoder and colon and family in ("world", "ddpm"):
        raise UserError(f"model '{model}' has no decoder that rollout.preview_decoder can replace.")
    if colon and family == "world":
        from dagflow.policies.world import WorldPolicy
        from dagflow.worlds.catalogue import world

        if not whole:
            raise UserError("machine.shard: a world has no network to shard.")
        return WorldPolicy(world(name), device)
    if colon and family == "ddpm":
        from dagflow.policies.ddpm import DDPMPolicy

        if not whole:
            raise UserError("machine.shard is for Stable Diffusion models, not for ddpm: ones.")
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

    On a CPU without bfloat16 instructions, bfloat16 is ten times slower than float32.
    """
    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


def load_pipeline(model: str, dtype: torch.dtype) -> Any:
    """A `StableDiffusionPipeline` from the embedded model, a folder or a hub id.

    All modules get one dtype. Raises UserError if it is not such a pipeline or does not load.
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
    """An `AutoencoderTiny` for the embedded model, or from a folder or a hub id.

    Raises UserError as `load_pipeline` does.
    """
    return _load("AutoencoderTiny", "preview decoder", model, EMBEDDED_PREVIEWS, torch_dtype=dtype)


def _load(
    class_name: str, kind: str, model: str, embedded: Mapping[str, str], **options: Any
) -> Any:
    """An instance of a diffusers class, loaded with the options; `kind` describes it in words."""
    source = _source(model, embedded)
    import diffusers
    import diffusers.utils.logging
    import transformers.utils.logging

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    try:
        loaded = getattr(diffusers, class_name).from_pretrained(source, **options)
    except Exception as error:  # anything that a folder of foreign files can cause
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"'{model}' does not load as a {kind}: {reason}") from error
    if isinstance(loaded, diffusers.DiffusionPipeline):
        loaded.set_progress_bar_config(disable=True)
    return loaded


def source_folder(model: str, embedded: Mapping[str, str]) -> Path | None:
    """The folder of a model on this machine; None for a model on the hub."""
    source = Path(_source(model, embedded))
    return source if source.is_dir() else None


def _source(model: str, embedded: Mapping[str, str]) -> str:
    """Where the files are. A path that exists, or a name that looks like one, skips the hub."""
    if model in embedded:
        return str(resources.files("dagflow") / embedded[model])
    path = Path(model)
    if path.is_dir():
        if embedded is not EMBEDDED_PREVIEWS and not (path / "model_index.json").is_file():
            raise UserError(
                f"'{model}' is not a diffusers pipeline: the folder has no model_index.json."
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
