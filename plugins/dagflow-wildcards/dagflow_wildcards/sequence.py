"""All combinations of templates and words, by number."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from string import Formatter
from typing import overload

from dagflow import Prompt, UserError


class Combinations:
    """Every text that the templates can produce; combination i depends only on i.

    The templates come one after the other. Within one, i is read as a number in mixed radix whose
    digits choose a word for each wildcard. Raises UserError for an invalid template.
    """

    def __init__(
        self, templates: Sequence[str], words_of: Callable[[str], tuple[str, ...]]
    ) -> None:
        self.templates = tuple(dict.fromkeys(templates))
        if not self.templates:
            raise UserError("templates = []: expected at least one.")
        self.keys = {template: wildcards_in(template) for template in self.templates}
        used = dict.fromkeys(key for keys in self.keys.values() for key in keys)
        self.words = {key: words_of(key) for key in used}
        counts = [
            math.prod(len(self.words[key]) for key in self.keys[text]) for text in self.templates
        ]
        self.ends = list(accumulate(counts))

    def __len__(self) -> int:
        return self.ends[-1]

    def __getitem__(self, index: int) -> Prompt:
        which = next(k for k, end in enumerate(self.ends) if index < end)
        template = self.templates[which]
        rest = index - (self.ends[which - 1] if which else 0)
        chosen = {}
        for key in reversed(self.keys[template]):
            rest, digit = divmod(rest, len(self.words[key]))
            chosen[key] = self.words[key][digit]
        return Prompt(template.format_map(chosen), {"template": template, **chosen})


class Shuffled(Sequence[Prompt]):
    """Some of the combinations, in an order given by a formula, so that item i depends only on i.

    Position p holds combination (step * p + shift) mod N. step has no factor in common with N, so
    each of the N comes once, and two parts with different positions have nothing in common.
    """

    def __init__(self, combinations: Combinations, seed: int, positions: range) -> None:
        self.combinations, self.positions = combinations, positions
        count = len(combinations)
        digest = hashlib.sha256(str(seed).encode()).digest()
        self.shift = int.from_bytes(digest[:8], "big") % count
        self.step = int.from_bytes(digest[8:16], "big") % count
        while math.gcd(self.step, count) != 1:
            self.step += 1

    def __len__(self) -> int:
        return len(self.positions)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Prompt]: ...
    def __getitem__(self, index: int | slice) -> Prompt | Sequence[Prompt]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        position = self.positions[index]
        return self.combinations[(self.step * position + self.shift) % len(self.combinations)]


class Wildcards(Shuffled):
    """The combinations to train on, with the others in `heldout`."""

    def __init__(self, combinations: Combinations, seed: int, heldout: float) -> None:
        count = len(combinations)
        kept = count - int(count * heldout)
        super().__init__(combinations, seed, range(kept))
        self.heldout = Shuffled(combinations, seed, range(kept, count))


def wildcards_in(template: str) -> tuple[str, ...]:
    """The keys in a template's braces, each once. Raises UserError if it cannot be read."""
    if not template.strip():
        raise UserError("a template is empty.")
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise UserError(f"template '{template}': {error}. Wildcards look like {{key}}.") from None
    keys = []
    for _, key, form, conversion in parts:
        if key is None:
            continue
        if not key.isidentifier() or form or conversion:
            raise UserError(
                f"template '{template}': '{{{key}}}' is not a wildcard; only letters, digits and "
                f"underscores go between its braces."
            )
        keys.append(key)
    return tuple(dict.fromkeys(keys))
