"""The page of all metrics, from the glossary."""

from __future__ import annotations

from collections.abc import Mapping

from dagflow.glossary import GROUPS, TITLES, Term
from tools.reference.tables import table

HEAD = """# Metrics

Every number that a run writes. `make reference` writes this page from the same glossary that
reports use. LABEL and OTHER stand for labels of rewards, STATISTIC for a measured property of
images, MODEL for `base`, `trained` or `reference`, STAGE for a part of an epoch. Which numbers a
run writes depends on its settings; [training](training.md#the-run-directory) says into which files.
"""


def page() -> str:
    """Markdown, a table for each kind of record."""
    sections = (
        f"## {TITLES[group]}\n\n{_words(terms) if group == 'words' else _keys(terms)}\n"
        for group, terms in GROUPS.items()
    )
    return "\n".join([HEAD, *sections])


def _keys(terms: Mapping[str, Term]) -> str:
    rows = [
        (f"`{key}`", _plain(term.name), _plain(term.meaning), term.unit, term.better)
        for key, term in terms.items()
    ]
    return table(("key", "name", "what it is", "unit", "better"), rows)


def _words(terms: Mapping[str, Term]) -> str:
    rows = [(_plain(term.name), _plain(term.meaning)) for term in terms.values()]
    return table(("word", "what it means"), rows)


def _plain(text: str) -> str:
    return text.replace("{", "").replace("}", "")
