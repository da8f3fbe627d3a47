"""Prompts from a text, CSV or JSON file."""

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
    file = Path(path)
    reader = READERS.get(file.suffix.lower())
    if reader is None:
        raise UserError(f"'{path}': prompts are read from {', '.join(READERS)} files.")
    try:
        found = list(reader(file))
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}.") from None
    except (UnicodeDecodeError, json.JSONDecodeError, csv.Error) as error:
        raise UserError(f"'{path}' is not a {file.suffix} file: {error}.") from None
    return [prompt for prompt in found if prompt.text.strip()]


def _read_txt(file: Path) -> Iterable[Prompt]:
    return [Prompt(line.strip()) for line in file.read_text(encoding="utf-8-sig").splitlines()]


def _read_csv(file: Path) -> Iterable[Prompt]:
    with file.open(encoding="utf-8-sig", newline="") as lines:
        return [_from_row(file, number, row) for number, row in enumerate(csv.DictReader(lines), 2)]


def _read_json(file: Path) -> Iterable[Prompt]:
    items = json.loads(file.read_text(encoding="utf-8-sig"))
    if not isinstance(items, list):
        raise UserError(f"'{file}' holds no list.")
    return _from_items(file, items)


def _read_jsonl(file: Path) -> Iterable[Prompt]:
    lines = file.read_text(encoding="utf-8-sig").splitlines()
    return _from_items(file, [json.loads(line) for line in lines if line.strip()])


def _read_parquet(file: Path) -> Iterable[Prompt]:
    try:
        from pyarrow import ArrowInvalid, parquet
    except ImportError:
        raise UserError(f"'{file}': .parquet needs pyarrow. Try: pip install pyarrow") from None
    try:
        return _from_items(file, parquet.read_table(file).to_pylist())
    except ArrowInvalid as error:
        raise UserError(f"'{file}' is not a .parquet file: {error}") from None


def _from_items(file: Path, items: Sequence[Any]) -> list[Prompt]:
    return [
        Prompt(item) if isinstance(item, str) else _from_row(file, number, item)
        for number, item in enumerate(items, 1)
    ]


def _from_row(file: Path, number: int, row: Any) -> Prompt:
    columns = {str(key).lower(): key for key in row} if isinstance(row, dict) else {}
    key = next((columns[name] for name in COLUMNS if name in columns), None)
    if key is None or not isinstance(row[key], str):
        raise UserError(f"'{file}', item {number}: no text under any of {', '.join(COLUMNS)}.")
    return Prompt(row[key], {name: value for name, value in row.items() if name != key})


READERS: dict[str, Callable[[Path], Iterable[Prompt]]] = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
}
