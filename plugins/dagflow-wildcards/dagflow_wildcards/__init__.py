"""Prompts from templates: an example of a prompt source for dagflow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dagflow import Prompt, PromptSourceFactory, UserError, hookimpl
from dagflow_wildcards.sequence import Combinations, Wildcards
from dagflow_wildcards.words import read_words


def wildcards(
    templates: Sequence[str] = ("a {colour} {animal}",),
    folder: str = "",
    seed: int = 0,
    heldout: float = 0.1,
) -> Sequence[Prompt]:
    """Every combination of templates such as "a {colour} {animal}" with the words of colour.txt ...

    templates: texts with wildcards in braces; one that occurs twice in a text gets the same word.
    folder: where KEY.txt holds the words for {KEY}, one per line; keys without a file there use the
    packaged lists (animal, colour, place). seed: determines the order, and so what is held out.
    heldout: the share of combinations that is kept for evaluation.
    """
    if not 0 <= heldout < 1:
        raise UserError(f"heldout = {heldout}: expected a share from 0 to below 1.")
    return Wildcards(Combinations(templates, lambda key: read_words(key, folder)), seed, heldout)


@hookimpl
def dagflow_register_prompt_sources() -> Mapping[str, PromptSourceFactory]:
    return {"wildcards": wildcards}
