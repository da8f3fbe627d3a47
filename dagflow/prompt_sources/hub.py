"""Prompts from a dataset on the model hub."""

from __future__ import annotations

from dagflow import Prompt, UserError
from dagflow.prompt_sources.files import COLUMNS, from_items


def read_dataset(
    path: str, split: str, subset: str | None, column: str, revision: str
) -> list[Prompt]:
    """The texts of one column, by default one of `COLUMNS`.

    Other columns with plain values (texts, numbers) become metadata. `path`: "owner/name", or a
    folder of data files. Raises UserError if there is no such dataset, split, subset or column.
    """
    try:
        import datasets
    except ImportError:
        raise UserError("hub: needs a library. Try: pip install datasets") from None
    try:
        data = datasets.load_dataset(path, subset, split=split, revision=revision)
    except Exception as error:  # from many libraries
        raise UserError(f"hub:{path}, split {split}: {type(error).__name__}: {error}") from None
    plain = [name for name, kind in data.features.items() if isinstance(kind, datasets.Value)]
    if column and column not in plain:
        raise UserError(f"hub:{path} has no column '{column}'. There are: {', '.join(plain)}.")
    rows = data.select_columns(plain)
    return from_items(f"hub:{path}", enumerate(rows, 1), (column,) if column else COLUMNS)
