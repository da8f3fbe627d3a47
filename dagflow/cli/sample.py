"""`dagflow sample`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import Progress

from dagflow import Prompt, UserError
from dagflow.cli.console import err, out

COLUMNS = 8


def register(app: typer.Typer) -> None:
    app.command()(sample)


def sample(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|LORA", help="A run directory, or a folder with a LoRA's weights."
        ),
    ],
    prompt: Annotated[list[str], typer.Option(metavar="TEXT", help="May be repeated.")],
    count: Annotated[int, typer.Option("-n", min=1, help="Images for each prompt.")] = 4,
    output: Annotated[Path, typer.Option(help="A folder for the pictures.")] = Path("samples"),
    seed: Annotated[int, typer.Option(min=0, help="Decides the noise.")] = 0,
    model: Annotated[
        str | None,
        typer.Option(help="The base model of a LoRA outside a run directory. Default: tiny."),
    ] = None,
    num_inference_steps: Annotated[
        int | None, typer.Option(min=1, help="Default: the run's own; 20 for a LoRA.")
    ] = None,
    guidance_scale: Annotated[
        float | None, typer.Option(min=0, help="Default: the run's own; 5 for a LoRA.")
    ] = None,
) -> None:
    """Draw images with a trained model.

    Example: dagflow sample runs/jpeg-compressibility-kl-001 --prompt "a cat" -n 8 --output cats
    """
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UserError(f"'{output}' exists and is not empty. Give another --output.")
    from dagflow.config import Config
    from dagflow.diffusion.noise import Stream
    from dagflow.engine import checkpoint, pictures
    from dagflow.evaluate import Sampler
    from dagflow.folder import read_config
    from dagflow.policies.loading import default_device, load_policy

    config = Config()
    folder = source
    if (source / "config.toml").is_file():
        config = read_config(source)
        found = checkpoint.checkpoints(source / "checkpoints")
        if not found:
            raise UserError(f"the run '{source}' has no checkpoint yet.")
        folder = found[-1]
    scale = config.rollout.guidance_scale if guidance_scale is None else guidance_scale
    steps = num_inference_steps or config.rollout.num_inference_steps
    policy = load_policy(model or config.model, config.dtype, default_device(), scale)
    if not (folder / policy.WEIGHTS_FILE).is_file():
        raise UserError(
            f"'{source}' is neither a run directory nor a folder with {policy.WEIGHTS_FILE}."
        )
    policy.load_weights(folder)
    prompts = [Prompt(text) for text in prompt for _ in range(count)]
    path = policy.path(steps)
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bars:
        task = bars.add_task("sampling", total=len(prompts) * path.steps)
        sampler = Sampler(
            policy,
            path,
            config.rollout.batch_size,
            seed,
            Stream.SAMPLE,
            lambda units: bars.advance(task, units),
        )
        images = sampler.images(prompts)
    for number, image in enumerate(images):
        pictures.save(pictures.to_pil(image), output / f"{number:04d}.png")
    captions = [item.text for item in prompts]
    pictures.save(pictures.grid(images, COLUMNS, captions), output / "grid.png")
    out.print(f"{len(images)} pictures and grid.png in {output}")
