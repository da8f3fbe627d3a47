"""The built-in prompt sources, registered like anybody's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dagflow import Prompt, PromptSourceFactory, hookimpl
from dagflow.prompt_sources.files import read_prompts

# fmt: off
ANIMALS = [
    "cat", "dog", "horse", "monkey", "rabbit", "zebra", "spider", "bird", "sheep", "deer", "cow",
    "goat", "lion", "tiger", "bear", "raccoon", "fox", "wolf", "lizard", "beetle", "ant",
    "butterfly", "fish", "shark", "whale", "dolphin", "squirrel", "mouse", "rat", "snake", "turtle",
    "frog", "chicken", "duck", "goose", "bee", "pig", "turkey", "fly", "llama", "camel", "bat",
    "gorilla", "hedgehog", "kangaroo",
]
# fmt: on


def animals() -> Sequence[str]:
    """The 45 simple animals of the DDPO paper: "a cat", "an ant", ..."""
    return [f"{'an' if name[0] in 'aeiou' else 'a'} {name}" for name in ANIMALS]


def texts(texts: list[str]) -> Sequence[str]:
    """The given texts; `--prompt TEXT` on the command line adds one."""
    return texts


def file(path: str) -> Sequence[Prompt]:
    """A file of prompts: .txt (a line each), .csv or .json; `file:PATH` for short."""
    return read_prompts(path)


@hookimpl
def dagflow_register_prompt_sources() -> Mapping[str, PromptSourceFactory]:
    return {"animals": animals, "texts": texts, "file": file}
