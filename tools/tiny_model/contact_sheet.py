"""Draw a contact sheet: all 45 animals and a few compositional prompts, upscaled four times.

``python tools/tiny_model/contact_sheet.py dagflow/models/tiny sheet.png --guidance 3 --eta 1``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from diffusers import StableDiffusionPipeline
from emoji import ANIMALS, with_article
from PIL import Image, ImageDraw

COMPOSITIONS = (
    "a blue bird on a yellow background",
    "a green dog",
    "a cat on a red and white striped background",
    "a fox on a blue to green gradient background",
    "a purple lion on a white background",
    "a pink pig on a black and white checkered background",
    "a red fish on a teal background",
    "an orange butterfly on a black background",
    "a yellow turtle on a blue background",
)
COLUMNS = 9
ZOOM = 4
LABEL = 14


@torch.no_grad()
def sample(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    guidance: float = 3.0,
    eta: float = 1.0,
    steps: int = 20,
    seed: int = 0,
) -> list[Image.Image]:
    """Sample one picture per prompt, each from its own generator."""
    pictures: list[Image.Image] = []
    for start in range(0, len(prompts), 9):
        batch = prompts[start : start + 9]
        generators = [
            torch.Generator().manual_seed(seed * 10_000 + start + k) for k in range(len(batch))
        ]
        pictures += pipeline(
            batch,
            num_inference_steps=steps,
            guidance_scale=guidance,
            eta=eta,
            generator=generators,
        ).images
    return pictures


def sheet(pictures: list[Image.Image], prompts: list[str]) -> Image.Image:
    """Tile pictures with their prompts above them."""
    edge = pictures[0].width * ZOOM
    rows = -(-len(pictures) // COLUMNS)
    canvas = Image.new("RGB", (COLUMNS * (edge + 4), rows * (edge + LABEL + 4)), "white")
    draw = ImageDraw.Draw(canvas)
    for index, (picture, prompt) in enumerate(zip(pictures, prompts, strict=True)):
        x = index % COLUMNS * (edge + 4) + 2
        y = index // COLUMNS * (edge + LABEL + 4)
        words = prompt.removesuffix(" background").replace(" striped", " stripes")
        draw.text((x, y + 1), words[:24], fill="black", font_size=10)
        canvas.paste(picture.resize((edge, edge), Image.Resampling.NEAREST), (x, y + LABEL))
    return canvas


def main() -> None:
    """Write the sheet as a palette PNG."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--guidance", type=float, default=3.0)
    parser.add_argument("--eta", type=float, default=1.0)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    pipeline = StableDiffusionPipeline.from_pretrained(options.model, torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    prompts = [with_article(animal) for animal in ANIMALS] + list(COMPOSITIONS)
    pictures = sample(pipeline, prompts, options.guidance, options.eta, options.steps, options.seed)
    sheet(pictures, prompts).save(options.output, optimize=True)


if __name__ == "__main__":
    main()
