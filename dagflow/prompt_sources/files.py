"""Prompts from a file."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from dagflow import Prompt, UserError

COLUMNS = ("prompt", "prompts", "text", "caption")


def read_prompts(path: str) -> list[Prompt]:
    """The prompts of a file, in order; blank ones are left out.

    .txt holds one a line; .csv and .parquet have a column named prompt, prompts, text or caption
    (in any case), the other columns being metadata; .json is a list of texts, or of objects with
    such a key, and .jsonl has one of those a line.
    Raises UserError if the file is missing, of another kind, or has no such column.
    """
    file = Path(path).expanduser()
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"'{path}': prompts are read from {', '.join(READERS)} files.")
    try:
        found = list(reader(file))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror or error}.") from None
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise UserError(f"'{path}' is not a {file.suffix} file: {error}.") from None
    return [prompt for prompt in found if prompt.text.strip()]


def _read_txt(file: Path) -> Iterable[Prompt]:
    return [Prompt(line.strip()) for line in _lines(file)]


def _lines(file: Path) -> list[str]:
    """Not by `splitlines`: a prompt may hold a separator of Unicode's."""
    return file.read_text(encoding="utf-8-sig").split("\n")


def _read_csv(file: Path) -> Iterable[Prompt]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return [_from_row(file, number, row) for number, row in enumerate(csv.DictReader(lines), 2)]


def _read_json(file: Path) -> Iterable[Prompt]:
    items = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(items, list):
        raise UserError(f"'{file}' holds no list.")
    return from_items(file, items)


def _read_jsonl(file: Path) -> Iterable[Prompt]:
    return [
        _from_item(file, number, _parsed(file, number, line))
        for number, line in enumerate(_lines(file), 1)
        if line.strip()
    ]


def _parsed(file: Path, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"'{file}', line {number}, is not JSON: {error}.") from None


def _read_parquet(file: Path) -> Iterable[Prompt]:
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise UserError(f"'{file}': .parquet needs pyarrow. Try: pip install pyarrow") from None
    try:
        return from_items(file, parquet.read_table(file).to_pylist())
    except ArrowException as error:
        raise UserError(f"'{file}' is not a .parquet file: {error}") from None


def from_items(
    source: object, items: Iterable[Any], columns: Sequence[str] = COLUMNS
) -> list[Prompt]:
    """The prompt of each item: a text, or an object with one under one of the `columns`.

    Raises UserError, with what `source` is called, for an item without.
    """
    return [_from_item(source, number, item, columns) for number, item in enumerate(items, 1)]


def _from_item(source: object, number: int, item: Any, columns: Sequence[str] = COLUMNS) -> Prompt:
    return Prompt(item) if isinstance(item, str) else _from_row(source, number, item, columns)


def _from_row(source: object, number: int, row: Any, columns: Sequence[str] = COLUMNS) -> Prompt:
    present = {str(key).lower(): key for key in row} if isinstance(row, dict) else {}
    key = next((present[name.lower()] for name in columns if name.lower() in present), None)
    if key is None or not isinstance(row[key], str):
        raise UserError(f"'{source}', item {number}: no text under any of {', '.join(columns)}.")
    return Prompt(row[key], {name: value for name, value in row.items() if name != key})


READERS: dict[str, Callable[[Path], Iterable[Prompt]]] = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
