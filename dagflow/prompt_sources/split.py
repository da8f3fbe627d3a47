"""Prompts to train on, with others held out for evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dagflow import Prompt, UserError


class Split(list[Prompt]):
    """The prompts to train on; `heldout` holds the others. No text is in both."""

    def __init__(self, prompts: Iterable[Prompt], heldout: Iterable[Prompt]) -> None:
        self.heldout = list(heldout)
        texts = {prompt.text for prompt in self.heldout}
        super().__init__(prompt for prompt in prompts if prompt.text not in texts)


def hold_out(texts: Sequence[str], count: int) -> Split:
    """Hold out `count` evenly spaced texts. Raises UserError if none would be left."""
    if not 0 <= count < len(texts):
        raise UserError(
            f"heldout = {count}: expected 0 to {len(texts) - 1} of {len(texts)} prompts."
        )
    chosen = (texts[index * len(texts) // count] for index in range(count))
    return Split(map(Prompt, texts), map(Prompt, chosen))


def hold_out_first(prompts: Sequence[Prompt], count: int, key: str) -> Split:
    """Hold out the first `count` prompts of each value of the metadata `key`.

    Raises UserError if none would be left.
    """
    seen: dict[object, int] = {}
    first = []
    for prompt in prompts:
        group = prompt.metadata.get(key)
        seen[group] = seen.get(group, 0) + 1
        if seen[group] <= count:
            first.append(prompt)
    split = Split(prompts, first)
    if not split:
        raise UserError(f"heldout = {count} of each {key.lower()} leaves no prompt to train on.")
    return split
