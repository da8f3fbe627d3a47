"""Arguments and options that several commands take."""

from __future__ import annotations

from typing import Annotated

import typer

from dagflow.cli import names

RecipeArgument = Annotated[
    str | None,
    typer.Argument(
        help="The name of a recipe (see `dagflow recipes`), or a TOML file. Default: tiny.",
        autocompletion=names.recipes,
        show_default=False,
    ),
]
RewardOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME[:ARGUMENT][=WEIGHT]",
        help="Reward, such as jpeg-compressibility or remote:URL; may be repeated for a "
        "weighted sum. Replaces the recipe's rewards.",
        autocompletion=names.rewards,
    ),
]
EvalRewardOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME",
        help="A reward that is measured but never trained on; may be repeated.",
        autocompletion=names.rewards,
    ),
]
ObjectiveOption = Annotated[
    str | None,
    typer.Option(help="Objective: kl, db, tb, rtb, ...", autocompletion=names.objectives),
]
PromptsOption = Annotated[
    str | None,
    typer.Option(help="Prompt source: animals, file:PATH, ...", autocompletion=names.prompts),
]
ModelOption = Annotated[
    str | None,
    typer.Option(
        help="tiny (embedded), the folder of a diffusers pipeline, a hub id, ddpm:FOLDER or "
        "ddpm:HUB_ID (unconditional), or world:NAME (its target is known).",
    ),
]
SettingOption = Annotated[
    list[str] | None,
    typer.Option(
        "-s",
        "--set",
        metavar="KEY.PATH=VALUE",
        help="Any setting, such as -s epochs=3 -s update.batch_size=64; may be repeated.",
    ),
]
