"""`dagflow sample`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress

from dagflow import UserError
from dagflow.cli.console import complain, err, out
from dagflow.cli.run import Resumed
from dagflow.files import require_empty

if TYPE_CHECKING:
    from dagflow.config import Config

COLUMNS = 8


def register(app: typer.Typer) -> None:
    app.command()(sample)


def sample(
    source: Annotated[
        str,
        typer.Argument(
            metavar="RUN[@EPOCH|@best]|LORA",
            help="A run directory, or a folder with a LoRA's weights.",
        ),
    ],
    prompt: Annotated[list[str], typer.Option(metavar="TEXT", help="May be repeated.")],
    count: Annotated[int, typer.Option("-n", min=1, help="Images for each prompt.")] = 4,
    output: Annotated[Path, typer.Option(help="A folder for the pictures.")] = Path("samples"),
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=2**63 - 1, help="Picture k uses torch.Generator().manual_seed(seed + k)."
        ),
    ] = 0,
    model: Annotated[
        str | None,
        typer.Option(help="The base model of a LoRA outside a run directory. Default: tiny."),
    ] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(min=1, help="Default: the run's own; 20 for a LoRA.")
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option(
            min=0, help="Default: the run's own; 5 for a LoRA. At 1 or below there is no guidance."
        ),
    ] = None,
) -> None:
    """Draw images with a trained model.

    Stable Diffusion models are drawn with diffusers' own pipeline: DDIM with eta = 1, and a
    generator for each picture. So these are the pictures that the LoRA draws anywhere else.

    Example: dagflow sample runs/jpeg-compressibility-kl-001 --prompt "a cat" -n 8 --output cats
    """
    require_empty(output)
    if guidance_scale == math.inf:
        raise UserError("--guidance-scale inf: give a finite number.")
    from dagflow.draw import draw
    from dagflow.engine import pictures
    from dagflow.engine.prompts import as_prompts
    from dagflow.policies.loading import default_device, load_policy

    given = as_prompts("--prompt", prompt)
    config, folder = _trained(source)
    scale = config.rollout.guidance_scale if guidance_scale is None else guidance_scale
    steps = num_inference_steps or config.rollout.num_inference_steps
    base = model or config.model
    policy = load_policy(base, config.dtype, default_device(), scale)
    if not (folder / policy.WEIGHTS_FILE).is_file():
        if folder != Path(source):
            raise UserError(f"'{source}' is a run of a different kind of model than '{base}'.")
        raise UserError(
            f"'{source}' is neither a run directory nor a folder with {policy.WEIGHTS_FILE}."
        )
    policy.load_weights(folder)
    texts = [each.text for each in given for _ in range(count)]
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task("sampling", total=len(texts) * policy.path(steps).steps)
        images = draw(
            policy,
            texts,
            steps,
            config.rollout.batch_size,
            seed,
            lambda units: bars.advance(task, units),
        )
    for number, image in enumerate(images):
        pictures.save(pictures.to_pil(image), output / f"{number:04d}.png")
    pictures.save(pictures.grid(images, COLUMNS, texts), output / "grid.png")
    out.print(f"{len(images)} pictures and grid.png in {output}", markup=False)


def _trained(source: str) -> tuple[Config, Path]:
    """The configuration of a run, or the default one, and the folder with the trained weights."""
    from dagflow.config import Config
    from dagflow.folder import read_config, whole_checkpoint

    place = Resumed.named(source)
    if not place.place and not (place.folder / "config.toml").is_file():
        return Config(), place.folder
    config = read_config(place.folder)
    return config, whole_checkpoint(place.folder, place.place, lambda text: complain("Note", text))
