"""Train the animal classifier of the benchmarks on rendered emoji; a few minutes on one core.

Needs the ``render``, ``vae`` and ``latents`` stages of ``train.py``. A third of the pictures are
replaced by their VAE reconstructions; random crops, colour gain, blur and noise do the rest.
No samples of the diffusion model are used.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from emoji import ANIMALS, DEFAULT_FONT, Renderer, render_item, sample_scene
from rich.console import Console
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F
from train import HELD_OUT_SEED, PICTURES, ROOT, SEED, load_pictures

sys.path.insert(0, str(ROOT / "benchmarks"))
from animal_classifier import WEIGHTS, AnimalClassifier, load_classifier, predict

EPOCHS = 4
BATCH = 128
RATE = 4e-3
DECODED = 20_000
HELD_OUT = 2_250

console = Console(highlight=False)


def label(seed: int, index: int) -> int:
    """Return the class of picture `index` without drawing it."""
    return ANIMALS.index(sample_scene(np.random.default_rng((seed, index))).animal)


@torch.no_grad()
def training_pictures(work: Path) -> Tensor:
    """Load the training set, the first pictures replaced by their reconstructions."""
    pictures = load_pictures(work / "pictures.npy")
    vae = AutoencoderKL.from_pretrained(work / "vae")
    latents = torch.from_numpy(np.load(work / "latents.npy")[:DECODED])
    for start in range(0, DECODED, 128):
        batch = latents[start : start + 128].float() / vae.config.scaling_factor
        decoded = (vae.decode(batch).sample / 2 + 0.5).clamp(0, 1)
        pictures[start : start + len(batch)] = (decoded * 255).round().byte()
    return pictures


def augment(images: Tensor) -> Tensor:
    """Shift by up to 3 pixels, scale colours, blur a third of the batch, add noise."""
    images = F.pad(images, (3, 3, 3, 3), mode="replicate")
    dy, dx = torch.randint(7, (2,)).tolist()
    images = images[:, :, dy : dy + 32, dx : dx + 32]
    if torch.rand(()) < 0.5:
        images = images.flip(3)
    count = len(images)
    gain = 1 + 0.2 * (torch.rand(count, 3, 1, 1) - 0.5)
    images = images * gain + 0.1 * (torch.rand(count, 1, 1, 1) - 0.5)
    third = count // 3
    kernel = torch.tensor([1.0, 2.0, 1.0])
    kernel = (kernel[:, None] * kernel / 16).expand(3, 1, 3, 3)
    blurred = F.conv2d(F.pad(images[:third], (1, 1, 1, 1), mode="replicate"), kernel, groups=3)
    images = torch.cat([blurred, images[third:]])
    return images + 0.06 * torch.rand(count, 1, 1, 1) * torch.randn_like(images)


def train(work: Path) -> AnimalClassifier:
    """Fit the classifier with AdamW under a one-cycle rate."""
    torch.manual_seed(SEED)
    pictures = training_pictures(work)
    labels = torch.tensor([label(SEED, index) for index in range(PICTURES)])
    model = AnimalClassifier()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=1e-2)
    steps = EPOCHS * (PICTURES // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    start = time.time()
    for epoch in range(EPOCHS):
        for index in torch.randperm(PICTURES)[: PICTURES // BATCH * BATCH].split(BATCH):
            logits = model(augment(pictures[index].float() / 255))
            loss = F.cross_entropy(logits, labels[index], label_smoothing=0.05)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            schedule.step()
        console.print(f"epoch {epoch + 1}: loss {loss.item():.3f}, {time.time() - start:.0f} s")
    return model.eval()


def main() -> None:
    """Train, save in fp16 and report the accuracy on held-out renders."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--font", type=Path, default=DEFAULT_FONT)
    parser.add_argument("--work", type=Path, default=ROOT / "build" / "tiny-model")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    state = train(options.work).state_dict()
    save_file(
        {
            name: value.half().contiguous() if value.is_floating_point() else value
            for name, value in state.items()
        },
        WEIGHTS,
    )
    WEIGHTS.chmod(0o644)
    renderer = Renderer(options.font)
    drawn = [render_item(renderer, HELD_OUT_SEED, index) for index in range(HELD_OUT)]
    images = torch.from_numpy(np.stack([picture for picture, _ in drawn]))
    truth = torch.tensor([ANIMALS.index(scene.animal) for _, scene in drawn])
    guess = predict(images.permute(0, 3, 1, 2).float() / 255, load_classifier())
    console.print(f"held-out accuracy {(guess == truth).float().mean():.4f}")


if __name__ == "__main__":
    main()
