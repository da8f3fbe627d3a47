"""The built-in prompt sources, registered like those of any plugin."""

from __future__ import annotations

import collections
from collections.abc import Mapping, Sequence
from typing import Literal

from pydantic import NonNegativeInt, PositiveInt

from dagflow import Prompt, PromptSourceFactory, UserError, hookimpl, locate, reads
from dagflow.prompt_sources.files import read_prompts
from dagflow.prompt_sources.hub import read_dataset
from dagflow.prompt_sources.published import (
    DRAWBENCH,
    DRAWBENCH_CATEGORIES,
    DRAWBENCH_UNUSED,
    HPDV2,
    Style,
)
from dagflow.prompt_sources.split import Split, hold_out, hold_out_first

# fmt: off
ANIMALS = [
    "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow",
    "goat", "lion", "tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle", "ant",
    "butterfly", "fish", "shark", "whale", "dolphin", "squirrel", "mouse", "rat", "snake", "turtle",
    "frog", "chicken", "duck", "goose", "bee", "pig", "turkey", "fly", "llama", "camel", "bat",
    "gorilla", "hedgehog", "kangaroo",
]
# fmt: on


ACTIVITIES = ["riding a bike", "playing chess", "washing the dishes"]

Subset = Literal["all", "animals", "dogs"]
IMAGENET = {"all": range(1000), "animals": range(398), "dogs": range(151, 269)}


def animals(heldout: NonNegativeInt = 0) -> Split:
    """The DDPO paper's 45 simple animals: "a cat", "an ant", ..."""
    return hold_out([f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in ANIMALS], heldout)


def imagenet(subset: Subset = "all", heldout: NonNegativeInt = 0) -> Split:
    """ImageNet's class names: all 1000, the 398 animals or the 118 dogs."""
    from timm.data import ImageNetInfo

    names = ImageNetInfo("imagenet-1k")
    return hold_out([names.index_to_description(index) for index in IMAGENET[subset]], heldout)


@reads(DRAWBENCH)
def drawbench(heldout: NonNegativeInt = 2) -> Split:
    """DrawBench except misspellings and rare words; the first `heldout` per category held out."""
    prompts = read_prompts(str(locate(DRAWBENCH)))
    categories = [str(prompt.metadata.get("Category")).strip() for prompt in prompts]
    if collections.Counter(categories) != DRAWBENCH_CATEGORIES:
        raise UserError(f"{locate(DRAWBENCH)} is not DrawBench: {len(prompts)} prompts.")
    used = [
        prompt
        for prompt, category in zip(prompts, categories, strict=True)
        if category not in DRAWBENCH_UNUSED
    ]
    return hold_out_first(used, heldout, "Category")


@reads(*HPDV2.values())
def hpdv2(styles: Sequence[Style] = tuple(HPDV2), heldout: NonNegativeInt = 10) -> Split:
    """HPDv2's benchmark, 800 prompts per style; the first `heldout` of each are held out."""
    prompts = [
        Prompt(prompt.text, {"style": style})
        for style in styles
        for prompt in read_prompts(str(locate(HPDV2[style])))
    ]
    return hold_out_first(prompts, heldout, "style")


def counting(low: PositiveInt = 2, high: PositiveInt = 9, heldout: NonNegativeInt = 0) -> Split:
    """Numbers of animals, as in the DDPO paper: "two cats", "three geese", ..."""
    if low > high:
        raise UserError(f"low = {low} is more than high = {high}.")
    import inflect

    words = inflect.engine()
    return hold_out(
        [
            f"{words.number_to_words(str(number))} {words.plural(name, number)}"
            for number in range(low, high + 1)
            for name in ANIMALS
        ],
        heldout,
    )


def nouns_activities(heldout: NonNegativeInt = 0) -> Split:
    """Animals doing what people do, as in the DDPO paper: "a cat riding a bike", ..."""
    return hold_out(
        [f"{animal.text} {what}" for animal in animals() for what in ACTIVITIES], heldout
    )


def hub(
    path: str, split: str = "train", subset: str = "", column: str = "", revision: str = "main"
) -> Sequence[Prompt]:
    """A dataset on the model hub, or a folder of data files; `hub:OWNER/NAME`."""
    return read_dataset(path, split, subset or None, column, revision)


def texts(texts: list[str]) -> Sequence[str]:
    """The given texts; `--prompt TEXT` on the command line adds one."""
    return texts


def file(path: str) -> Sequence[Prompt]:
    """A file of prompts: .txt (one per line), .csv, .json, .jsonl or .parquet; `file:PATH`."""
    return read_prompts(path)


@hookimpl
def dagflow_register_prompt_sources() -> Mapping[str, PromptSourceFactory]:
    return {
        "animals": animals,
        "counting": counting,
        "drawbench": drawbench,
        "file": file,
        "hpdv2": hpdv2,
        "hub": hub,
        "imagenet": imagenet,
        "nouns-activities": nouns_activities,
        "texts": texts,
    }
