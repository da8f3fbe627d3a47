"""Which prompt each trajectory gets."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence, Sized
from hashlib import sha256
from itertools import islice

import torch

from dagflow.diffusion.noise import Stream, generator
from dagflow.errors import PluginError, UserError, blaming
from dagflow.files import is_text
from dagflow.types import Prompt, PromptSource


def as_prompts(name: str, source: Iterable[Prompt | str]) -> tuple[Prompt, ...]:
    """The items of a prompt source, as prompts.

    Raises UserError if it is empty or a text cannot be encoded in UTF-8, PluginError if it is no
    sequence of texts and `Prompt`s.
    """
    items = []
    for position, item in enumerate(_items(name, source)):
        if not isinstance(item, (str, Prompt)):
            raise PluginError(
                f"prompts '{name}': item {position} is {type(item).__name__}, not a str or a Prompt"
            )
        prompt = Prompt(item) if isinstance(item, str) else item
        if not isinstance(prompt.text, str):
            raise PluginError(
                f"prompts '{name}': item {position} is Prompt({prompt.text!r}), which has no text"
            )
        if not isinstance(prompt.metadata, Mapping):
            kind = type(prompt.metadata).__name__
            raise PluginError(f"prompts '{name}': the metadata of item {position} is {kind}")
        if not is_text(prompt.text):
            raise UserError(f"prompts '{name}': item {position} is not text: {prompt.text[:80]!r}.")
        items.append(prompt)
    if not items:
        raise UserError(f"prompts '{name}' is empty.")
    return tuple(items)


def _items(name: str, source: Iterable[Prompt | str]) -> list[Prompt | str]:
    listed = hasattr(source, "__iter__") or hasattr(source, "__getitem__")
    if isinstance(source, str | Mapping | set | frozenset) or not listed:
        kind = type(source).__name__
        raise PluginError(
            f"prompts '{name}' is a {kind}; expected a list of texts or dagflow.Prompt, in an "
            f"order that does not change"
        )
    with blaming(f"prompts '{name}'", UserError):
        return list(islice(source, len(source)) if isinstance(source, Sized) else source)


def digest(prompts: Sequence[Prompt]) -> str:
    """A hash that identifies these texts in this order."""
    texts = "\0".join(prompt.text for prompt in prompts)
    return sha256(texts.encode()).hexdigest()[:16]


def heldout_prompts(
    name: str, source: PromptSource, prompts: tuple[Prompt, ...]
) -> tuple[Prompt, ...]:
    """The source's `heldout` prompts, or the training prompts if it has none."""
    with blaming(f"prompts '{name}'", UserError):
        heldout: Sequence[Prompt | str] | None = getattr(source, "heldout", None)
    found = [] if heldout is None else _items(f"{name}.heldout", heldout)
    return as_prompts(f"{name}.heldout", found) if found else prompts


def draw_prompts(
    prompts: Sequence[Prompt], seed: int, before: int, count: int, images_per_prompt: int
) -> tuple[Prompt, ...]:
    """The prompts of `count` trajectories after `before`; `images_per_prompt` in a row are equal.

    Each pass over the source has a new order, and each prompt once.
    """
    begin, end = before // images_per_prompt, (before + count) // images_per_prompt
    chosen = []
    for position in range(begin, end):
        pass_number, place = divmod(position, len(prompts))
        order = torch.randperm(len(prompts), generator=generator(Stream.PROMPTS, seed, pass_number))
        chosen.append(prompts[int(order[place])])
    return tuple(prompt for prompt in chosen for _ in range(images_per_prompt))
