"""Train the embedded preview decoder: an AutoencoderTiny that decodes x0hat as the VAE does.

    python tools/tiny_model/train_preview.py [--steps 4000] [--output dagflow/models/tiny_preview]

It learns from what it will see: the text branch's x0hat at every step of the base model's own
trajectories, decoded by the VAE. This takes a few minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from rich.progress import track
from torch import Tensor

from dagflow.diffusion.noise import Stream, trajectory_noise
from dagflow.engine.prompts import as_prompts
from dagflow.engine.rollout import rollout
from dagflow.plugins import load_plugins
from dagflow.policies.loading import load_policy
from dagflow.policies.policy import Policy

STEPS, TOGETHER = 20, 32


def previews(policy: Policy, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """x0hat (N, C, H, W) along `count` trajectories, shuffled, and the VAE's images of it."""
    path = policy.path(STEPS)
    prompts = as_prompts("animals", load_plugins().maker("prompts", "animals", {})())
    found: list[Tensor] = []
    for start in track(range(0, count, TOGETHER), "previews"):
        indices = range(start, start + TOGETHER)
        batch = [prompts[i % len(prompts)] for i in indices]
        noise = trajectory_noise(Stream.SAMPLE, seed, 0, indices, STEPS, policy.latent_shape)
        rollout(policy, path, batch, noise, "mean", on_preview=lambda _, x0: found.append(x0))
    latents = torch.cat(found)
    latents = latents[torch.randperm(len(latents), generator=torch.Generator().manual_seed(seed))]
    return latents, torch.cat([policy.decode(part) for part in latents.split(64)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--trajectories", type=int, default=384)
    parser.add_argument("--output", type=Path, default=Path("dagflow/models/tiny_preview"))
    options = parser.parse_args()
    torch.manual_seed(0)
    policy = load_policy("tiny", "float32", torch.device("cpu"), guidance_scale=3.0)
    latents, images = previews(policy, options.trajectories, seed=0)
    decoder = AutoencoderTiny(
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(16, 16),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(2, 1),
        latent_channels=policy.latent_shape[0],
    )
    optimizer = torch.optim.AdamW(decoder.decoder.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, options.steps)
    test = slice(0, 256)
    for step in track(range(options.steps), "training"):
        rows = torch.randint(256, len(latents), (64,))
        decoded = decoder.decode(latents[rows]).sample / 2 + 0.5
        loss = (decoded - images[rows]).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 500 == 0 or step == options.steps - 1:
            with torch.no_grad():
                drawn = (decoder.decode(latents[test]).sample / 2 + 0.5).clamp(0, 1)
            print(step, f"mean distance {float((drawn - images[test]).abs().mean()):.4f}")
    decoder.eval().save_pretrained(options.output)
    file = options.output / "config.json"
    settings = json.loads(file.read_text())
    del settings["block_out_channels"]  # written by diffusers, and refused when it reads
    file.write_text(json.dumps(settings, indent=2) + "\n")
    (options.output / "diffusion_pytorch_model.safetensors").chmod(0o644)


if __name__ == "__main__":
    main()
