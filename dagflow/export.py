"""Exports a trained LoRA for diffusers, for programs that read kohya's names, and for a hub."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from dagflow import folder as run_folder
from dagflow.card import KOHYA, LORA, Trained, Wishes, card
from dagflow.config import Config
from dagflow.draw import draw
from dagflow.engine import checkpoint, pictures
from dagflow.engine.prompts import heldout_prompts
from dagflow.errors import RunError, UserError
from dagflow.files import require_empty
from dagflow.plugins import Registry
from dagflow.policies.loading import default_device, load_pipeline, load_policy
from dagflow.policies.stable_diffusion import StableDiffusionPolicy
from dagflow.prepare import load_prompts

CARD = "README.md"
SHOWN = 4  # prompts of the card's example


def find(run: Path, place: str, say: Callable[[str], None]) -> Trained:
    """A run's checkpoint, for export. Raises UserError if other programs could not load it."""
    config = run_folder.read_config(run)
    family, colon, _ = config.model.partition(":")
    if colon and family in ("ddpm", "world"):
        raise UserError(
            f"'{run}' trained {config.model}, and no other program loads the trained weights of "
            f"a `{family}:` model. `dagflow sample {run}` draws with them; they are in "
            f"{run}/checkpoints."
        )
    chosen = run_folder.whole_checkpoint(run, place, say)
    newest = checkpoint.folders(run / "checkpoints")[-1]
    return Trained(run, chosen, chosen == newest, config)


def example_prompts(config: Config, registry: Registry) -> tuple[str, ...]:
    """The first held-out prompts of a run."""
    source, prompts = load_prompts(config, registry)
    shown = heldout_prompts(config.prompts.name, source, prompts)
    return tuple(dict.fromkeys(prompt.text for prompt in shown))[:SHOWN]


def export(
    trained: Trained, wishes: Wishes, registry: Registry, output: Path, draws: bool
) -> list[Path]:
    """Write the folder, whole or not at all; returns its files, relative to it.

    `draws`: also draw the pictures of the card's example, which needs the base model, as a fused
    pipeline does. Raises UserError if the output is in use or the base model is unavailable.
    """
    require_empty(output)
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".dagflow-", dir=output.parent) as beside:
        partial = Path(beside) / output.name
        partial.mkdir()
        try:
            (_fuse if wishes.fused else _copy_lora)(trained, partial)
        except SafetensorError as error:  # a full disk
            raise RunError(f"'{output}' cannot be written: {error}") from error
        _copy_pictures(trained, partial / "samples")
        drawn = _draw(trained, wishes, partial) if draws else []
        text = card(trained, wishes, registry, drawn)
        (partial / CARD).write_text(text, encoding="utf-8")
        if output.exists():
            output.rmdir()
        partial.rename(output)
    return sorted(path.relative_to(output) for path in output.rglob("*") if path.is_file())


def _copy_lora(trained: Trained, folder: Path) -> None:
    shutil.copyfile(trained.checkpoint / LORA, folder / LORA)
    save_file(kohya(load_file(folder / LORA), trained.config.lora.alpha), folder / KOHYA)


def kohya(state: dict[str, torch.Tensor], alpha: float) -> dict[str, torch.Tensor]:
    """peft's matrices under kohya's names, lora_unet_..., with the alpha of their training.

    diffusers' own conversion uses the rank as alpha.
    """
    from diffusers.utils import convert_state_dict_to_kohya

    return {
        name: torch.tensor(float(alpha)) if name.endswith(".alpha") else tensor.contiguous()
        for name, tensor in convert_state_dict_to_kohya(state).items()
    }


def _fuse(trained: Trained, folder: Path) -> None:
    """The pipeline with W + alpha / rank B A in place of W, in float32."""
    policy = StableDiffusionPolicy(
        load_pipeline(trained.config.model, torch.float32), torch.device("cpu"), guidance_scale=1.0
    )
    policy.load_weights(trained.checkpoint)
    policy.pipeline.scheduler = policy.scheduler()
    policy.pipeline.fuse_lora()
    policy.pipeline.unload_lora_weights()
    policy.pipeline.save_pretrained(folder)


def _copy_pictures(trained: Trained, folder: Path) -> None:
    for name in trained.pictures():
        folder.mkdir(exist_ok=True)
        shutil.copyfile(trained.run / "samples" / name, folder / name)


def _draw(trained: Trained, wishes: Wishes, folder: Path) -> list[str]:
    """Draw what the card's example draws; returns the names of the files in samples/."""
    config, rollout = trained.config, trained.config.rollout
    policy = load_policy(config.model, config.dtype, default_device(), rollout.guidance_scale)
    policy.load_weights(trained.checkpoint)
    count = len(wishes.prompts)
    images = draw(policy, wishes.prompts, rollout.num_inference_steps, count, 0)
    names = [f"samples/{number:04d}.png" for number in range(count)]
    for name, image in zip(names, images, strict=True):
        pictures.save(pictures.to_pil(image), folder / name)
    return names
