"""`dagflow export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dagflow.cli.console import complain, out
from dagflow.cli.run import Resumed
from dagflow.files import require_empty
from dagflow.plugins import load_plugins


def register(app: typer.Typer) -> None:
    app.command()(export)


def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN[@EPOCH|@best]", help="A run directory. Default: its newest checkpoint."
        ),
    ],
    output: Annotated[Path | None, typer.Option(help="A new folder. Default: RUN/export.")] = None,
    fuse: Annotated[
        bool,
        typer.Option("--fuse", help="Write a whole pipeline, with the LoRA fused into its UNet."),
    ] = False,
    draw: Annotated[
        bool, typer.Option("--draw", help="Also draw the pictures of the card's example.")
    ] = False,
    prompt: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="Prompt of the card's example; may be repeated. Default: the first held-out ones.",
        ),
    ] = None,
    base_model: Annotated[
        str, typer.Option(metavar="ID", help="The base model's id on the hub, for the card.")
    ] = "",
    license_id: Annotated[
        str, typer.Option("--license", metavar="ID", help="For the card, as the hub writes it.")
    ] = "",
) -> None:
    """Write a trained LoRA for diffusers, ComfyUI, A1111 and similar programs, with a model card.

    Example: dagflow export runs/jpeg-compressibility-kl-001@best --output compressible
    """
    place = Resumed.named(run)
    folder = output or place.folder / "export"
    require_empty(folder)
    from dagflow import export as exporting
    from dagflow.card import Wishes
    from dagflow.engine.prompts import as_prompts

    given = tuple(each.text for each in as_prompts("--prompt", prompt)) if prompt else ()
    trained = exporting.find(place.folder, place.place, lambda text: complain("Note", text))
    registry = load_plugins()
    prompts = given or exporting.example_prompts(trained.config, registry)
    wishes = Wishes(prompts, fuse, base_model, license_id)
    files = exporting.export(trained, wishes, registry, folder, draw)
    out.print(f"{trained.checkpoint.name} of {place.folder} in {folder}:", markup=False)
    for file in files:
        out.print(f"  {file}", markup=False)
    out.print("Before you publish it, read README.md and state the licence there.")
