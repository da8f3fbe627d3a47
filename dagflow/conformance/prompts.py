"""What every prompt source must do."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

import pytest

from dagflow.conformance.contract import Contract, advise, in_a_new_process
from dagflow.types import Prompt

SAMPLED = 50  # positions at which an item is asked for by number
PROBE = """
import json, os, sys
from itertools import islice
path, (name, options) = json.loads(sys.stdin.read())
sys.path[:] = path
from dagflow.plugins import load_plugins
source = load_plugins().maker("prompts", name, options)()
items = [getattr(item, "text", item) for item in islice(iter(source), len(source))]
print("\\n" + json.dumps(items, default=str), flush=True)
os._exit(0)  # before anything else is printed
"""


class PromptSourceContract(Contract):
    """Tests of an installed prompt source. Set `name`, and `options` if it needs any."""

    kind = "prompts"

    def test_is_a_finite_sequence(self) -> None:
        check_sequence(self.label, self.build())

    def test_items_are_texts(self) -> None:
        check_items(self.label, items_of(self.label, self.build()))

    def test_built_twice_it_is_the_same(self) -> None:
        """In this process, and in another, where sets have another order."""
        first, second = (items_of(self.label, self.build()) for _ in range(2))
        here = json.loads(json.dumps([text(item) for item in first], default=str))
        if first != second or self._elsewhere(here) != here:
            advise(
                f"{self.label}, built twice with the same options, holds different prompts. A "
                f"resumed run would train on others: sort what comes from a set or a folder, and "
                f"draw at random only from a seed that is an option."
            )

    def _elsewhere(self, here: list[Any]) -> list[Any]:
        """The texts as another process builds them; as `here`, if the options cannot go there."""
        try:
            if json.loads(json.dumps(self.options)) != self.options:
                return here
        except (TypeError, ValueError):
            return here
        seed = "2" if os.environ.get("PYTHONHASHSEED") == "1" else "1"
        given = (self.name, self.options)
        return in_a_new_process(f"building {self.label}", PROBE, given, {"PYTHONHASHSEED": seed})

    def test_walked_twice_it_is_the_same(self) -> None:
        source = self.build()
        if items_of(self.label, source) != items_of(self.label, source):
            advise(
                f"{self.label} yields other prompts when iterated a second time. It must be "
                f"a fixed sequence: return a list, and let the engine shuffle."
            )

    def test_items_by_number_are_those_of_the_walk(self) -> None:
        source = self.build()
        check_numbers(self.label, source, items_of(self.label, source))

    def test_heldout_is_separate(self) -> None:
        source = self.build()
        heldout = getattr(source, "heldout", None)
        if not heldout:
            pytest.skip("it has no heldout prompts: evaluation uses those of training")
        label = f"{self.label}, heldout"
        check_sequence(label, heldout)
        found = items_of(label, heldout)
        check_items(label, found)
        check_numbers(label, heldout, found)
        both = {text(item) for item in found} & {
            text(item) for item in items_of(self.label, source)
        }
        if both:
            advise(
                f"{self.label}: {min(both)!r} is both trained on and held out ({len(both)} such "
                f"texts). Measurements on it would flatter: put each text into only one of the "
                f"two."
            )


def check_sequence(label: str, source: Any) -> None:
    """It has a length above zero, items by number, and ends where its length says."""
    for method in ("__len__", "__getitem__"):
        if not hasattr(source, method):
            advise(
                f"{label} is a {type(source).__name__}, which has no {method}. The engine shuffles "
                f"and resumes by number, so it needs a finite sequence: return a list."
            )
    if not len(source):
        advise(f"{label} is empty. Raise dagflow.UserError if its options leave no prompt.")
    found = len(list(islice(iter(source), len(source) + 1)))
    if found != len(source):
        than = "more" if found > len(source) else "fewer"
        advise(f"{label} has the length {len(source)}, but iterating over it finds {than} items.")


def check_items(label: str, items: Sequence[Any]) -> None:
    """Each is a text that is not blank, or a Prompt with such a text and a mapping."""
    for position, item in enumerate(items):
        if not isinstance(item, str | Prompt):
            advise(
                f"{label}: item {position} is {type(item).__name__}. Each item must be a str or a "
                f"dagflow.Prompt(text, metadata)."
            )
        if not isinstance(text(item), str) or not text(item).strip():
            advise(f"{label}: item {position} is {text(item)!r}. Leave out blank texts.")
        if isinstance(item, Prompt) and not isinstance(item.metadata, Mapping):
            advise(
                f"{label}: the metadata of item {position} is {type(item.metadata).__name__}, not "
                f"a mapping such as a dict."
            )


def check_numbers(label: str, source: Any, items: Sequence[Any]) -> None:
    """Item k by index, from either end, is the k-th in iteration; beyond the end there is none."""
    count = len(items)
    for k in sorted({*range(0, count, max(1, count // SAMPLED)), count - 1}):
        for number in (k, k - count):
            if _at(label, source, number) != items[k]:
                advise(
                    f"{label}: item {number} by index is not item {k} in iteration. Item i must "
                    f"follow from i alone, and item -1 is the last; inherit from "
                    f"collections.abc.Sequence to get iteration for free."
                )
    for number in (count, -count - 1):
        try:
            source[number]
        except IndexError:
            continue
        except Exception as error:
            advise(f"{label}: item {number} raises {type(error).__name__}, not IndexError.")
        advise(f"{label} has an item {number}, though its length is {count}: raise IndexError.")


def items_of(label: str, source: Any) -> list[Any]:
    """All items, as the engine reads them."""
    try:
        return list(islice(iter(source), len(source)))
    except Exception as error:
        advise(f"{label} raised {type(error).__name__} when iterated: {error}.")


def text(item: Any) -> Any:
    return item.text if isinstance(item, Prompt) else item


def _at(label: str, source: Any, number: int) -> Any:
    try:
        return source[number]
    except Exception as error:
        advise(f"{label}: item {number} raised {type(error).__name__}: {error}.")
